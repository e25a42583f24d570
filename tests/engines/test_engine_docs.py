"""The READMEs of the engines against the code: their rules, what they cannot follow, and what is said then.

python -m pytest tests/engines/test_engine_docs.py
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from influence_cli.engines.dual.dual import RULES
from influence_cli.engines.layerwise.rules import RULES as LAYER_RULES
from influence_cli.engines.layerwise.rules import rule_of
from influence_cli.engines.point import Point
from influence_cli.model.next_token import NextTokenLoss
from tests.generate_docs import ENGINES, PACKAGE, PART, ROOT, generated, named

DUAL, LAYERWISE = ENGINES


@pytest.mark.parametrize("readme", ENGINES, ids=lambda p: p.parent.name)
def test_rules_are_those_of_the_code(readme: Path) -> None:
    text = readme.read_text()
    assert len(PART.findall(text)) == 1
    assert text == generated(text), "run python -m tests.generate_docs"


def test_every_rule_in_the_files_is_registered_and_listed() -> None:
    """A rule that is not imported would leave its operation to torch's forward mode: right, and slow."""
    written = [
        ast.unparse(operation)
        for path in DUAL.parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "rule"
        for operation in decorator.args
    ]
    assert sorted(written) == sorted(map(str, RULES))
    assert len(written) > 20
    table = DUAL.read_text()
    assert all(named(operation) in table for operation in RULES)


@pytest.mark.parametrize("kind", LAYER_RULES, ids=lambda k: k.__name__)
def test_modules_in_the_table_have_a_rule_until_their_forward_is_another(kind: type[nn.Module]) -> None:
    sizes = {nn.Conv2d: (4, 4, 1), nn.LayerNorm: (4,), nn.BatchNorm1d: (4,), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (4,)}
    sizes[NextTokenLoss] = (nn.Parameter(torch.zeros(4, 4)),)
    module = kind(*sizes.get(kind, (4, 4)))
    assert type(rule_of(module)) is LAYER_RULES[kind]
    own = "nn." if kind.__module__.startswith("torch.") else ""
    assert f"`{own}{kind.__name__}`" in LAYERWISE.read_text()
    other = type("Other", (kind,), {"forward": lambda self, x: x})
    assert rule_of(other(*sizes.get(kind, (4, 4)))) is None


def test_modules_that_readme_names_have_none() -> None:
    for module in (
        weight_norm(nn.Linear(4, 4)),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.Embedding(4, 4, scale_grad_by_freq=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.PReLU(),
    ):
        assert rule_of(module) is None


class Odd(nn.Module):
    """A linear layer, and then something that README says duals cannot follow, or can."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(4, 3), what

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.what == "view":
            view = y[:, :2]
            y.mul_(2.0)
            return torch.cat([view, y], 1)
        if self.what == "buffer":
            return torch.zeros(len(x), 3, dtype=x.dtype).copy_(y)
        if self.what == "item":
            return y * y.sum().item()
        if self.what == "branch":
            return y if y[0, 0] else 2 * y
        if self.what == "comparison":
            return y * y if y.sum() > 0 else y
        return y * y.detach()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("view", "writes into memory that another tensor looks at"),
        ("buffer", "writes a number with a derivative into a tensor without"),
        ("item", "reads a number that has a derivative"),
        ("branch", "reads a number that has a derivative"),
        ("comparison", None),
        ("detach", None),
    ],
)
def test_what_cannot_be_followed_is_run_by_torch_and_said(what: str, said: str | None) -> None:
    torch.manual_seed(0)
    point = Point(Odd(what).eval(), "all", None, "fp64", torch.device("cpu"))
    x = torch.randn(5, 4, dtype=torch.float64)
    u = {n: torch.randn_like(p) for n, p in point.selected.items()}
    z, (t,) = point.outputs(x, [u])
    expected_z, (expected_t,) = point.one_by_one(x, [u])
    assert torch.equal(z, expected_z)
    assert float((t - expected_t).abs().max()) <= 1e-14 * float(expected_t.abs().max())
    if said is None:
        assert point.how() == "forward engine: one pass for all directions"
        return
    assert f"`{said}` |" in DUAL.read_text()
    assert point.how().startswith("forward engine: a pass for each direction (NotShared: aten.")
    assert point.how().endswith(f" {said})")


def test_the_readmes_are_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "influence_cli"
    ]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert set(ENGINES) <= shipped
