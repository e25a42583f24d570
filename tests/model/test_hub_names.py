"""Models of the hub by name: downloaded by leave alone, one commit, which the run folder keeps; refused otherwise.

The hub is a function in its place that copies a folder, as there may be no network.

    python -m pytest tests/model/test_hub_names.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from influence_cli.model.hf_folder import hub_name
from tests.cases import call_cli, write
from tests.texts import saved, sentences

huggingface_hub: Any = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAIN = ["retrain", "m.parquet", "--epochs", "1", "-o"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    write(sentences(30, 10, 10), folder / "m.parquet")
    saved(folder / "theirs")
    (folder / "theirs" / "README.md").write_text("not wanted")
    return folder


@pytest.fixture
def hub(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the hub is asked for, each answered by a snapshot in a cache."""
    asked = []

    def snapshot(repository: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        asked.append({"repository": repository, "revision": revision})
        into = tmp_path / "cache" / "snapshots" / COMMIT
        into.mkdir(parents=True, exist_ok=True)
        for file in (film / "theirs").iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, into)
        return str(into)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return asked


def test_a_name_is_downloaded_said_and_pinned(film: Path, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    run = tmp_path / "RUN"
    ran = call_cli(*TRAIN, run, "--model", "hf:someone/small", "--pretrained", cwd=film)
    assert ran.code == 0, ran.err
    assert hub == [{"repository": "someone/small", "revision": None}]
    assert "getting someone/small, revision main, from https://huggingface.co" in ran.err
    assert f"someone/small is revision {COMMIT}" in ran.err
    record = json.loads((run / "run.json").read_text())
    assert record["asked"]["hub"] == f"someone/small@{COMMIT}"
    assert record["init"].endswith(COMMIT)
    assert not (tmp_path / "cache" / "snapshots" / COMMIT / "README.md").exists()
    weights = (run / "model.safetensors").read_bytes()
    there = tmp_path / "cache" / "snapshots" / COMMIT  # the folder alone gives the same training
    assert call_cli(*TRAIN, tmp_path / "SAME", "--model", f"hf:{there}", cwd=film).code == 0
    assert (tmp_path / "SAME" / "model.safetensors").read_bytes() == weights
    again = call_cli(*TRAIN, run, "--model", f"hf:someone/small@{COMMIT}", "--pretrained", "-v", cwd=film)
    assert again.code == 0, again.err
    assert hub[-1]["revision"] == COMMIT
    assert "already trained" in again.err


def test_without_leave_nothing_is_asked_and_a_folder_wins(
    film: Path, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    ran = call_cli(*TRAIN, tmp_path / "RUN", "--model", "hf:someone/small", cwd=film)
    assert ran.code == 2
    assert "downloaded only where --pretrained says so" in ran.err
    assert "hf download someone/small --local-dir FOLDER" in ran.err
    ran = call_cli(*TRAIN, tmp_path / "RUN", "--model", "hf:theirs", "--pretrained", cwd=film)
    assert ran.code == 2
    assert "training begins with the folder's weights" in ran.err
    ran = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", "hf:someone/small@v1", "-o", "s.parquet", cwd=film
    )
    assert ran.code == 2
    assert "hf download someone/small --revision v1 --local-dir FOLDER" in ran.err
    ran = call_cli(*TRAIN[:1], "gone.parquet", *TRAIN[2:], tmp_path / "RUN", "--model", "hf:someone/small",
                   "--pretrained", cwd=film)  # fmt: skip
    assert ran.code == 2  # of the rows, before anything is downloaded
    assert hub == []


@pytest.mark.parametrize(
    ("error", "offline", "said"),
    [
        (ConnectionError("Name or service not known"), False, "see that there is a network and such a name"),
        (huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"), True, "unset HF_HUB_OFFLINE"),
        (ValueError("a gated repository"), False, "ValueError: a gated repository"),
    ],
)
def test_what_cannot_be_had_is_for_the_user_to_mend(
    error: Exception, offline: bool, said: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    ran = call_cli(*TRAIN, tmp_path / "RUN", "--model", "hf:someone/small", "--pretrained", cwd=film)
    assert ran.code == 2, ran.err
    assert "error: hf:someone/small cannot be had from the hub" in ran.err
    assert said in ran.err
    assert "hf download someone/small --local-dir FOLDER" in ran.err
    assert not (tmp_path / "RUN").exists()


def test_names_that_may_be_on_the_hub(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film)
    assert hub_name("hf:gpt2") == "gpt2"
    assert hub_name("hf:org/name@refs/pr/1") == "org/name@refs/pr/1"
    for other in ("hf:theirs", "hf:/nowhere/model", "hf:a/b/c", "org/name", "resnet18", None, "hf:~/x"):
        assert hub_name(other) is None
