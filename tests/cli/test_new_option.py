"""One option, one field: what is added to a request is found as flag, key, variable, setting and provenance."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.cli.settings import requests
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.options import CURATE, RUNS, build_request, check_choices, in_order, option, options_in, values_kept
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.curate.request import GateRequest
from tests.cases import call_cli

HELP = "How often a row is looked at."


AddField = Callable[[type, Any], type]


@pytest.fixture
def add_field(monkeypatch: pytest.MonkeyPatch) -> Iterator[AddField]:
    """Gives a request one more field, a number, wherever the package names the request."""
    renamed: list[tuple[type, type]] = []

    def everywhere(old: type, new: type) -> None:
        for module in [m for n, m in sys.modules.items() if n.startswith("influence_cli")]:
            if getattr(module, old.__name__, None) is old:
                setattr(module, old.__name__, new)

    def add(request: type, field: Any) -> type:
        fields = [("extra_looks", int, field)]
        more = dataclasses.make_dataclass(request.__name__, fields, bases=(request,), frozen=True)
        renamed.append((request, more))
        everywhere(request, more)
        monkeypatch.setattr(requests, "REQUESTS", tuple(more if r is request else r for r in requests.REQUESTS))
        return more

    yield add
    for request, more in renamed:
        everywhere(more, request)  # also where a module was imported meanwhile


def setting(name: str, *arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> list[str]:
    """The line of ``--show-settings`` about a setting: its value and where it is from."""
    ran = call_cli(*arguments, "--show-settings", cwd=cwd, env=env)
    assert ran.code == 0, ran.err
    return next(line.split()[1:] for line in ran.text.splitlines() if line.split()[0] == name)


@pytest.mark.parametrize(
    ("request_kind", "part"), [(GradSpec, "spec"), (Inputs, "model_flags"), (Runtime, None)], ids=lambda p: str(p)
)
def test_a_field_of_a_request_is_an_option_from_its_flag_to_the_written_table(
    request_kind: type, part: str | None, tmp_path: Path, digits: Path, add_field: AddField
) -> None:
    asked = ("score", digits, "--method", "random")
    kind = add_field(request_kind, option(3, HELP, RUNS, least=1))
    said = " ".join(call_cli("score", "--method", "ip", "--help", cwd=tmp_path).text.split())
    assert f"--extra-looks N {HELP} [default: 3]" in said
    assert "--extra-looks" not in call_cli("curate", "--help", cwd=tmp_path).text

    assert setting("extra-looks", *asked, cwd=tmp_path) == ["3", "default"]
    (tmp_path / "influence.toml").write_text("extra-looks = 5\n")
    assert setting("extra-looks", *asked, cwd=tmp_path) == ["5", str(tmp_path / "influence.toml")]
    env = {"INFLUENCE_EXTRA_LOOKS": "6"}
    assert setting("extra-looks", *asked, cwd=tmp_path, env=env) == ["6", "environment"]
    assert setting("extra-looks", *asked, "--extra-looks", 7, cwd=tmp_path, env=env) == ["7", "flag"]
    refused = call_cli(*asked, "--extra-looks", 0, cwd=tmp_path)
    assert (refused.code, "--extra-looks 0 is out of range" in refused.err) == (2, True)

    ran = call_cli(*asked, "--extra-looks", 7, "-o", "scores.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    (tmp_path / "influence.toml").unlink()
    origin = provenance(pq.read_schema(tmp_path / "scores.parquet"))
    if part is None:
        assert "extra_looks" not in str(origin)
        return
    assert origin[part]["extra_looks"] == 7
    assert values_kept(kind, origin)["extra_looks"] == 7
    carried = setting("extra-looks", "score", "scores.parquet", "--method", "random", cwd=tmp_path)
    assert carried == ["7", "provenance"]
    table = influence_cli.score(digits, method="random", store=None, extra_looks=8)  # type: ignore[call-arg]
    assert provenance(table.schema)[part]["extra_looks"] == 8


def test_a_field_of_a_stage_reaches_the_stage(
    tmp_path: Path, digits: Path, add_field: AddField, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_field(GateRequest, option(3, HELP, (CURATE,)))
    seen: list[Any] = []

    def check(_: Any, request: Any) -> None:
        seen.append(request)
        raise UsageError("far enough")

    monkeypatch.setattr("influence_cli.stages.curate.gate.check", check)
    assert call_cli("score", digits, "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    call_cli("curate", "s.parquet", "--check", "--extra-looks", 4, "--max-flagged", "3%", cwd=tmp_path)
    assert (seen[0].extra_looks, seen[0].max_flagged, seen[0].false_flag) == (4, "3%", "1%")


# ---- how requests are made ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Request:
    """A request of every kind of field."""

    names: tuple[str, ...] = option(("a",), "Names.", RUNS, name="name")
    size: int | None = option(None, "Size.", RUNS, after="shape")
    shape: str = option("round", "Shape.", RUNS, choices=("round", "square"), after="name")
    share: float = option(0.5, "Share.", RUNS, text="50%", read=lambda text, _: float(text[:-1]) / 100)
    inner: Any = None


def test_values_take_their_fields_by_the_names_of_options() -> None:
    assert build_request(Request, {}) == Request()
    made = build_request(Request, {"name": ["b", "c"], "size": 0, "share": "20%", "names": "no option"}, inner=1)
    assert made == Request(("b", "c"), 0, "round", 0.2, 1)
    assert build_request(Request, {"size": None, "shape": "square", "inner": 2}, inner=None) == Request(shape="square")


def test_options_know_their_type_default_and_place() -> None:
    options = in_order((Request,))
    assert list(options) == ["name", "shape", "size", "share"]
    assert [o.kind for o in options.values()] == [list, str, int, str]
    assert [o.default for o in options.values()] == [["a"], "round", None, "50%"]
    assert [o.field for o in options_in(Request)] == ["names", "size", "shape", "share"]


def test_a_choice_that_there_is_not_is_refused_with_the_nearest() -> None:
    check_choices(Request())
    with pytest.raises(UsageError, match="--shape 'squar' is unknown") as refused:
        check_choices(Request(shape="squar"))
    assert "square" in (refused.value.fix or "")
