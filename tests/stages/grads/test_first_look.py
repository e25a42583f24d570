"""The model's accuracy is said before anything is scored, it is the true one, and it is loud where it is chance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.errors import ManifestError
from influence_cli.events import Progress
from influence_cli.model.build import build_model, load_model
from influence_cli.model.examples import to_input
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec
from tests.cases import Heard, call_cli, digits_table, job_of, with_column, write
from tests.opened import Opened, fill, score


class Ordered(Heard):
    """Notes, warnings and spans in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def note(self, text: str) -> None:
        self.events.append(text)

    def warn(self, text: str) -> None:
        self.events.append(f"warning: {text}")


class Batches(Ordered):
    """The rows of every batch of training rows among the events."""

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        events = self.events

        class Counter(Progress):
            def advance(self, rows: int) -> None:
                if what.startswith("training rows"):
                    events.append(f"batch {rows}")

        yield Counter()


def said(events: list[str]) -> dict[str, tuple[float, int]]:
    """Accuracy and rows by name, from the line that comes before scoring."""
    (line,) = [e for e in events if e.startswith("before scoring: ")]
    found = re.findall(r"(train|target) accuracy ([\d.]+)% \(([\d,]+) rows\)", line)
    return {name: (float(a) / 100, int(n.replace(",", ""))) for name, a, n in found}


def true_accuracy(job: Opened, split: str) -> float:
    """Of the checkpoint, from the logits of every row of a split, by hand."""
    rows = job.manifest.rows(split)
    spec = job.model
    model = load_model(spec, job.checkpoint)
    x = torch.stack(
        [torch.from_numpy(spec.payload_kind.decode(p, spec).copy()) for _, p in rows.manifest.payloads(rows.index)]
    )
    with torch.no_grad():
        z = model(to_input(x, spec, torch.float32)).numpy()
    return float((z.argmax(1) == rows.labels).mean())


@pytest.mark.parametrize("methods", [("ip",), ("loss",), ("ip-ensemble", "ip"), ("margin", "random")], ids=str)
def test_small_data_are_looked_at_whole_and_the_accuracy_is_true(
    methods: tuple[str, ...], digits: Path, digits_run: Path
) -> None:
    heard = Ordered()
    job = job_of(digits, digits_run, None, spec=GradSpec(methods), listener=heard)
    assert fill(job) > 0
    known = said(heard.events)
    assert known["train"] == (pytest.approx(true_accuracy(job, "train"), abs=6e-4), 200)
    assert known["target"] == (pytest.approx(true_accuracy(job, "val"), abs=6e-4), 60)


def test_a_sample_is_run_first_and_said_before_the_other_rows(digits_run: Path, tmp_path: Path) -> None:
    table = digits_table(train=900, val=60, test=0)
    path = write(table, tmp_path / "m.parquet")
    heard = Batches()
    job = job_of(path, digits_run, None, listener=heard, batch_size=50)
    assert fill(job) == 900
    at = next(k for k, e in enumerate(heard.events) if e.startswith("before scoring"))
    seen = [int(e.split()[1]) for e in heard.events[:at] if e.startswith("batch")]
    assert 150 <= sum(seen) <= 200  # said while the last batch of the sample is in hand
    assert said(heard.events)["train"][1] == 200
    logits = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
    keys = job.train.payload_keys
    first = np.lexsort(tuple(keys[:, c] for c in range(15, -1, -1)))[:200]
    hits = (logits.argmax(1) == job.train.labels)[first].mean()
    assert said(heard.events)["train"][0] == pytest.approx(hits, abs=6e-4)


def test_a_model_that_guesses_is_loud_before_scoring_and_once(tmp_path: Path, digits: Path) -> None:
    torch.manual_seed(3)
    torch.save(build_model(ModelSpec("mlp:16", 10, "image", (1, 8, 8))).state_dict(), tmp_path / "w.pt")
    asked = ("--model", "mlp:16", "--checkpoint", "w.pt", "--store", "store")
    ran = call_cli("score", "--method", "ip", digits, *asked, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    loud = [line for line in ran.err.splitlines() if "no better than guessing among 10 classes" in line]
    assert [line.split()[1] for line in loud] == ["train", "target"]
    assert ran.err.index("no better than guessing") < ran.err.index("train rows scored")
    warm = call_cli("score", "--method", "ip", digits, *asked, "-o", "t.parquet", cwd=tmp_path)
    assert warm.err.count("no better than guessing") == 2
    assert pq.read_table(tmp_path / "s.parquet").equals(pq.read_table(tmp_path / "t.parquet"))


def test_a_good_model_is_not(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    ran = call_cli("score", digits, "--checkpoint", digits_run, "--method", "loss", "--no-store", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "before scoring: train accuracy" in ran.err
    assert "target accuracy" in ran.err
    assert "guessing" not in ran.err


def test_runs_without_a_target_or_with_labels_beyond_the_model_look_at_what_there_is(
    tmp_path: Path, digits_run: Path
) -> None:
    table = digits_table()
    train = table.filter(pa.array(np.array(table.column("split").to_pylist()) == "train"))
    heard = Ordered()
    fill(job_of(write(train, tmp_path / "t.parquet"), digits_run, None, spec=GradSpec(("loss",)), listener=heard))
    assert set(said(heard.events)) == {"train"}
    labels = table.column("label").to_numpy().copy()
    labels[200:230] = 11
    beyond = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    heard = Ordered()
    job = job_of(write(beyond, tmp_path / "b.parquet"), digits_run, None, spec=GradSpec(("loss",)), listener=heard)
    fill(job)
    assert said(heard.events)["target"][1] == 30


def test_looking_computes_nothing_twice(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    job = job_of(digits, digits_run, tmp_path / "store")
    assert fill(job) == 200
    again = job_of(digits, digits_run, tmp_path / "store", listener=Ordered())
    assert fill(again) == 0
    assert [e for e in again.listener.events if "scoring" in e] == []
    assert np.isfinite(score(again).column("score").to_numpy()).all()


@pytest.mark.parametrize("method", ["loss", "ip", "ekfac"])
def test_a_run_without_a_usable_row_says_so_every_time(method: str, digits_run: Path, tmp_path: Path) -> None:
    """The second run knows the undecodable payloads from the store; curvature decodes them beforehand."""
    table = digits_table(train=3)
    images = [b"no image"] * 3 + table.column("image").to_pylist()[3:]
    path = write(with_column(table, "image", pa.array(images, pa.binary())), tmp_path / "m.parquet")
    for _ in range(2):
        with pytest.raises(ManifestError, match="no train row can be used"):
            fill(job_of(path, digits_run, tmp_path / "store", spec=GradSpec((method,)), skip_bad=True))


def test_target_rows_that_do_not_decode_are_passed_by_and_not_remembered(digits_run: Path, tmp_path: Path) -> None:
    """No bad row is skipped, so nothing is left out by the store's memory later; nor is there a bar for these rows."""
    table = digits_table()
    images = table.column("image").to_pylist()
    images[200] = b"no image"
    path = write(with_column(table, "image", pa.array(images, pa.binary())), tmp_path / "m.parquet")
    heard = Heard()
    assert fill(job_of(path, digits_run, tmp_path / "store", spec=GradSpec(("loss",)), listener=heard)) == 200
    assert said(heard.notes)["target"][1] == 59
    assert not list((tmp_path / "store").glob("undecodable.json"))
    assert [what for what, _ in heard.spans] == ["training rows, model"]


def test_bf16_without_directions_needs_no_agreement(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    job = job_of(digits, digits_run, tmp_path / "store", spec=GradSpec(("loss",), precision="bf16"))
    assert fill(job) == 200
