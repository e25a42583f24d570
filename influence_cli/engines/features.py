"""Penultimate features: what a model gives to the linear layer that makes its logits, one vector a row.

Of images others may be asked in their place: the means of the last maps of the network over their places, and the
deviations from these, in the same pass.  A network that was trained for other classes tells these apart less well at
its end than on the way to it, and how much of something there is says less than whether it is anywhere.  All of it may
be asked at further sizes, since of small pictures that are enlarged a network sees other things at other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError, NoFeatures
from influence_cli.model.build import build_model
from influence_cli.model.examples import blank_input
from influence_cli.model.logit_layer import HEAD, logit_layer
from influence_cli.model.named_tensors import as_argument
from influence_cli.model.spec import ModelSpec

ROWS = 2  # on which the layer is looked for
NO_LAYER = "the model has no penultimate features: no linear layer alone makes its logits"
INSTEAD = "score with a method that looks at logits, such as loss or margin"


class Features:
    """The inputs of the layer that makes a model's logits, which is found by running a few rows."""

    def __init__(self, point: Point, smaller: tuple[int, ...] = (), maps: int = 0) -> None:
        """Nothing is run yet; ``smaller`` are further heights and widths of images, ``maps`` how many maps count."""
        self.point, self.smaller, self.maps = point, smaller, maps
        self.layer: str | None = None
        self.earlier: list[str] = []  # the modules whose outputs are these maps

    def find(self, x: Any) -> str:
        """The name of the layer, as inputs [b, ...] show it.

        Raises:
            NoFeatures: no linear layer makes the logits, or it is given no vector a row.
        """
        if self.layer is None:
            some = x[:ROWS] if self.point.few is None else self.point.few[:ROWS]
            try:
                with differentiable_kernels(self.point.recurrent):
                    found = logit_layer(self.point.model, as_argument(some))
            except (RuntimeError, TypeError, ValueError) as error:
                if out_of_memory(error):
                    raise
                found = None  # a model that cannot be looked into
            if found is None:
                raise NoFeatures(NO_LAYER, fix=INSTEAD)
            self.layer = found
            if self.maps:
                self.earlier = last_maps(self.point.model, self.maps, lambda: self.point.logits(some))
            self._at_all_sizes(some)
        return self.layer

    def of(self, x: Any) -> Tensor:
        """Features [b, d] of inputs [b, ...], in the precision of the point; those of smaller sizes stand last.

        Raises:
            NoFeatures: the model has none.
            ModelError: it takes no images of another size.
        """
        self.find(x)
        return self._at_all_sizes(x)

    def _at_all_sizes(self, x: Any) -> Tensor:
        found = [self._inputs(x)]
        for size in self.smaller:
            try:
                found.append(self._inputs(shrunk(x, size)))
            except (RuntimeError, AssertionError) as error:
                if isinstance(error, RuntimeError) and out_of_memory(error):
                    raise
                what = f"the model takes no images of {size} x {size} beside its own size"
                raise ModelError(what, fix="give one size: --features-size N") from error
        return torch.cat(found, dim=1)

    def _inputs(self, x: Any) -> Tensor:
        assert self.layer is not None
        calls: list[tuple[Any, ...]] = []
        maps: dict[str, Tensor] = {}
        module, get = self.point.model.get_submodule(self.layer), self.point.model.get_submodule
        hooks = [module.register_forward_pre_hook(lambda _, args: calls.append(args))]
        for name in self.earlier:
            hooks.append(
                get(name).register_forward_hook(lambda *call, n=name: maps.__setitem__(n, over_places(call[2])))
            )
        try:
            with torch.no_grad(), differentiable_kernels(self.point.recurrent):
                self.point.logits(x)
        finally:
            for hook in hooks:
                hook.remove()
        given = calls[0][0] if len(calls) == 1 and len(calls[0]) == 1 else None
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(x):
            shape = f"{list(given.shape)} for {len(x)} rows" if isinstance(given, Tensor) else f"{len(calls)} calls"
            what = f"layer {self.layer} makes the logits, and is given no one vector a row ({shape})"
            raise NoFeatures(what, fix=INSTEAD)
        return (torch.cat([maps[name] for name in self.earlier], dim=1) if self.earlier else given).detach()


def last_maps(model: nn.Module, count: int, run: Callable[[], Any]) -> list[str]:
    """The last modules of sequences, the outermost ones, that give maps [b, c, h, w], each called once; latest last.

    ``run`` runs the model.
    """
    sequences = (nn.Sequential, nn.ModuleList)
    items = {f"{n}.{k}".lstrip("."): m for n, s in model.named_modules() if isinstance(s, sequences)
             for k, m in s.named_children()}  # fmt: skip
    seen: list[tuple[str, Any]] = []
    hooks = [m.register_forward_hook(lambda *call, n=n: seen.append((n, call[2]))) for n, m in items.items()]
    try:
        with torch.no_grad(), differentiable_kernels():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    called = [name for name, _ in seen]
    maps = [n for n, o in seen if isinstance(o, Tensor) and o.ndim == 4 and called.count(n) == 1]
    return [n for n in maps if not any(n.startswith(f"{other}.") for other in maps)][-count:]


def over_places(maps: Tensor) -> Tensor:
    """Means of maps [b, c, h, w] over their places, and the deviations from these: [b, 2 c].

    >>> over_places(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[2., 1.]])
    """
    deviations, means = torch.std_mean(maps, dim=(2, 3), correction=0)
    return torch.cat([means, deviations], dim=1)


def shrunk(x: Tensor, size: int) -> Tensor:
    """Images [b, c, h, w] at a smaller height and width, without aliasing.

    >>> shrunk(torch.ones(1, 3, 8, 8), 4).shape
    torch.Size([1, 3, 4, 4])
    """
    return nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)


def width_of(spec: ModelSpec, maps: int = 0) -> int:
    """How many features a row has at one size, for a plan: the model is built, and its weights do not matter.

    Raises:
        NoFeatures: the model has none.
    """
    model = build_model(spec).eval()
    name = getattr(model, HEAD, None)  # of a model of the user's own, which has been run
    x = blank_input(spec, ROWS, torch.float32) if name is None or maps else None
    if name is None:
        name = None if x is None else logit_layer(model, as_argument(x))
    layer = model.get_submodule(name) if name else model  # which may be that layer itself
    if not isinstance(layer, nn.Linear):
        raise NoFeatures(NO_LAYER, fix=INSTEAD)
    return layer.in_features if x is None or not maps else _width_of_maps(model, x, maps) or layer.in_features


def _width_of_maps(model: nn.Module, x: Any, maps: int) -> int:
    """How many features the last maps of a model give for inputs like x; 0 where it has none."""
    widths = list[int]()
    hooks = [
        model.get_submodule(n).register_forward_hook(lambda *call: widths.append(over_places(call[2]).shape[1]))
        for n in last_maps(model, maps, lambda: model(x))
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(widths)
