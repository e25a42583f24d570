"""The example of a new method in the guide: one file and one row of the table, and every part of the tool knows it.

python -m pytest tests/methods/test_new_method.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from influence_cli.cli.commands.guide import text_of
from influence_cli.data.tables import provenance
from influence_cli.methods import METHODS, MethodInfo
from tests.cases import Heard
from tests.methods.test_exact import PENALTY, Logistic
from tests.opened import describe_plan, missing_work, score
from tests.oracle import column, relative_error

ROW = MethodInfo(
    "scaled-ip", "tests.methods.example_method:ScaledIP", "ip over the mean eigenvalue", "-", "V + fit rows + T"
)
GUIDE = text_of("contributing")


def test_a_new_method_is_one_file_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, ROW.name, ROW)
    p, heard = Logistic(tmp_path), Heard()
    job = p.problem.job(methods=(ROW.name, "ip"), options={ROW.name: {"l2": PENALTY, "damping": 0.1}})
    job.listener = heard
    (step,) = describe_plan(job, missing_work(job))["steps"]
    assert [(fit["method"], fit["rows"]) for fit in step["fits"]] == [(ROW.name, 200)]
    table = score(job)
    mean = np.trace(p.train.hessian(p.theta, np.ones(200)) / 200) / 12 + PENALTY + 0.1
    ip = column(table, "score_ip_utility")
    assert relative_error(column(table), ip / mean) < 1e-12
    assert relative_error(column(table, "effect"), ip / mean / 200) < 1e-12
    assert provenance(table.schema)["curvature"][ROW.name]["mean_eigenvalue"] == pytest.approx(mean)
    assert any(note.startswith("scaled-ip: ") and "mode ggn" in note for note in heard.notes)


def test_the_example_in_the_guide_is_this_file() -> None:
    example = (Path(__file__).parent / "example_method.py").read_text()
    assert f"```python\n{example}```" in GUIDE
    assert repr(ROW.target)[1:-1] in GUIDE
