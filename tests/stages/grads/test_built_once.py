"""A run that counts parameters before it loads the model builds that once.

python -m pytest tests/stages/grads/test_built_once.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from influence_cli.model import build
from tests.cases import call_cli


@pytest.mark.parametrize("method", ["ip", "ekfac", "gex"])
def test_a_cold_run_builds_the_model_once(
    method: str, digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, make = list[str](), build._build

    def counted(spec: Any, pretrained: bool) -> Any:
        built.append(spec.name)
        return make(spec, pretrained)

    monkeypatch.setattr(build, "_build", counted)
    options = ("--set", "gex.members=2", "--set", "gex.epochs=0.2") if method == "gex" else ()
    asked = ("score", digits, "--checkpoint", digits_run, "--method", method, *options, "--params", "last")
    first = call_cli(*asked, "--store", "s", "-o", "a.parquet", cwd=tmp_path)
    assert first.code == 0, first.err
    assert built == ["mlp:16"]
