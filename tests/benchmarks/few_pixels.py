"""What it saves to run convolutions on maps of a few pixels as products (results/curvature.md).

    python tests/benchmarks/few_pixels.py [--model resnet18] [--pixels 32] [--rows 256] [--rounds 5]

Seconds of the processor by turns, with and without (``influence_cli.maths.few_pixels``), one thread: a forward pass of
so many rows, the gradient of their loss in all parameters after it, and a product with the Gauss-Newton matrix along
two directions, which is what an iteration of `cg` consists of.  Weights and pixels are drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from alternating import Ratio, Run, alternate
from torch import Tensor

from influence_cli.curvature.linearised import Linearised
from influence_cli.engines.point import Point


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    import timm

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(asked.model, num_classes=10).eval()
    x, y = torch.randn(asked.rows, 3, asked.pixels, asked.pixels), torch.randint(0, 10, (asked.rows,))
    weights = torch.ones(asked.rows)

    def point(products: bool) -> Point:
        made = Point(model, "all", None, "fp32", torch.device("cpu"))
        if not products:
            made._convolved = contextlib.nullcontext
        return made

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            started = time.process_time()
            work()
            return time.process_time() - started

        return run

    def forward(at: Point) -> Tensor:
        with torch.no_grad():
            return at.logits(x)

    def gradient(at: Point) -> list[Tensor]:
        own = at.leaves()
        return list(torch.autograd.grad(F.cross_entropy(at.logits(x, own), y), list(own.values())))

    directions = [{n: torch.randn_like(p) for n, p in point(True).selected.items()} for _ in range(2)]

    def product(at: Linearised) -> list[dict[str, Tensor]]:
        return list(at.ggn(x, y, weights, directions)[1])

    print(f"{asked.model}, {asked.rows} rows of {asked.pixels} x {asked.pixels}: seconds as products, and by kernels")
    cases: tuple[tuple[str, Callable[[Any], object], Callable[[bool], Any]], ...] = (
        ("forward pass", forward, point),
        ("and gradient", gradient, point),
        ("product along two directions", product, lambda products: Linearised(point(products))),
    )
    for name, work, made in cases:
        ways: list[Run] = [timed(partial(work, made(products))) for products in (True, False)]
        found = alternate(ways, asked.rounds)
        ratio, least = Ratio(found[1], found[0]), [min(times) for times in found]
        spread = f"{min(ratio.every):.3g} to {max(ratio.every):.3g}"
        print(f"{name}: {least[0]:.3g}, {least[1]:.3g}; by kernels {ratio.median:.3g} times ({spread})", flush=True)


if __name__ == "__main__":
    main()
