"""Our forward engine against ``torch.func.jvp``, on a model as it is and with BatchNorms fused into it by torch.fx.

All sides take logits' tangents along the same directions, with the same kernels, on one thread.  Torch's side is the
fastest of what it can do: in both orders of memory, by ``jvp``, by ``vmap`` over ``jvp`` where there are several
directions, or by ``forward_ad``, which ``jvp`` is made of.  Fused parameters and their tangents are made beforehand, as
ours are kept between batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torch.autograd.forward_ad as forward_ad
from alternating import Ratio, alternate, best, seconds
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse

Direction = dict[str, Tensor]
CLASSES = 10
MODELS = (("resnet18", 32, 128), ("vit_tiny_patch16_224", 64, 64))  # a timm name, pixels a side, rows of a batch
DIRECTIONS = (1, 3)
ORDERS = ("channels last", "contiguous")
PASSES = 2  # of each timing


@dataclass(frozen=True)
class Compared:
    """Torch's seconds / ours."""

    what: str
    ratio: Ratio
    correlation: float
    note: str


def compared(rounds: int, device: torch.device, wait: Callable[[], None]) -> list[Compared]:
    """Every model and number of directions, plain and fused: the three sides by turns."""
    from influence_cli.engines.point import differentiable_kernels

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), differentiable_kernels():
            return [c for model in MODELS for m in DIRECTIONS for c in _of_model(*model, m, rounds, device, wait)]
    finally:
        torch.set_num_threads(threads)


def _of_model(
    name: str, side: int, batch: int, count: int, rounds: int, device: torch.device, wait: Callable[[], None]
) -> list[Compared]:
    from influence_cli.engines.point import Point

    model = _model(name, side).to(device)
    point = Point(copy.deepcopy(model), "all", None, "fp32", device)
    torch.manual_seed(1)
    us = [{n: (torch.randn(p.shape) * 1e-2).to(device) for n, p in point.selected.items()} for _ in range(count)]
    x = torch.randn(batch, side, side, 3).to(device).permute(0, 3, 1, 2)  # in the order that we decode images to
    orders = dict(zip(ORDERS, (x, x.contiguous()), strict=True))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    fused, fused_parameters, fused_us = _fused(model, parameters, us)
    held: dict[str, Tensor] = {}

    def ours() -> None:
        for _ in range(PASSES):
            held["ours"] = torch.stack(point.outputs(x, us)[1])
        wait()

    def torchs(which: str, net: nn.Module, own: Direction, along: list[Direction]) -> tuple[Callable[[], None], str]:
        stacked = {n: torch.stack([u[n] for u in along]) for n in along[0]}
        kinds = ("jvp", "vmap of jvp", "forward_ad") if count > 1 else ("jvp", "forward_ad")
        ways = [(order, kind) for order in ORDERS for kind in kinds]

        def run(way: int) -> None:
            order, kind = ways[way]
            f = lambda p: functional_call(net, p, (orders[order],))  # noqa: E731
            for _ in range(PASSES):
                if kind == "vmap of jvp":
                    held[which] = vmap(lambda u: jvp(f, (own,), (u,))[1])(stacked)
                else:
                    one = forward_mode if kind == "forward_ad" else lambda f, p, u: jvp(f, (p,), (u,))[1]
                    held[which] = torch.stack([one(f, own, u) for u in along])
            wait()

        fastest = best(
            list(range(len(ways))), lambda way: min(seconds(lambda: run(way)) for _ in range(2))
        )  # the first warms up
        return lambda: run(fastest), f"{ways[fastest][1]}, {ways[fastest][0]}"

    plain, plain_how = torchs("plain", model, parameters, us)
    folded, folded_how = torchs("fused", fused, fused_parameters, fused_us)
    a, b, c = alternate([plain, folded, ours], rounds)
    along = f"{count} direction{'s' if count > 1 else ''}"
    return [
        Compared(
            f"torch's forward mode{', fx-fused' if which == 'fused' else ''} / ours, {name}, {along}",
            Ratio(times, c),
            float(torch.corrcoef(torch.stack([held[which].flatten(), held["ours"].flatten()]))[0, 1]),
            f"one thread, {side}x{side}, batch {batch}; torch: {how}",
        )
        for which, times, how in (("plain", a, plain_how), ("fused", b, folded_how))
    ]


def forward_mode(f: Callable[[Direction], Tensor], own: Direction, u: Direction) -> Tensor:
    """The tangent of ``f`` along a direction, by dual tensors of autograd."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f({n: forward_ad.make_dual(own[n], u[n]) for n in own})).tangent


def _model(name: str, side: int) -> nn.Module:
    """Random weights; normalisation has statistics of its own."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **({"img_size": side} if name.startswith("vit") else {}))
    for _ in range(3):
        model.train()(torch.randn(64, 3, side, side))
    return model.eval().requires_grad_(False)


def _fused(
    model: nn.Module, parameters: Direction, us: list[Direction]
) -> tuple[nn.Module, Direction, list[Direction]]:
    """The model with its BatchNorms in the convolutions before them, its parameters, and the directions in them."""
    modules, pairs = dict(model.named_modules()), []
    for node in symbolic_trace(model).graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            pairs.append((node.args[0].target, node.target))

    def folded(whole: Direction) -> Direction:
        own = dict(whole)
        for conv, norm in pairs:
            m = modules[norm]
            assert isinstance(m, nn.BatchNorm2d)
            scale = own.pop(f"{norm}.weight") * torch.rsqrt(m.running_var + m.eps)
            own[f"{conv}.weight"] = own[f"{conv}.weight"] * scale[:, None, None, None]
            bias = own.get(f"{conv}.bias", torch.zeros_like(scale))
            own[f"{conv}.bias"] = (bias - m.running_mean) * scale + own.pop(f"{norm}.bias")
        return own

    net = fuse(copy.deepcopy(model)).eval().requires_grad_(False)
    own = {n: p.detach() for n, p in net.named_parameters()}
    along = [jvp(folded, (parameters,), (u,)) for u in us]
    expected = along[0][0]
    assert set(expected) == set(own)
    assert all(torch.allclose(own[n], expected[n], rtol=1e-4, atol=1e-6) for n in own)
    return net, own, [{n: tangents[n].contiguous() for n in own} for _, tangents in along]
