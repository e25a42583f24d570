"""A small part of ``python -m tests.hardening``, which the results page has whole: what every change has to survive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from influence_cli.settings import Runtime
from tests.hardening import bad_input, concurrency, crash, damage, places
from tests.hardening.harness import Tally, cli, copy_of

if sys.platform == "win32":  # pragma: no cover
    pytest.skip("forks", allow_module_level=True)


@pytest.fixture(autouse=True)
def shards() -> Iterator[None]:
    """Shards of a few rows do not outlive a test."""
    before = Runtime.__init__.__defaults__
    yield
    Runtime.__init__.__defaults__ = before  # type: ignore[misc]


def survived(tally: Tally, least: int) -> None:
    assert sum(tally.tried.values()) >= least
    assert tally.failures == []


def test_runs_that_are_stopped_between_two_writes_are_finished_by_the_same_command() -> None:
    tally = Tally("crash")
    crash.crashes(tally, 8, 1, seed=1, names=("grads", "cache gc"))
    survived(tally, 9)


def test_signals_that_end_a_run_leave_no_copy_of_its_data() -> None:
    tally = Tally("places")
    places.signals(tally, 2, seed=1)
    survived(tally, 2)


def test_threads_share_a_store(tmp_path: Path) -> None:
    tally = Tally("concurrency")
    concurrency.threads(tally, 1.0, tmp_path / "store")
    survived(tally, 3)


def test_damage_changes_no_number() -> None:
    tally = Tally("damage")
    damage.damages(tally, 24, seed=1)
    survived(tally, 24)


@pytest.mark.parametrize("kind", bad_input.CORPUS)
def test_bad_input_is_refused_in_our_words(kind: str) -> None:
    tally = Tally("bad input")
    bad_input.bad_inputs(tally, (kind,), every=60, mutated=2, seed=7)
    survived(tally, 2)


FOUND = {  # what had to be mended
    "sources": ("source deep.json", "source bomb.npz"),
    "manifests": ("group list, trained", "features empty", "features empty, trained", "split list"),
    "settings": ("TOML deep", "--set ip-ensemble.members=1000000000", "--set gex.members=1000000000"),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_was_found_stays_mended(kind: str) -> None:
    tally = Tally("bad input")
    for case in bad_input.CORPUS[kind]():
        if case[0] in FOUND[kind]:
            bad_input.try_case(tally, kind, case)
    survived(tally, len(FOUND[kind]))


def test_a_chain_whose_values_are_damaged_is_drawn_again(tmp_path: Path) -> None:
    template, asked = damage.full(), damage.READERS["samplers"]
    for chain in sorted((template / "st" / "chains").iterdir()):
        with copy_of(template) as place:
            raw = bytearray(chain.read_bytes())
            raw[-1] ^= 1  # of its values: its metadata are intact
            (place / "st" / "chains" / chain.name).write_bytes(raw)
            ended = cli(*asked.arguments, cwd=place)
            assert ended.code == 0, ended.err
            assert "scored by bif" in ended.err
