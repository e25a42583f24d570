"""A model of one's own: the scores are the oracle's, code is known by what it does, and mistakes are explained."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from influence_cli import api
from influence_cli.errors import InfluenceError, ManifestError, ModelError, UsageError
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.losses.own import loss_name
from influence_cli.model.spec import ModelSpec
from influence_cli.model.task import Task
from influence_cli.stages.run.own_model import weights_digest
from tests.cases import call_cli, column, digits_table, examples, feature_table, write


def pixels(payload: bytes) -> Tensor:
    """What the built-in preprocessing of ``digits_run`` does."""
    image = np.asarray(Image.open(io.BytesIO(payload)).convert("L"))
    return (torch.from_numpy(image.copy()).float()[None] / 255.0 - 0.5) / 0.5


@pytest.fixture(scope="module")
def model(digits_run: Path) -> nn.Module:
    checkpoint, carried = find_checkpoint(str(digits_run))
    assert carried is not None
    return load_model(ModelSpec.from_dict(carried), checkpoint)


class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The rows of one split of ``digits``."""

    def __init__(self, split: str, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.rows = [r for r in digits_table().to_pylist() if r["split"] == split]
        self.change = change

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.change(pixels(self.rows[k]["image"])), self.rows[k]["label"]


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.2)


def jittered(x: Tensor) -> Tensor:
    return x + torch.rand(())


def oracle(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Inner products row by row in float64, by plain autograd."""
    model = copy.deepcopy(model).double()

    def gradient(rows: Digits) -> list[Tensor]:
        out = []
        for k in range(len(rows)):
            x, y = rows[k]
            value = loss(model(x[None].double()), torch.tensor([y])).sum()
            out.append(torch.cat([g.ravel() for g in torch.autograd.grad(value, list(model.parameters()))]))
        return out

    q = torch.stack(gradient(Digits("val"))).mean(0)
    return torch.stack([g @ q for g in gradient(Digits("train"))]).numpy()


def scores_of(task: Task, store: Path, rows: Any = None, **more: Any) -> np.ndarray:
    how = {"method": "ip", **more}
    return column(api.score(digits_table() if rows is None else rows, task=task, store=str(store), **how))


def close(a: np.ndarray, b: np.ndarray, rounding: float = 2e-6) -> bool:
    return bool(np.abs(a - b).max() <= rounding * np.abs(b).max())


# ---- the numbers ---------------------------------------------------------------------------------------------------


def test_transform_and_model_give_the_scores_of_the_built_in_path(
    tmp_path: Path, digits: Path, digits_run: Path, model: nn.Module
) -> None:
    built_in = column(api.score(digits, checkpoint=digits_run, method="ip", store=None))
    assert np.array_equal(scores_of(Task(model, pixels), tmp_path), built_in)
    assert np.array_equal(scores_of(Task(lambda: model, pixels), tmp_path), built_in)


@pytest.mark.parametrize("loss", [None, smoothed], ids=["cross-entropy", "own loss"])
def test_scores_are_the_oracles_from_a_manifest_and_from_a_dataset(loss: Any, tmp_path: Path, model: nn.Module) -> None:
    plain = lambda z, y: F.cross_entropy(z, y, reduction="none")  # noqa: E731
    expected = oracle(model, loss or plain)
    assert close(scores_of(Task(model, pixels, loss), tmp_path), expected)
    assert close(scores_of(Task(model, None, loss), tmp_path, Digits("train"), target=Digits("val")), expected)
    exact = scores_of(Task(model, pixels, loss), tmp_path, precision="fp64")
    assert close(exact, expected, 1e-10)


def test_an_own_loss_gives_the_best_label_and_the_loss_column(tmp_path: Path, model: nn.Module) -> None:
    task = Task(model, pixels, smoothed)
    table = api.score(digits_table(), task=task, store=str(tmp_path), method=["ip", "loss"])
    rows = Digits("train")
    x, y = torch.stack([rows[k][0] for k in range(200)]), torch.tensor([rows[k][1] for k in range(200)])
    with torch.no_grad():
        losses = smoothed(model(x), y).numpy()
    assert np.allclose(column(table, "loss"), losses, atol=1e-5)
    assert np.allclose(column(table, "score_loss"), -losses, atol=1e-5)
    best, gain = table.column("best_label").to_numpy(), column(table, "best_label_gain")
    relabelled = digits_table().to_pylist()
    k = int(gain[:200].argmax())
    relabelled[k]["label"] = int(best[k])
    moved = pa.Table.from_pylist(relabelled, schema=digits_table().schema)
    assert api.plan(moved, task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 0
    after = scores_of(task, tmp_path, moved)
    assert after[k] == pytest.approx(column(table)[k] + gain[k], rel=1e-5)


def test_the_users_module_is_not_touched(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    scores_of(Task(module, pixels), tmp_path, precision="fp64", method="ip-ensemble")
    assert module.training
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in module.state_dict().items())


def test_integer_inputs_reach_the_model_as_they_are(tmp_path: Path) -> None:
    class Tokens(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self, shift: int = 0) -> None:
            self.shift = shift

        def __len__(self) -> int:
            return 20

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            k += self.shift
            return torch.tensor([k % 7, k % 3, k % 5]), k % 2

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(8, 4), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).flatten(1))

    class Looked(Tokens):
        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            tokens, label = super().__getitem__(k)
            return bag.table(tokens).flatten().detach(), label

    torch.manual_seed(0)
    bag = Bag()
    how: dict[str, Any] = {"store": None, "allow_overlap": True}
    assert np.isfinite(column(api.score(Tokens(), target=Tokens(7), task=Task(bag), method="loss", **how))).all()
    for method in ("ip", "datainf", "exact", "cg"):  # in the head alone, whose input is looked up
        fitted = {**how, "method": method, "params": "last", "precision": "fp64"}
        found = column(api.score(Tokens(), target=Tokens(7), task=Task(bag), **fitted))
        expected = column(api.score(Looked(), target=Looked(7), task=Task(nn.Sequential(bag.head)), **fitted))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    how["options"] = {"lissa": {"depth": 20, "repeats": 1}}
    for method in ("ekfac", "exact", "lissa"):
        assert np.isfinite(column(api.score(Tokens(), target=Tokens(7), task=Task(bag), method=method, **how))).all()


# ---- what makes it new ---------------------------------------------------------------------------------------------


def test_changed_code_computes_everything_and_going_back_nothing(tmp_path: Path, model: nn.Module) -> None:
    def to_compute(task: Task) -> int:
        return api.plan(digits_table(), task=task, store=str(tmp_path), method="ip")["rows_to_compute"]

    brighter = Task(model, lambda b: pixels(b) * 1.02)
    first = scores_of(Task(model, pixels), tmp_path)
    assert to_compute(Task(model, pixels)) == 0
    assert to_compute(brighter) == 200
    other = scores_of(brighter, tmp_path)
    assert not close(other, first)
    assert close(other, column(api.score(digits_table(), task=brighter, method="ip", store=None)))
    assert to_compute(Task(model, pixels)) == to_compute(brighter) == 0
    assert np.array_equal(scores_of(Task(model, pixels), tmp_path), first)


class Scaled(nn.Module):
    """Two architectures with the same weights."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


def test_changed_architecture_and_changed_loss_are_never_mistaken(tmp_path: Path, model: nn.Module) -> None:
    tasks = {
        "plain": Task(Scaled(model, 1.0), pixels),
        "scaled": Task(Scaled(model, 1.1), pixels),
        "smoothed": Task(Scaled(model, 1.0), pixels, smoothed),
        "half": Task(Scaled(model, 1.0), pixels, lambda z, y: 0.5 * F.cross_entropy(z, y, reduction="none")),
    }
    warm = {name: scores_of(task, tmp_path) for name, task in tasks.items()}
    again = {name: scores_of(task, tmp_path) for name, task in tasks.items()}
    for name, task in tasks.items():
        cold = column(api.score(digits_table(), task=task, method="ip", store=None))
        assert close(warm[name], cold), name
        assert np.array_equal(warm[name], again[name]), name
    assert close(warm["half"], 0.25 * warm["plain"])


def test_other_weights_are_new_and_the_digest_is_that_of_the_file(tmp_path: Path, model: nn.Module) -> None:
    safetensors.torch.save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert weights_digest(model) == find_checkpoint(str(tmp_path / "w.safetensors"))[0].digest
    scores_of(Task(model, pixels), tmp_path / "s")
    blank = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), pixels)
    assert api.plan(digits_table(), task=blank, store=str(tmp_path / "s"), method="ip")["rows_to_compute"] == 200


def test_appended_rows_are_the_only_ones_computed_and_old_probes_may_go(tmp_path: Path, model: nn.Module) -> None:
    task, rows = Task(model, pixels), digits_table(train=200)
    few = rows.slice(40, 280)
    assert api.plan(few, task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 160
    scores_of(task, tmp_path, few)
    assert api.plan(rows, task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 40
    scores_of(task, tmp_path, rows)
    other = rows.slice(0, 320).take([*range(40), *range(200, 320)])
    assert api.plan(other, task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 0


class Overflowing(nn.Module):
    """Not finite where the first input is above 5."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / (x[:, :1] <= 5).to(x.dtype)


def test_rows_whose_logits_are_not_finite_are_null_and_the_task_is_known_again(tmp_path: Path) -> None:
    train = [(torch.tensor([float(k), 1.0]), k % 2) for k in range(10)]
    target = [(torch.tensor([k / 10.0, 2.0]), k % 2) for k in range(10)]
    task = Task(Overflowing())
    scores = scores_of(task, tmp_path, train, target=target)
    assert np.isnan(scores).tolist() == [k > 5 for k in range(10)]
    assert api.plan(train, target=target, task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 0


def test_a_loss_is_named_by_what_it_does() -> None:
    def same(z: Tensor, y: Tensor) -> Tensor:
        return -F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]

    plain = lambda z, y: F.cross_entropy(z, y, reduction="none")  # noqa: E731
    assert loss_name(plain, 4) == loss_name(same, 4) != loss_name(smoothed, 4)
    weights = torch.tensor([1.0, 1, 1, 1.01])
    assert loss_name(lambda z, y: F.cross_entropy(z, y, weight=weights, reduction="none"), 4) != loss_name(plain, 4)


# ---- datasets ------------------------------------------------------------------------------------------------------


def test_curate_and_retrain_from_a_dataset(tmp_path: Path, model: nn.Module) -> None:
    train, val, test = Digits("train"), Digits("val"), Digits("test")
    scores = api.score(train, target=val, task=Task(model), store=str(tmp_path / "s"), method=["loss", "ip"])
    edits = api.curate(scores, manifest=train, budget=20)
    assert edits.num_rows == 20
    wrong = {k for k, r in enumerate(train.rows) if r["label"] != r["clean_label"]}
    assert sum(int(i) in wrong for i in edits.column("id").to_pylist()) >= 10
    with pytest.raises(UsageError, match="cannot be written as a manifest"):
        api.curate(scores, manifest=train, output=str(tmp_path / "c.parquet"))
    with pytest.raises(UsageError, match="does not say where its manifest is"):
        api.curate(scores)
    fresh = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    one = api.retrain(train, str(tmp_path / "r"), task=fresh, test=test, epochs=6, lr=0.1)
    assert one["arms"]["all rows"]["mean"]["accuracy"]["mean"] > 0.5
    trained = (tmp_path / "r" / "model.safetensors").read_bytes()
    api.retrain(train, str(tmp_path / "r"), task=fresh, test=test, epochs=6, lr=0.1)
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == trained
    assert len(list((tmp_path / "r" / "arms").iterdir())) == 1
    other = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss=smoothed)
    api.retrain(train, str(tmp_path / "r"), task=other, test=test, epochs=6, lr=0.1)
    assert (tmp_path / "r" / "model.safetensors").read_bytes() != trained


def test_a_dataset_relabelled_in_place_computes_nothing(tmp_path: Path, model: nn.Module) -> None:
    train, task = Digits("train"), Task(model)
    before = scores_of(task, tmp_path, train, target=Digits("val"))
    train.rows[3]["label"] = (train.rows[3]["label"] + 1) % 10
    assert api.plan(train, target=Digits("val"), task=task, store=str(tmp_path), method="ip")["rows_to_compute"] == 0
    after = scores_of(task, tmp_path, train, target=Digits("val"))
    assert np.flatnonzero(after != before).tolist() == [3]


BROKEN: dict[str, tuple[Callable[[nn.Module], Any], type[InfluenceError], str]] = {
    "random augmentation": (
        lambda m: api.score(
            Digits("train", lambda x: x + torch.rand(())), target=Digits("val"), task=Task(m), store=None
        ),
        ManifestError,
        "not the same when it is read again",
    ),
    "an empty dataset": (lambda m: api.score([], task=Task(m), store=None), ManifestError, "no rows"),
    "rows that are no pairs": (
        lambda m: api.score([torch.zeros(3)], task=Task(m), store=None),
        ManifestError,
        "no (input, label)",
    ),
    "a label that is no class": (
        lambda m: api.score([(torch.zeros(3), "cat")], task=Task(m), store=None),
        ManifestError,
        "no class number",
    ),
    "a payload without a name": (
        lambda m: api.score([(object(), 1)], task=Task(m), store=None),
        ManifestError,
        "no name by content",
    ),
    "a transform that fails": (
        lambda m: api.score(digits_table(), task=Task(m, lambda b: b.nothing), store=None),
        ModelError,
        "none of the first",
    ),
    "a transform that gives no tensor": (
        lambda m: api.score(digits_table(), task=Task(m), store=None),
        ModelError,
        "none of the first",
    ),
    "inputs that the model does not take": (
        lambda m: api.score(digits_table(), task=Task(m, lambda b: pixels(b)[:, :3]), store=None),
        ModelError,
        "fails on inputs of shape",
    ),
    "a loss with a reduction": (
        lambda m: api.score(digits_table(), task=Task(m, pixels, F.cross_entropy), store=None),
        ModelError,
        "not one value for each",
    ),
    "an output that is no logits": (
        lambda m: api.score(digits_table(), task=Task(nn.Linear(8, 8), pixels), store=None),
        ModelError,
        "not logits [n, C]",
    ),
    "a model without parameters": (
        lambda m: api.score(digits_table(), task=Task(nn.Flatten(), pixels), store=None),
        UsageError,
        "selects no parameter",
    ),
    "no rows at all": (lambda m: api.score(3.5, task=Task(m), store=None), UsageError, "holds no rows"),
    "a model that is none": (
        lambda m: api.score(digits_table(), task=Task(lambda: 3, pixels), store=None),  # type: ignore[arg-type]
        ModelError,
        "not a torch module",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_mistakes_are_explained(case: str, model: nn.Module) -> None:
    call, kind, says = BROKEN[case]
    with pytest.raises(kind) as caught:
        call(model)
    assert says in caught.value.what
    assert caught.value.fix


class Centred(nn.Module):
    """Rows of a batch depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x - x.mean(0)).flatten(1))


def spoil(x: Tensor) -> Tensor:
    return x * float("nan")


def test_models_and_losses_that_give_no_numbers_are_explained(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(ModelError, match="other logits alone than in a batch"):
        scores_of(Task(Centred(), pixels), tmp_path)
    with pytest.raises(ModelError, match=r"loss failed on logits .*ZeroDivisionError"):
        scores_of(Task(model, pixels, lambda z, y: z[:, 0] / (1 // len(y[:0]))), tmp_path)
    with pytest.raises(UsageError, match="the task is a Sequential"):
        scores_of(nn.Sequential(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="objective of a target row is not finite") as caught:
        scores_of(Task(model), tmp_path, Digits("train"), target=Digits("val", spoil))
    assert "row id=" in caught.value.where


def test_a_transform_may_share_memory_with_features(tmp_path: Path) -> None:
    table = feature_table(examples())
    given = Task(nn.Linear(5, 3), transform=torch.from_numpy)
    assert len(scores_of(given, tmp_path, table)) == 40


# ---- from the command line ------------------------------------------------------------------------------------------


CODE = """
import io
import numpy as np, torch
from PIL import Image
from torch import nn
from influence_cli.model.task import Task

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def task():
    def transform(payload):
        image = np.asarray(Image.open(io.BytesIO(payload)).convert("L"))
        return (torch.from_numpy(image.copy()).float()[None] / 255 - 0.5) / 0.5
    return Task(net, transform)

def lossy():
    loss = lambda z, y: nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=0.3)
    return Task(net, task().transform, loss)

number = 3
def nothing():
    return None

def fails():
    raise RuntimeError("kaputt")

def fails_later():
    return Task(fails, task().transform)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest and the user's code, under a module name of its own."""
    (tmp_path / "own_code_of_a_test.py").write_text(CODE)
    write(digits_table(), tmp_path / "m.parquet")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_code_of_a_test", raising=False)
    return tmp_path


def test_a_python_factory_trains_scores_and_compares(project: Path) -> None:
    name = "python:own_code_of_a_test:task"
    trained = call_cli("retrain", "m.parquet", "--model", name, "--epochs", "8", "-o", "run", cwd=project)
    assert trained.code == 0, trained.err
    named = ("m.parquet", "--checkpoint", "run", "--model", name)
    scored = call_cli("score", "--method", "ip", *named, "-o", "s.parquet", cwd=project)
    assert scored.code == 0, scored.err
    planned = call_cli("score", "--method", "ip", *named, "--no-store", "-n", "--json", cwd=project)
    assert planned.json["rows_to_compute"] == 200
    assert planned.json["seconds"] is not None
    weights = ("--model", name, "--checkpoint", "run/model.safetensors", "--isolated")
    again = call_cli("score", "--method", "ip", "m.parquet", *weights, "-o", "t.parquet", cwd=project)
    assert again.code == 0, again.err
    plain = ("--model", "python:own_code_of_a_test:net", "--mean", "0.5", "--std", "0.5")
    state = safetensors.torch.load_file(project / "run" / "model.safetensors")
    torch.save(state, project / "w.pt")
    third = call_cli(
        "score", "--method", "ip", "m.parquet", *plain, "--checkpoint", "w.pt", "-o", "u.parquet", cwd=project
    )
    assert third.code == 0, third.err
    first, second, last = (column(pq.read_table(project / f"{n}.parquet")) for n in "stu")
    assert np.array_equal(first, second)
    assert close(last, first)


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("python:own_code_of_a_test", (), "cannot read model"),
        ("python:no_such_module_at_all:task", (), "cannot import"),
        ("python:own_code_of_a_test:absent", (), "cannot import"),
        ("python:own_code_of_a_test:fails", (), "failed (RuntimeError: kaputt)"),
        ("python:own_code_of_a_test:fails_later", (), "failed (RuntimeError: kaputt)"),
        ("python:own_code_of_a_test:number", (), "is no function"),
        ("python:own_code_of_a_test:nothing", (), "made a NoneType"),
        ("python:own_code_of_a_test:net", (), "does not say how images become its input"),
    ],
)
def test_factories_that_cannot_work_are_exit_2(project: Path, name: str, more: tuple[str, ...], says: str) -> None:
    torch.save({}, project / "w.pt")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--model", name, "--checkpoint", "w.pt", *more, cwd=project)
    assert ran.code == 2
    assert says in ran.err


def test_counterfactuals_measure_the_tasks_own_loss_and_know_changed_code(project: Path) -> None:
    name = "python:own_code_of_a_test:lossy"
    assert call_cli("retrain", "m.parquet", "--model", name, "--epochs", "2", "-o", "run", cwd=project).code == 0
    scored = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", "run", "--model", name, "-o", "s.parquet", cwd=project
    )
    assert scored.code == 0, scored.err
    asked = ("evaluate", "s.parquet", "--lds", "3", "--json", "--model", name)
    before = {p: p.stat().st_mtime_ns for p in (project / ".influence").rglob("*")}
    assert call_cli(*asked, "-n", cwd=project).json["trainings"]["lds"]["kept"] == 0
    assert {p: p.stat().st_mtime_ns for p in (project / ".influence").rglob("*")} == before
    ran = call_cli(*asked, cwd=project)
    assert ran.code == 0, ran.err
    refit = ran.json["refit"]
    assert abs(refit["phi"] - refit["phi_of_checkpoint"]) < 1e-5 * refit["phi"]
    planned = call_cli(*asked, "-n", cwd=project).json["trainings"]
    assert all(part["kept"] == part["trainings"] for part in planned.values())
    (project / "own_code_of_a_test.py").write_text(CODE.replace("label_smoothing=0.3", "label_smoothing=0.2"))
    sys.modules.pop("own_code_of_a_test")
    assert call_cli(*asked, "-n", cwd=project).json["trainings"]["refit"]["kept"] == 0
    (project / "own_code_of_a_test.py").write_text(CODE.replace("nn.Linear(64, 10))", "nn.Linear(64, 10), nn.ReLU())"))
    sys.modules.pop("own_code_of_a_test")
    assert call_cli(*asked, "-n", cwd=project).json["trainings"]["refit"]["kept"] == 0


def test_training_on_from_a_checkpoint_knows_changed_code(project: Path) -> None:
    name = "python:own_code_of_a_test:task"
    assert call_cli("retrain", "m.parquet", "--model", name, "--epochs", "1", "-o", "run", cwd=project).code == 0
    more = ("retrain", "m.parquet", "--init", "run", "--model", name, "--epochs", "1", "-o", "on")
    assert call_cli(*more, cwd=project).code == 0
    first = (project / "on" / "model.safetensors").read_bytes()
    (project / "own_code_of_a_test.py").write_text(CODE.replace("- 0.5) / 0.5", "- 0.4) / 0.3"))
    sys.modules.pop("own_code_of_a_test")
    assert call_cli(*more, cwd=project).code == 0
    assert (project / "on" / "model.safetensors").read_bytes() != first


class Viewing(nn.Module):
    """The LeNet of many a tutorial: it flattens with ``view``, which wants its rows one after the other in memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


def colours(payload: bytes) -> Tensor:
    """Three channels, turned from rows of pixels to planes without a copy, as torchvision's ``ToTensor`` does."""
    image = np.array(Image.open(io.BytesIO(payload)).convert("RGB"))
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255.0


def test_a_model_that_views_its_memory_runs_on_images_that_were_turned(tmp_path: Path) -> None:
    """Batches are as torch's own collating makes them, whatever the order of memory of a row."""
    turned, plain = tmp_path / "turned", tmp_path / "plain"
    found = scores_of(Task(Viewing().eval(), colours), turned)
    assert np.array_equal(found, scores_of(Task(Viewing().eval(), lambda p: colours(p).contiguous()), plain))
    assert np.isfinite(found).all()
