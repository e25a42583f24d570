"""The quick experiments to stated tolerances, parts that are kept, and the pages that were recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reproduction.__main__ import main
from tests.reproduction.commands import CommandFailed, Commands
from tests.reproduction.page import difference, mean, table
from tests.reproduction.parts import MODULES, Part, experiment, run_all
from tests.reproduction.sizes import FULL, QUICK

RESULTS = Path(__file__).parent / "results"


def test_the_quick_experiments_hold_and_write_their_pages(tmp_path: Path) -> None:
    """R1, R3 and a reduced R9 through the command; nothing is asserted of which method is better but for LDS."""
    asked = ["--quick", "--jobs", "1", "--work", str(tmp_path), "--results", str(tmp_path / "pages")]
    assert main(asked) == 0
    found = {name: [p.read(tmp_path) for p in experiment(name).parts(QUICK[name])] for name in QUICK}
    of = {name: [result["found"] for result in results if result is not None] for name, results in found.items()}
    assert {name: len(results) for name, results in of.items()} == {"R1": 2, "R3": 2, "R9": 1}

    assert np.mean([f["spearman"] for f in of["R1"]]) > 0.8
    assert all(f["mean_of_flips"][m] < 0 for f in of["R1"] for m in ("ip", "exact"))
    assert all(f["auc"][m] > 0.9 for f in of["R1"] for m in ("ip", "exact", "loss"))
    assert all(abs(f["auc"]["random"] - 0.5) < 0.35 for f in of["R1"])

    for objective in ("fairness", "robustness"):
        assert all(f[objective]["spearman"] > 0.6 for f in of["R3"])
        assert all(f[objective]["differences"] < 1e-6 for f in of["R3"])

    lds = {name: c["lds"] for name, c in of["R9"][0]["columns"].items()}
    assert lds["exact_utility"] > 0.9
    assert lds["exact_utility"] > lds["ip_utility"] > lds["random"]
    assert len(of["R9"][0]["measured"]) == 40

    for name in QUICK:
        text = (tmp_path / "pages" / f"{name}.md").read_text()
        assert f"| command | `python -m tests.reproduction {name} --quick` |" in text
        assert re.search(r"\| recorded \| commit \S+, \d{4}-\d\d-\d\d", text)
        assert "influence score m.parquet" in text
        assert (tmp_path / "pages" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def counted(run: Commands, start: int) -> dict[str, Any]:
    """Counts its calls in its folder, and fails at the first."""
    path = run.folder / "calls"
    calls = (int(path.read_text()) if path.exists() else start) + 1
    path.write_text(str(calls))
    if calls == start + 1:
        raise RuntimeError("stopped here")
    return {"calls": calls}


def test_a_part_that_stopped_goes_on_in_its_folder_and_one_that_ended_is_not_run_again(tmp_path: Path) -> None:
    part = Part("R1", "counted", counted, {"start": 10})
    assert run_all([part], tmp_path, 1) == ["R1, counted"]
    assert part.read(tmp_path) is None
    for _ in range(2):
        assert run_all([part], tmp_path, 1) == []
        assert (part.read(tmp_path) or {})["found"] == {"calls": 12}
    assert run_all([part], tmp_path, 1, again=True) == []
    assert (part.read(tmp_path) or {})["found"] == {"calls": 13}
    assert Part("R1", "counted", counted, {"start": 11}).read(tmp_path) is None


def test_a_command_that_fails_says_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"influence score absent\.parquet\nexit code 2"):
        Commands(tmp_path)("score", "absent.parquet")


def test_numbers_of_pages() -> None:
    assert mean([0.5, 0.7], 100) == "60.00 ± 127.06"  # t of one degree of freedom: 12.706 * 0.1
    assert difference([0.90, 0.92, 0.94], [0.80, 0.82, 0.84]).startswith("+10.00 ± 0.00 ")
    assert difference([1.0, 1.0, 1.0], [2.0, 2.5, 3.0], higher=False, scale=1) == "-1.50 ± 1.24 better"
    assert table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_every_experiment_has_a_size_and_parts_that_can_be_kept() -> None:
    assert list(FULL) == list(MODULES) == [f"R{k}" for k in range(1, 12)]
    assert set(QUICK) == {"R1", "R3", "R9"}
    for name, sizes in FULL.items():
        parts = experiment(name).parts(sizes)
        assert len({p.key for p in parts}) == len(parts) > 0
        assert all(json.loads(json.dumps(p.settings)) == p.settings for p in parts)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("R*.md")), ids=lambda p: p.stem)
def test_recorded_pages_are_of_the_command_that_they_name(path: Path) -> None:
    text = path.read_text()
    assert f"| command | `python -m tests.reproduction {path.stem}` |" in text
    assert text.startswith(f"# {path.stem}: {experiment(path.stem).TITLE}\n")
    assert (RESULTS / f"{path.stem}.png").exists()
    assert re.search(r"\| recorded \| commit [0-9a-f]{7}", text)
