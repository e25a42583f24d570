"""One forward pass of a model whose modules are watched, and backward passes for the gradients of their outputs.

A forward hook notes each watched module's inputs and where its outputs stand in the graph, so that backward passes need
no gradient of any parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.layerwise.blocks import Block, BlockLayout
from influence_cli.engines.layerwise.own_forward import Call
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError, NoDerivative


@dataclass
class _WatchedCall:
    """A watched call as the forward pass left it."""

    module_name: str
    leaves: tuple[Any, ...]
    versions: tuple[int, ...]
    spec: TreeSpec
    edges: list[Tensor | GradientEdge | None]  # of every tensor that it returned


def _watch(name: str, calls: list[_WatchedCall]) -> Callable[..., Any]:
    """A forward hook that notes inputs and the edge of every output in the graph; the first ones begin it."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        leaves = tuple(t.detach() if isinstance(t, Tensor) else t for t in leaves)
        versions = tuple(t._version for t in leaves if isinstance(t, Tensor))
        out, out_spec = tree_flatten(output)
        edges: list[Tensor | GradientEdge | None] = []
        for k, t in enumerate(out):
            if not isinstance(t, Tensor):
                continue
            if not t.is_floating_point():
                edges.append(None)
            elif t.requires_grad and t.grad_fn is not None:
                edges.append(get_gradient_edge(t))  # of the value now, whatever is done to it in place later
            else:
                start = t.detach().requires_grad_()
                edges.append(start)
                out[k] = start.clone()
        calls.append(_WatchedCall(name, leaves, versions, spec, edges))
        return tree_unflatten(out, out_spec)

    return hook


class Tape:
    """One forward pass of b rows; every ``pull`` is one backward pass for output gradients."""

    def __init__(self, model: WatchedModel, logits: Tensor, calls: list[_WatchedCall]) -> None:
        self.model, self.b, self._graph, self._calls = model, len(logits), logits, calls
        self.logits = logits.detach()
        self.changed: set[str] = set()  # modules whose input was changed in place after they had used it

    def calls(self, cotangent: Tensor, keep: bool = False) -> list[tuple[str, Call]]:
        """Every watched call with its output gradients for the rows' scalars <cotangent_i, z_i>, by module name."""
        edges = [e for s in self._calls for e in s.edges if e is not None]
        with differentiable_kernels(self.model.point.recurrent):
            gradients = iter(_gradients(self._graph, edges, cotangent, keep))
        found: list[tuple[str, Call]] = []
        for s in self._calls:
            if s.versions != tuple(t._version for t in s.leaves if isinstance(t, Tensor)):
                self.changed.add(s.module_name)
            own = tuple(None if e is None else next(gradients) for e in s.edges)
            batched = self.model.batched.get(s.module_name, ())
            batched = batched if len(batched) == len(s.leaves) else tuple(False for _ in s.leaves)
            found.append((s.module_name, Call(s.leaves, s.spec, batched, own, self.b)))
        return found

    def sizes(self) -> Iterator[tuple[str, list[int]]]:
        """The leading dimensions of every watched call's arguments, of those that have rows there, by module name."""
        for s in self._calls:
            batched = self.model.batched.get(s.module_name, ())
            if len(batched) == len(s.leaves):
                yield s.module_name, [len(t) for t, rows in zip(s.leaves, batched, strict=True) if rows]

    def pull(self, cotangent: Tensor, keep: bool = False) -> list[Block]:
        """The blocks' part of the gradients of the rows' scalars; ``keep`` where more follow from this forward.

        Raises:
            ModelError: an input was changed in place after its module had used it, and was not so when planned.
        """
        calls = [(name, call) for name, call in self.calls(cotangent, keep) if call.used]
        if self.changed:
            raise ModelError(f"the input of module {min(self.changed)} is changed in place after it was used")
        blocks = []
        for layout in self.model.blocks:
            own = tuple((s, call) for s in layout.sites for name, call in calls if s.module_name == name)
            blocks.append(Block(layout, own, self.b, self.logits))
        return blocks


def _gradients(logits: Tensor, edges: list[Any], cotangent: Tensor, keep: bool) -> list[Tensor | None]:
    if not logits.requires_grad or not edges:
        return [None] * len(edges)
    try:
        return list(torch.autograd.grad(logits, edges, cotangent, retain_graph=keep, allow_unused=True))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise NoDerivative(
            f"the model cannot be differentiated layer by layer ({' '.join(str(error).split())[:200]})",
            fix="turn off what interferes, such as activation checkpointing, or use ip or loss",
        ) from error


class WatchedModel:
    """A model at a point, with which of its modules are watched and the blocks that they give."""

    def __init__(self, point: Point) -> None:
        """All modules are watched, and there are no blocks yet."""
        self.point = point
        self.modules = dict(point.model.named_modules())
        self.batched: dict[str, tuple[bool, ...]] = {}  # by module: which leaves of its arguments have rows in front
        self.watched: tuple[str, ...] = tuple(self.modules)
        self.blocks: tuple[BlockLayout, ...] = ()
        self.parted: set[str] = set()  # modules that are called on some rows at a time

    def run(self, x: Tensor) -> Tape:
        """One forward pass that notes the inputs of every watched module."""
        calls: list[_WatchedCall] = []
        with self._hooks(calls), torch.enable_grad(), differentiable_kernels(self.point.recurrent):
            logits = self.point.logits(x)
        return Tape(self, logits, calls)

    def called_on_parts(self, tape: Tape) -> set[str]:
        """Watched modules of which a call in that pass was not for all rows."""
        return {name for name, sizes in tape.sizes() if any(size % tape.b for size in sizes)}

    @contextmanager
    def _hooks(self, calls: list[_WatchedCall]) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self.watched:
                handle = self.modules[name].register_forward_hook(_watch(name, calls), with_kwargs=True)
                stack.callback(handle.remove)
            yield
