"""Scores of rows split over their tokens: against loops of plain reverse mode, stored, shown, and refused elsewhere.

python -m pytest tests/stages/score/test_tokens.py
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import influence_cli
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from tests.cases import call_cli, run_without_torch, write

_SAID = "the cat dog sat on a mat and ran to see naïve 日本 👩‍👩‍👧 red blue green sky"
WORDS = _SAID.split()


def texts(rows: int = 36, seed: int = 0) -> pa.Table:
    """Rows of some words and line breaks, one of which stands twice."""
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))).replace(" to ", "\n") for _ in range(rows)]
    made[1] = made[0]
    split = ["train"] * (rows - 10) + ["val"] * 6 + ["test"] * 4
    return pa.table({"id": [f"r{k}" for k in range(rows)], "text": made, "split": split})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of texts and a small GPT that was trained on it for a moment."""
    here = tmp_path_factory.mktemp("tokens")
    write(texts(), here / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "gpt:1x32", "--epochs", 2, "-o", "RUN", "-q", cwd=here)
    assert ran.code == 0, ran.err
    return here


def tokens(here: Path, *more: Any, output: str = "t.parquet", store: str = "store") -> pa.Table:
    """The table of tokens that the command writes."""
    flags = ["--checkpoint", "RUN", "--store", store, "-o", output, "-q", *more]
    ran = call_cli("score", "m.parquet", "--tokens", *flags, cwd=here)
    assert ran.code == 0, ran.err
    return pq.read_table(here / output)


def by_row(table: pa.Table, column: str = "score") -> dict[str, Any]:
    """By row its tokens' values, null as 0."""
    found: dict[str, list[float]] = {}
    for row, value in zip(table.column("id").to_pylist(), table.column(column).to_pylist(), strict=True):
        found.setdefault(row, []).append(0.0 if value is None else value)
    return {row: np.array(values) for row, values in found.items()}


class Loops:
    """The trained GPT in float64, and what one backward pass at a time gives of it."""

    def __init__(self, run: Path) -> None:
        checkpoint, carried = find_checkpoint(str(run))
        assert carried is not None
        self.spec = ModelSpec.from_dict(carried)
        self.model: Any = load_model(self.spec, checkpoint, torch.float64).eval()
        self.parameters = list(self.model.parameters())

    def losses(self, text: str) -> Any:
        """The losses of the second and all further tokens, with logits made whole."""
        assert self.spec.text is not None
        ids = torch.from_numpy(self.spec.text.encoded(text)["input_ids"].astype(np.int64))
        h = self.model.tokens(ids[None]) + self.model.places(torch.arange(len(ids)))
        for block in self.model.blocks:
            h = block(h)
        logits = self.model.norm(h)[0, :-1] @ self.model.tokens.weight.T
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")

    def gradient(self, value: Any) -> Any:
        """Of one number, flat, in all parameters."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, self.parameters)])

    def direction(self, rows: list[str]) -> Any:
        """The gradient of the mean of the summed losses of rows."""
        return torch.stack([self.gradient(self.losses(text).sum()) for text in rows]).mean(0)

    def scores(self, text: str, q: Any) -> Any:
        """Of every token, the inner product of its loss's gradient with q; 0 of the first."""
        count = len(self.losses(text))
        return np.array([0.0, *(float(self.gradient(self.losses(text)[k]) @ q) for k in range(count))])


@pytest.fixture(scope="module")
def exact(home: Path) -> dict[str, tuple[Any, Any]]:
    """By train row its tokens' losses and scores from loops."""
    loops, rows = Loops(home / "RUN"), texts().to_pylist()
    q = loops.direction([r["text"] for r in rows if r["split"] == "val"])
    train = [r for r in rows if r["split"] == "train"]
    with_losses = {r["id"]: loops.losses(r["text"]).detach().numpy() for r in train}
    return {r["id"]: (np.array([0.0, *with_losses[r["id"]]]), loops.scores(r["text"], q)) for r in train}


@pytest.mark.parametrize(("precision", "bound", "sums"), [("fp64", 1e-11, 1e-12), ("fp32", 2e-5, 1e-6)])
def test_scores_of_tokens_are_those_of_loops_and_sum_to_the_rows(
    precision: str, bound: float, sums: float, home: Path, exact: dict[str, tuple[Any, Any]]
) -> None:
    table = tokens(home, "--precision", precision, "--top", 50)
    found, losses, rows = by_row(table), by_row(table, "loss"), by_row(table, "row_score")
    assert len(found) == 26
    for row, scores in found.items():
        np.testing.assert_allclose(losses[row], exact[row][0], rtol=0, atol=bound * 10)
        np.testing.assert_allclose(scores, exact[row][1], rtol=0, atol=bound * np.abs(exact[row][1]).max())
        assert abs(scores.sum() - rows[row][0]) <= sums * np.abs(scores).sum()
    assert set(table.column("decomposition").to_pylist()) == {"loss"}
    nulls = [(r["position"] == 0, r["score"] is None, r["loss"] is None) for r in table.to_pylist()]
    assert set(nulls) == {(True, True, True), (False, False, False)}


def test_parts_by_position_sum_to_the_same_scores(home: Path) -> None:
    by_loss, table = (tokens(home, "--precision", "fp64", "--decomposition", d) for d in ("loss", "position"))
    found, other, rows = by_row(table), by_row(by_loss), by_row(table, "row_score")
    assert list(found) == list(other)
    for row, scores in found.items():
        assert abs(scores.sum() - rows[row][0]) <= 1e-12 * np.abs(scores).sum()
        assert abs(scores[-1]) == 0.0  # nothing follows the last
        assert not np.allclose(scores, other[row], rtol=0.1)
    assert table.column("score").null_count == 0
    assert table.column("loss").to_pylist() == by_loss.column("loss").to_pylist()
    assert set(table.column("decomposition").to_pylist()) == {"position"}


def test_rows_are_the_most_helpful_and_harmful_and_their_tokens_are_their_texts(home: Path) -> None:
    scored = pq.read_table(home / "s.parquet") if (home / "s.parquet").exists() else None
    if scored is None:
        flags = ["--checkpoint", "RUN", "--store", "store", "-o", "s.parquet", "-q"]
        assert call_cli("score", "m.parquet", *flags, cwd=home).code == 0
        scored = pq.read_table(home / "s.parquet")
    table = tokens(home, "--top", 2)
    order = scored.sort_by([("score", "descending")]).to_pylist()
    harmful = [r for r in order if r["score"] < 0][::-1][:2]
    expected = [r["id"] for r in [*[r for r in order if r["score"] > 0][:2], *harmful]]
    assert list(by_row(table)) == expected
    text = dict(zip(*(texts().column(n).to_pylist() for n in ("id", "text")), strict=True))
    for row in expected:
        own = [r for r in table.to_pylist() if r["id"] == row]
        assert all(r["token"] == text[row][r["start"] : r["end"]] for r in own[1:])
        assert own[0]["token"] == "<begin>"
        assert own[-1]["end"] == len(text[row])
        assert [r["position"] for r in own] == list(range(len(own)))
    sides = dict.fromkeys((r["side"], r["rank"]) for r in table.to_pylist())
    assert list(sides) == [("helpful", 1), ("helpful", 2), ("harmful", 1), ("harmful", 2)][: len(expected)]


def test_the_same_question_again_runs_no_model(home: Path) -> None:
    flags = ["--checkpoint", "RUN", "--store", "store", "-q"]
    first = tokens(home, "--top", 3)
    ran = run_without_torch("score", "m.parquet", "--tokens", "--top", 3, *flags, "-o", "again.parquet", cwd=home)
    assert ran.code == 0
    assert pq.read_table(home / "again.parquet").equals(first)
    fewer = run_without_torch("score", "t.parquet", "--tokens", "--top", 1, *flags[2:], "-o", "again.parquet", cwd=home)
    assert fewer.code == 0  # by what the table says of itself
    assert list(by_row(pq.read_table(home / "again.parquet"))) == [
        k for k, v in by_row(first, "rank").items() if v[0] == 1
    ]


def test_members_and_several_methods_have_a_column_each_that_sums_to_theirs(home: Path) -> None:
    more = ["--method", "ip", "--method", "ip-ensemble", "--set", "ip-ensemble.members=2", "--precision", "fp64"]
    table = tokens(home, *more, output="t2.parquet")
    flags = ["--checkpoint", "RUN", "--store", "store", "-o", "s2.parquet", "-q"]
    assert call_cli("score", "m.parquet", *more, *flags, cwd=home).code == 0
    rows = {r["id"]: r for r in pq.read_table(home / "s2.parquet").to_pylist()}
    for name in ("score_ip_utility", "score_ip-ensemble_utility"):
        for row, scores in by_row(table, name).items():
            assert abs(scores.sum() - rows[row][name]) <= 1e-11 * np.abs(scores).sum()
    assert table.column("score").equals(table.column("score_ip_utility"))


def test_sums_over_checkpoints_are_split_too(home: Path) -> None:
    given = ("--model", "gpt:1x16", "--epochs", 2, "--optimizer", "sgd", "--lr", 0.01, "--keep-checkpoints", 2)
    assert call_cli("retrain", "m.parquet", *given, "-o", "KEPT", "-q", cwd=home).code == 0
    table = tokens(home, "--checkpoint", "KEPT", "--method", "tracin", "--precision", "fp64", output="t4.parquet")
    for row, scores in by_row(table).items():
        assert abs(scores.sum() - by_row(table, "row_score")[row][0]) <= 1e-11 * np.abs(scores).sum()


def test_scores_over_the_rows_own_size_are_split_too(home: Path) -> None:
    table = tokens(home, "--relative", "--precision", "fp64", output="t3.parquet")
    plain = by_row(tokens(home, "--precision", "fp64", "--top", 50))
    for row, scores in by_row(table).items():
        assert abs(scores.sum() - by_row(table, "row_score")[row][0]) <= 1e-11 * np.abs(scores).sum()
        ratio = scores[1:] / plain[row][1:]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_python_gives_the_same_table(home: Path) -> None:
    table = tokens(home, "--top", 2, "--decomposition", "position")
    where: dict[str, Any] = {"checkpoint": str(home / "RUN"), "store": str(home / "store")}
    found = influence_cli.tokens(str(home / "m.parquet"), top=2, decomposition="position", **where)
    assert found.to_pylist() == table.to_pylist()
    one = influence_cli.tokens(str(home / "m.parquet"), row_id="r3", **where)
    assert set(one.column("id").to_pylist()) == {"r3"}
    with pytest.raises(influence_cli.InfluenceError, match="top=0 is no number of rows"):
        influence_cli.tokens(str(home / "m.parquet"), top=0, **where)


def test_rows_can_be_named(home: Path) -> None:
    table = tokens(home, "--row-id", "r5", "--row-id", "r1", "--row-id", "r0", output="t4.parquet")
    assert set(by_row(table)) == {"r0", "r1", "r5"}
    np.testing.assert_array_equal(by_row(table)["r0"], by_row(table)["r1"])  # one text
    scores = {k: v[0] for k, v in by_row(table, "row_score").items()}
    assert sorted(scores.values(), key=lambda s: (s <= 0, -abs(s))) == list(scores.values())


def test_a_page_and_a_terminal_show_them(home: Path) -> None:
    flags = ["--checkpoint", "RUN", "--store", "store", "--top", 2]
    asked = ["score", "m.parquet", "--tokens", "--report", "p.html", "--format", "table", *flags]
    assert call_cli(*asked, cwd=home).code == 0
    ran = call_cli(*asked, cwd=home)  # which replaces the first page, since that is ours
    assert ran.code == 0, ran.err
    assert "helps 1: " in ran.text
    assert "helps most: " in ran.text
    assert "\x1b" not in ran.text
    assert "split by loss" in ran.err
    page = (home / "p.html").read_text()
    assert "Target: 6 texts" in page
    assert "<begin>" in page.replace("&lt;", "<").replace("&gt;", ">")
    (home / "mine.html").write_text("my own")
    refused = call_cli("score", "m.parquet", "--tokens", "--report", "mine.html", *flags, cwd=home)
    assert refused.code == 2
    assert (home / "mine.html").read_text() == "my own"


def test_a_plan_says_what_comes_after_the_scores(home: Path) -> None:
    flags = ["--checkpoint", "RUN", "--store", "store", "--tokens", "-n"]
    assert "tokens of up to 20 rows" in call_cli("score", "m.parquet", *flags, cwd=home).err
    assert "tokens of 1 rows" in call_cli("score", "m.parquet", *flags, "--row-id", "r3", cwd=home).err


def test_lost_parts_of_the_store_are_made_again(home: Path) -> None:
    first = tokens(home, "--top", 2, store="lost")
    for shard in (home / "lost" / "tokens").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-9])
    assert by_row(tokens(home, "--top", 2, store="lost")).keys() == by_row(first).keys()
    for note in (home / "lost" / "models").glob("*.json"):
        note.unlink()
    assert "<begin>" in tokens(home, "--top", 2, store="lost").column("token").to_pylist()
    shutil.rmtree(home / "lost" / "directions")
    shutil.rmtree(home / "lost" / "tokens")
    again = tokens(home, "--top", 2, store="lost")
    for row, scores in by_row(again).items():
        np.testing.assert_allclose(scores, by_row(first)[row], rtol=1e-5, atol=1e-6 * np.abs(scores).max())
    assert call_cli("cache", "verify", "--store", "lost", cwd=home).json["damaged"] == []
    assert call_cli("cache", "gc", "--store", "lost", cwd=home).code == 0
    flags = ["--checkpoint", "RUN", "--store", "lost", "-o", "again.parquet"]  # merged shards are read as they were
    run_without_torch("score", "m.parquet", "--tokens", "--top", 2, *flags, cwd=home)
    assert pq.read_table(home / "again.parquet").equals(again)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokens", "--method", "loss"], "loss is a value of a row as a whole"),
        (["--tokens", "--method", "self-tracin"], "self-tracin is a value of a row as a whole"),
        (["--tokens", "--per-target"], "two different tables"),
        (["--tokens", "--per-member", "--method", "ip-ensemble"], "two different tables"),
        (["--tokens", "--row-id", "r99"], "no train row has the id 'r99'"),
        (["--tokens", "--row-id", "r1", "--top", "3"], "--row-id names others"),
        (["--tokens", "--decomposition", "layer"], "'layer' is unknown"),
        (["--decomposition", "position"], "is about tokens"),
        (["--row-id", "r1"], "is about tokens"),
        (["--top", "3"], "or tokens"),
    ],
)
def test_what_has_no_parts_by_token_is_refused(flags: list[str], said: str, home: Path) -> None:
    ran = call_cli("score", "m.parquet", "--checkpoint", "RUN", "--store", "store", *flags, cwd=home)
    assert ran.code == 2
    assert said in ran.err
    assert "fix: " in ran.err


def test_a_table_of_tokens_is_no_table_of_scores(home: Path) -> None:
    tokens(home, "--top", 2)
    for command in (["curate", "t.parquet", "--budget", "1", "-o", "c.parquet"], ["evaluate", "t.parquet"]):
        ran = call_cli(*command, cwd=home)
        assert (ran.code, "a score for every token" in ran.err) == (2, True), ran.err
    ran = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "--store", "store", "-o", "t.parquet", cwd=home
    )
    assert ran.code == 2
    assert "it is a table of tokens" in ran.err


def test_a_classifier_has_no_tokens(tabular: Path, tabular_run: Path, tmp_path: Path) -> None:
    ran = call_cli(
        "score", "--method", "ip", tabular, "--checkpoint", tabular_run, "--tokens", "--no-store", cwd=tmp_path
    )
    assert ran.code == 2
    assert "does not predict them" in ran.err


def test_a_module_that_joins_positions_is_refused_before_rows_are_scored(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import influence_cli.model.gpt as gpt

    class Joining(torch.nn.Embedding):
        """Positions whose numbers are those of the positions before them too."""

        def forward(self, places: Any) -> Any:
            return super().forward(places).cumsum(1)

    made = gpt.GPT.__init__

    def with_joined(self: Any, vocabulary: int, context: int, layers: int, width: int) -> None:
        made(self, vocabulary, context, layers, width)
        self.places.__class__ = Joining

    monkeypatch.setattr(gpt.GPT, "__init__", with_joined)
    flags = ["--checkpoint", "RUN", "--store", "joined", "--tokens", "--decomposition", "position"]
    ran = call_cli("score", "m.parquet", *flags, cwd=home)
    assert ran.code == 2
    assert "module places (with places.weight) joins positions" in ran.err
    assert "--decomposition loss" in ran.err
    assert not (home / "joined" / "tangents").exists()
