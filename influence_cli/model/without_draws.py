"""Models built without the draws of their first values, which those of a checkpoint take the place of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# in place, and the slow part of building a large model
DRAWS = frozenset(
    {
        "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
        "kaiming_normal_",
    }
)  # fmt: skip


class WithoutDraws(TorchFunctionMode):
    """Within it a parameter that would be filled with random values stays as memory had it; buffers are drawn.

    The state of torch's random numbers is then another: it is not for what is trained from.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What ``func`` returns, or the parameter as it is."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)
