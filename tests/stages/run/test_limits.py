"""Limits on a plan: what is given up and in which order, that it is said, and that no row goes without a word.

python -m pytest tests/stages/run/test_limits.py
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.settings import GradSpec, Limits
from influence_cli.stages.retrain.opening import scored_arms
from influence_cli.stages.retrain.request import EditsRequest
from influence_cli.stages.run import within_limits as limiting
from influence_cli.stages.run.within_limits import GIB, within_limits
from influence_cli.stages.score.score import score
from tests.beside import together
from tests.cases import Heard, call_cli, column, job_of
from tests.processes.test_processes import apart


def planned(tmp_path: Path, digits: Path, digits_run: Path) -> int:
    """Bytes that scores of all rows by ip add to a new store."""
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "ip", "-n", "--json", "--store", tmp_path / "new")
    ran = call_cli(*asked, cwd=tmp_path)
    return json.loads(ran.text)["bytes"]


def test_rows_that_do_not_fit_are_left_for_later_and_the_same_command_goes_on(
    digits: Path, digits_run: Path, scored: Path, tmp_path: Path
) -> None:
    most = planned(tmp_path, digits, digits_run) * 0.6 / GIB
    asked = (
        "score",
        digits,
        "--checkpoint",
        digits_run,
        "--method",
        "ip",
        "--store",
        "s",
        "--max-disk",
        f"{most:.12f}",
    )
    first = call_cli(*asked, "-o", "first.parquet", cwd=tmp_path)
    assert first.code == 0, first.err
    assert re.search(r"given up for --max-disk .*: \d+ of 200 train rows are taken", first.err)
    some, every = pq.read_table(tmp_path / "first.parquet"), pq.read_table(scored)
    assert some.column("id").equals(every.column("id"))
    values, whole = (t.column("score").to_numpy() for t in (some, every))
    taken = np.isfinite(values)
    assert 20 < taken.sum() < 200
    assert np.allclose(values[taken], whole[taken], rtol=0, atol=1e-6 * np.abs(whole).max())
    told = provenance(some.schema)
    assert told["given_up"] == [{"what": "rows", "asked": 200, "taken": int(taken.sum())}]
    assert told["limits"] == {"max_minutes": None, "max_disk": float(f"{most:.12f}")}

    edits = call_cli(
        "curate", "first.parquet", "--budget", "5", "--edits", "e.parquet", "-o", "c.parquet", cwd=tmp_path
    )
    assert edits.code == 0, edits.err
    assert (
        pq.read_table(tmp_path / "c.parquet").num_rows == pq.read_table(digits).num_rows - 5
    )  # no unscored row is lost
    assert f"{200 - taken.sum():,} of 200 train rows have no score (limits left them" in " ".join(edits.err.split())
    judged = call_cli("evaluate", "first.parquet", "--budget", "5", cwd=tmp_path)
    assert f"{taken.sum():,} of 200 rows of known truth have a score" in " ".join(judged.err.split())
    heard = Heard()
    scored_arms(EditsRequest(str(tmp_path / "first.parquet")), open_manifest(digits).rows("train"), 0, heard)
    assert [w for w in heard.warnings if "have no score (limits left them for later" in w] == heard.warnings != []

    words = shlex.split(first.err.splitlines()[-1].removeprefix("next: influence "))
    assert words[:4] == ["score", str(digits), "-o", "first.parquet"]  # not curate: the same command takes more rows
    again = call_cli(*words, cwd=tmp_path)
    assert "given up" not in again.err
    assert np.isfinite(column(pq.read_table(tmp_path / "first.parquet"))).all()
    assert again.err.splitlines()[-1].startswith("next: influence curate first.parquet ")


def test_grads_says_what_it_left_and_score_of_its_table_goes_on(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    most = planned(tmp_path, digits, digits_run) * 0.6 / GIB
    asked = ("--checkpoint", digits_run, "--method", "ip", "--store", "s", "--max-disk", f"{most:.12f}")
    made = call_cli("grads", digits, *asked, "-o", "g.parquet", cwd=tmp_path)
    assert (made.code, "given up" in made.err) == (0, True)
    table = pq.read_table(tmp_path / "g.parquet")
    assert (table.num_rows, table.column("payload_key").null_count) == (200, 0)
    assert table.column("loss").null_count > 0
    ran = call_cli("score", "g.parquet", "--store", "s", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert provenance(pq.read_schema(tmp_path / "s.parquet"))["limits"]["max_disk"] == pytest.approx(most)


def test_where_nothing_fits_the_least_that_would_do_is_named(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "ip", "--store", "s")
    ran = call_cli(*asked, "--max-disk", 1e-9, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    least = re.search(r"fix: the least that would do: --max-disk (\S+)", ran.err)
    assert least is not None, ran.err
    assert not (tmp_path / "s.parquet").exists()
    assert call_cli(*asked, "--max-disk", least[1], "-o", "s.parquet", cwd=tmp_path).code == 0


def priced(monkeypatch: pytest.MonkeyPatch, prices: dict[tuple[str, str], float]) -> None:
    """Plans whose seconds are a price a train row, by precision and parameters."""

    def plan(run: Any, _: Any, tried: Any = None) -> tuple[Any, dict[str, Any]]:
        return run, {"seconds": len(run.train) * prices[run.spec.precision, run.spec.params], "bytes": 0}

    monkeypatch.setattr(limiting, "whole_plan", plan)


PRICES = {("fp32", "all"): 12.0, ("bf16", "all"): 6.0, ("fp32", "last"): 3.0, ("bf16", "last"): 1.5}


@pytest.mark.parametrize(
    ("minutes", "insisted", "precision", "params", "rows"),
    [
        (40, (), "fp32", "all", 200),
        (20, (), "bf16", "all", 200),
        (10, (), "fp32", "last", 200),
        (5, (), "bf16", "last", 200),
        (2.5, (), "bf16", "last", 100),
        (10, ("params",), "bf16", "all", 100),
        (10, ("params", "precision"), "fp32", "all", 50),
    ],
)
def test_precision_goes_first_then_parameters_then_rows_and_nothing_that_is_insisted_on(
    minutes: float, insisted: tuple[str, ...], precision: str, params: str, rows: int,
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    priced(monkeypatch, PRICES)
    case = job_of(digits, digits_run, tmp_path / "store")
    heard = case.session.listener = Heard()
    run = within_limits(case.run, case.session, Limits(max_minutes=minutes), frozenset(insisted))
    assert (run.spec.precision, run.spec.params, len(run.train)) == (precision, params, rows)
    now = {"precision": ("fp32", precision), "params": ("all", params), "rows": (200, rows)}
    expected = [{"what": k, "asked": was, "taken": taken} for k, (was, taken) in now.items() if was != taken]
    assert list(run.given_up) == expected
    assert len(heard.warnings) == len(expected)


def test_what_is_no_cheaper_is_not_taken(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced(monkeypatch, {**PRICES, ("bf16", "all"): 20.0, ("bf16", "last"): 20.0})
    case = job_of(digits, digits_run, tmp_path / "store")
    run = within_limits(case.run, case.session, Limits(max_minutes=10))
    assert (run.spec.precision, run.spec.params) == ("fp32", "last")


def test_unknown_seconds_are_refused(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiting, "whole_plan", lambda run, *_: (run, {"seconds": None, "bytes": 0}))
    case = job_of(digits, digits_run, tmp_path / "store")
    with pytest.raises(UsageError, match="nothing says how long"):
        within_limits(case.run, case.session, Limits(max_minutes=1))


def test_processes_take_the_rows_that_the_first_one_has_left(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced(monkeypatch, PRICES)

    def scores(store: str, group: Any) -> Any:
        case = job_of(digits, digits_run, tmp_path / store)
        case.session.group = group
        insisted = frozenset({"params", "precision"})
        run = within_limits(case.run, case.session, Limits(max_minutes=20), insisted)
        return score(run, case.session)[0]

    alone = scores("alone", None)
    shared, _ = together(2, lambda group: scores("shared", group))
    assert 0 < alone.column("score").null_count < 200
    there = alone.column("score").is_valid()
    assert there.equals(shared.column("score").is_valid())
    assert apart(alone.filter(there), shared.filter(there)) <= 1e-6


def test_from_python(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    most = planned(tmp_path, digits, digits_run) * 0.6 / GIB
    with pytest.warns(influence_cli.errors.InfluenceWarning, match="given up for max_disk"):
        table = influence_cli.score(
            digits, checkpoint=str(digits_run), method="ip", store=str(tmp_path / "s"), max_disk=most
        )
    assert 0 < table.column("score").null_count < 200
    assert GradSpec().precision == provenance(table.schema)["spec"]["precision"]


@pytest.mark.parametrize(
    ("flag", "text", "form"),
    [
        ("--max-minutes", "1h", "a number of MINUTES without a unit, as in --max-minutes 1.5"),
        ("--max-disk", "2GB", "a number of GIB without a unit, as in --max-disk 1.5"),
        ("--seed", "x", "a whole number without a unit, as in --seed 20"),
    ],
)
def test_a_number_that_cannot_be_read_is_told_its_form(flag: str, text: str, form: str, tmp_path: Path) -> None:
    ran = call_cli("score", "m.parquet", flag, text, cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == f"fix: {flag} takes {form}"


def test_the_least_that_would_do_is_enough_rows_for_every_method(
    digits: Path, digits_run: Path, tmp_path: Path
) -> None:
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "auto", "--store", "s", "-o", "s.parquet")
    ran = call_cli(*asked, "--max-disk", "0.000000001", cwd=tmp_path)
    least = re.search(r"even (\d+) train rows .*\n.*--max-disk (\S+)", ran.err)
    assert (ran.code, least is not None) == (2, True), ran.err
    assert least is not None
    assert int(least[1]) >= 10  # two to a fold
    then = call_cli(*asked, "--max-disk", least[2], cwd=tmp_path)
    assert then.code == 0, then.err
    assert f"{least[1]} of 200 train rows are done" in then.err
