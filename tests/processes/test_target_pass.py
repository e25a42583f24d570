"""Directions of every kind of objective by several processes: pairs, attacked rows, groups.

python -m pytest tests/processes/test_target_pass.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.data.tables import provenance
from influence_cli.engines import attacked, group_direction
from influence_cli.stages.grads import attacking
from tests.beside import apart, not_of_time, scores_of, together
from tests.cases import digits_table, with_column, write


def shards_below(store: Path, kind: str) -> list[str]:
    return sorted(path.name for path in (store / kind).rglob("*.safetensors"))


@pytest.mark.parametrize("how", [{"attack": "pgd"}, {"attack": "fgsm"}])
def test_rows_are_attacked_by_all_and_are_those_of_one(
    how: dict[str, Any], digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about: dict[str, Any] = {"objectives": ("robustness", "utility"), "options": {"robustness": how}}
    alone, heard = scores_of(digits, digits_run, tmp_path / "alone", None, ("ip",), **about)
    made, attack = list[int](), attacked.attack

    def counted(*args: Any, **more: Any) -> Any:
        made.append(len(args[4]))
        return attack(*args, **more)

    monkeypatch.setattr(attacked, "attack", counted)
    (shared, also), groups = together(
        3, lambda g: scores_of(digits, digits_run, tmp_path / "shared", g, ("ip",), **about)
    )
    assert apart(alone, shared) <= 1e-6
    assert not_of_time(also.notes) == not_of_time(heard.notes)
    assert sum(made) == 60  # every target row once, in all
    assert shards_below(tmp_path / "shared", "attacks") == shards_below(tmp_path / "alone", "attacks")
    parts = [provenance(t.schema)["noise"]["robustness"]["parts"] for t in (alone, shared)]
    assert parts[0] == parts[1]  # the digest of what was attacked, and the accuracy, among them
    assert groups[0].jobs >= 3  # rows attacked, directions, and the rows' tangents


def test_a_process_that_cannot_attack_its_rows_ends_the_run_with_its_error(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = attacking._make

    def failing(*args: Any) -> None:
        if args[-1] is not None and args[-1].rank == 1:
            raise OSError(28, "No space left on device", "attacks")
        make(*args)

    monkeypatch.setattr(attacking, "_make", failing)
    with pytest.raises(OSError, match="No space left"):
        together(2, lambda g: scores_of(digits, digits_run, tmp_path / "s", g, ("ip",), objectives=("robustness",)))


def test_rows_with_changed_twins_are_divided(tmp_path: Path) -> None:
    from tests.texts import saved, sentences

    table = sentences(60, 80, 10)
    twins = [f"very {t}" if k % 2 else None for k, t in enumerate(table.column("text").to_pylist())]
    film = write(table.append_column("twin", pa.array(twins)), tmp_path / "m.parquet")
    model = saved(tmp_path / "hf")
    options = {"flip-fairness": {"column": "twin"}}
    about: dict[str, Any] = {"objectives": ("flip-fairness", "utility"), "options": options}
    alone, heard = scores_of(film, model, tmp_path / "alone", None, ("ip",), **about)
    (shared, also), groups = together(2, lambda g: scores_of(film, model, tmp_path / "shared", g, ("ip",), **about))
    assert apart(alone, shared) <= 1e-6
    assert not_of_time(also.notes) == not_of_time(heard.notes)
    noise = [provenance(t.schema)["noise"]["flip-fairness"] for t in (alone, shared)]
    assert noise[0]["parts"] == noise[1]["parts"]
    assert noise[0]["snr"] == pytest.approx(noise[1]["snr"], rel=1e-5)
    assert groups[0].jobs >= 2


def test_attacked_texts_are_made_by_all(tmp_path: Path) -> None:
    from tests.texts import saved, sentences

    film = write(sentences(60, 80, 10), tmp_path / "m.parquet")
    model = saved(tmp_path / "hf")
    about: dict[str, Any] = {"objectives": ("robustness",), "params": "last"}
    alone, _ = scores_of(film, model, tmp_path / "alone", None, ("ip",), **about)
    (shared, _), groups = together(2, lambda g: scores_of(film, model, tmp_path / "shared", g, ("ip",), **about))
    assert apart(alone, shared) <= 1e-6
    assert shards_below(tmp_path / "shared", "attacks") == shards_below(tmp_path / "alone", "attacks")
    assert groups[0].jobs >= 3


def test_the_values_that_objectives_about_groups_begin_with_are_of_all_processes(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = digits_table()
    grouped = write(with_column(table, "group", [f"g{k % 3}" for k in range(len(table))]), tmp_path / "grouped.parquet")
    about = {"objectives": ("fairness",), "params": "last"}
    alone, _ = scores_of(grouped, digits_run, tmp_path / "alone", None, ("ip",), **about)
    own, values_of = list[int](), group_direction._values_of

    def counted(*args: Any) -> Any:
        found = values_of(*args)
        own.append(len(found[0]))
        return found

    monkeypatch.setattr(group_direction, "_values_of", counted)
    (shared, _), _ = together(3, lambda g: scores_of(grouped, digits_run, tmp_path / "shared", g, ("ip",), **about))
    assert apart(alone, shared) <= 1e-6
    assert sorted(own) == [16, 16, 28]  # of four batches of 16, 16, 16 and 12 rows one process has two
    parts = [provenance(t.schema)["noise"]["fairness"]["parts"] for t in (alone, shared)]
    for one, other in zip(parts[0]["terms"], parts[1]["terms"], strict=True):
        assert np.isclose(one["gap"], other["gap"], rtol=1e-6)
