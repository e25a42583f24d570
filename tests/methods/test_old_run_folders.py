"""Run folders without records: every method that needs one says which flag of `retrain` is missing, before any work.

python -m pytest tests/methods/test_old_run_folders.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from influence_cli.methods import METHODS
from tests.cases import call_cli, examples, feature_table, write

KEPT, BY_ADAM = ["--keep-checkpoints 5"], ["--keep-checkpoints 6 --record moments"]
EPOCHS, FOLDS = ["--record epochs"], ["--folds 5"]
RATE = "at which rate sgd had trained it"
NEEDS: dict[str, list[str]] = {  # what is asked for: the flags that are named
    "tracin": KEPT,
    "tracin --set tracin.weights=uniform": KEPT,
    "self-tracin --set self-tracin.checkpoints=kept": KEPT,
    "trak --set trak.checkpoints=kept": KEPT,
    "source": ["--keep-checkpoints 6"],
    **dict.fromkeys(("aum", "el2n", "forget", "data-maps"), EPOCHS),
    **dict.fromkeys(("oof-loss", "oof-margin", "confident"), FOLDS),
}
OLDEST = ("model", "recipe", "seed", "init", "pretrained", "schema_version")  # what the first versions kept


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders without records: ``now``, ``adamw``, and ``old``, as the first versions left it."""
    home = tmp_path_factory.mktemp("old")
    write(feature_table(examples(60, 60)), home / "m.parquet")
    for name, *flags in (("now",), ("adamw", "--optimizer", "adamw")):
        asked = ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "2", "--record", "none", *flags, "-o", name)
        ran = call_cli(*asked, cwd=home)
        assert ran.code == 0, ran.err
    (home / "old").mkdir()
    shutil.copy(home / "now" / "model.safetensors", home / "old")
    record = json.loads((home / "now" / "run.json").read_bytes())
    (home / "old" / "run.json").write_text(json.dumps({name: record[name] for name in OLDEST}))
    return home


def refused(home: Path, run: str, asked: str) -> str:
    """What is said, on one line, of a score that must be refused, with nothing written."""
    before = sorted(home.rglob("*"))
    words = (
        "score",
        "m.parquet",
        "--checkpoint",
        run,
        "--method",
        *asked.split(),
        "--store",
        "store",
        "-o",
        "s.parquet",
    )
    ran = call_cli(*words, cwd=home)
    assert ran.code == 2, (asked, ran.err)
    assert sorted(home.rglob("*")) == before
    return " ".join(ran.err.split())


@pytest.mark.parametrize("run", ["now", "old"])
@pytest.mark.parametrize("asked", NEEDS)
def test_the_missing_flag_is_named(home: Path, run: str, asked: str) -> None:
    said = refused(home, run, asked)
    assert f"{asked.split()[0]} " in said
    assert run in said
    assert "influence retrain MANIFEST" in said
    for flag in NEEDS[asked]:
        assert f"{flag} -o RUN" in said
    assert "--record moments" not in said


def test_source_after_adamw_names_all_that_is_to_be_kept_at_once(home: Path) -> None:
    assert f"{BY_ADAM[0]} -o RUN" in refused(home, "adamw", "source")


@pytest.mark.parametrize("method", ["gex", "gex-ip"])
def test_members_trained_further_name_the_rate_that_no_sgd_left(home: Path, method: str) -> None:
    said = refused(home, "adamw", method)
    assert RATE in said
    assert f"--set {method}.rate=" in said


def test_every_other_method_scores_with_the_oldest_run_folder(home: Path, tmp_path: Path) -> None:
    """So that none is refused that is not in the table above, and none is scored from records that are not there."""
    further = {"gex": ("gex.members=2", "gex.epochs=1"), "gex-ip": ("gex-ip.members=2", "gex-ip.epochs=1")}
    further |= {"lissa": ("lissa.depth=20",), "arnoldi": ("arnoldi.k=10",)}
    options = {**further, "bif": ("bif.chains=2", "bif.draws=20", "bif.burn_in=5")}
    for name in sorted(set(METHODS) - {asked for asked in NEEDS if " " not in asked}):
        more = [word for option in options.get(name, ()) for word in ("--set", option)]
        asked = ("score", "m.parquet", "--checkpoint", "old", "--method", name, *more, "--store", tmp_path / "store")
        ran = call_cli(*asked, "-o", tmp_path / f"{name}.parquet", cwd=home)
        assert ran.code == 0, (name, ran.err)
