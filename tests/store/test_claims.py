"""Claims: one process at a work, the others at the next one; a process that is killed holds nothing.

python -m pytest tests/store/test_claims.py
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from influence_cli.store import Store, claims
from influence_cli.store.claims import Claims
from influence_cli.store.layout import belongs
from influence_cli.store.maintenance import collect, examine

NAME = "0123456789abcdef" * 2


def made(folder: Path) -> Claims:
    return Claims(lambda name: folder / f"{name}.lock")


def test_a_claim_is_one_holders_and_leaves_nothing(tmp_path: Path) -> None:
    one, other = made(tmp_path), made(tmp_path)
    with one.attempt("a") as ours:
        assert ours
        with other.attempt("a") as taken, other.attempt("b") as free:
            assert (taken, free) == (False, True)
        assert (tmp_path / "a.lock").exists()  # who was refused has taken nothing away
    with other.attempt("a") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_free_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made(tmp_path).attempt("a"):
        raise KeyboardInterrupt
    with made(tmp_path).attempt("a") as ours:
        assert ours


@pytest.mark.filterwarnings("ignore:.*fork")
def test_the_claim_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holding = context.Event()

    def hold() -> None:
        with Store(tmp_path).claims.attempt(NAME):
            holding.set()
            signal.pause()

    process = context.Process(target=hold)
    process.start()
    assert holding.wait(60)
    assert process.pid is not None
    with Store(tmp_path).claims.attempt(NAME) as ours:
        assert not ours
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    left = tmp_path / "claims" / f"{NAME}.lock"
    assert left.exists()  # nobody took it away, and nobody holds it
    assert belongs(left, ("claims", left.name))
    assert examine(tmp_path).left_alone == 0
    assert collect(tmp_path, None)["files_removed"] == 1
    assert not left.exists()
    with Store(tmp_path).claims.attempt(NAME) as ours:
        assert ours


def test_collecting_takes_no_claim_away_that_is_held(tmp_path: Path) -> None:
    with Store(tmp_path).claims.attempt(NAME):
        assert collect(tmp_path, None)["files_removed"] == 0
        with Store(tmp_path).claims.attempt(NAME) as ours:
            assert not ours


def test_what_others_are_at_comes_last_and_is_waited_for(tmp_path: Path) -> None:
    done, told, waited = list[str](), list[str](), threading.Event()
    ready = threading.Event()

    def other() -> None:
        with made(tmp_path).attempt("a"):
            ready.set()
            assert waited.wait(60)
            done.append("a by another")

    thread = threading.Thread(target=other)
    thread.start()
    assert ready.wait(60)

    def waiting() -> None:
        told.append("waiting")
        waited.set()

    works = [(name, lambda name=name: done.append(name)) for name in "abc"]
    made(tmp_path).share(works, waiting)
    thread.join(60)
    assert done == ["b", "c", "a by another", "a"]
    assert told == ["waiting"]  # once
    with made(tmp_path).wait("a", waiting):
        done.append("again")
    assert (done[-1], told) == ("again", ["waiting"])


def test_without_locks_everybody_does_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    with made(tmp_path).attempt("a") as one, made(tmp_path).attempt("a") as other:
        assert (one, other) == (True, True)
    assert list(tmp_path.iterdir()) == []
