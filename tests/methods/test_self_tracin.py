"""Self-TracIn (methods.md T06, T33): squared norms of row gradients, stored by payload and label.

Reference: one backward pass a row in float64; the closed form of logistic regression; ip with the row as its target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli import api
from influence_cli.data.tables import provenance
from influence_cli.engines.point import Point
from influence_cli.engines.row_values import RowValues, sum_over
from influence_cli.errors import ModelError
from influence_cli.methods.self_tracin import SelfTracIn
from influence_cli.model.dropout import Dropout
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.model.task import Task
from influence_cli.settings import GradSpec
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import (
    Example,
    Heard,
    call_cli,
    digits_table,
    draw_features,
    examples,
    feature_table,
    job_of,
    run_without_torch,
    verify,
    with_column,
    write,
)
from tests.engines.test_engine import CPU
from tests.engines.test_layers import EVERY, construct
from tests.methods.test_exact import Logistic
from tests.opened import describe_plan, fill, missing_work, score
from tests.oracle import Problem, column, dot, dropped_copy, make_problem, relative_error, row_gradients, write_manifest

SELF = ("self-tracin",)
N = 40  # train rows of ``examples()``
NETS = {"resnet": ("test_resnet", (3, 32, 32)), "vit": ("test_vit", (3, 160, 160)), "mlp": ("mlp:7", (5,))}


def norms(model: nn.Module, x: Tensor, y: Tensor, names: list[str] | None = None) -> np.ndarray:
    """|g_i|^2 by one backward pass a row."""
    return np.array([dot(g, g) for g in row_gradients(model, x, y, names)])


# -- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-4)])
def test_t06_norms_of_every_construct_equal_the_loop(name: str, precision: str, tolerance: float) -> None:
    """Several positions, weights called twice or tied or used outside of their module, and values of three kinds."""
    model, x, y = construct(name)
    expected = norms(model, x, y)
    point = Point(model, "all", None, precision, CPU)
    x = x.to(point.dtype) if x.is_floating_point() else x
    found = RowValues(point, CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)]).of(x, y)
    assert (found.shape, found.dtype) == ((len(x), 1), torch.float64)
    assert relative_error(found[:, 0].numpy(), expected) < tolerance


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A residual network with BatchNorm, a vision transformer, and a small perceptron."""
    name, shape = NETS[request.param]
    return make_problem(tmp_path_factory.mktemp(request.param), name, shape, train=5, val=2)


@pytest.mark.parametrize("params", ["all", "last"])
def test_the_score_is_minus_the_loops_squared_norm(net: Problem, params: str) -> None:
    point = Point(net.model, params, None, "fp64", CPU)
    expected = norms(net.model, *net.part("train"), list(point.selected))
    table = score(net.job(methods=SELF, params=params))
    assert relative_error(column(table), -expected) < 1e-12
    about = provenance(table.schema)
    assert (about["kind"], about["effect"], about["score_is"]) == ("ranking", False, "score_self-tracin")
    assert "effect" not in table.column_names
    assert about["target"]["fingerprint"] is None  # no target row is looked at


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_and_shards_change_nothing(net: Problem, batch_size: int) -> None:
    whole = column(score(net.job(methods=SELF)))
    parts = column(score(net.job(methods=SELF, batch_size=batch_size, shard_rows=2)))
    assert relative_error(parts, whole) < 1e-12


def test_float32_is_close_to_float64(net: Problem) -> None:
    double = column(score(net.job(methods=SELF)))
    assert relative_error(column(score(net.job(methods=SELF, precision="fp32"))), double) < 1e-4


def test_t33_logistic_closed_form(tmp_path: Path) -> None:
    """With two logits the gradient is (p - y) (-1, 1) x~^T: twice the (p - y)^2 (|x|^2 + 1) of a single logit."""
    p = Logistic(tmp_path)
    x, y = p.problem.part("train")
    with torch.no_grad():
        probability = p.problem.model(x).softmax(1)[:, 1]
    closed = (probability - y) ** 2 * (x.square().sum(1) + 1.0)
    assert relative_error(column(score(p.problem.job(methods=SELF))), -2.0 * closed.numpy()) < 1e-12


def test_t33_is_the_diagonal_of_ip(tmp_path: Path) -> None:
    """Ip with the row itself as its only target; 0.0 and -0.0 make it another payload of the same value."""
    problem = make_problem(tmp_path, "mlp:7", (5,), train=4, val=2)
    features = np.asarray(problem.payloads).copy()
    features[:, 4] = 0.0
    write_manifest(problem.manifest, features, problem.labels.numpy(), problem.splits.tolist(), problem.ids)
    value = column(score(problem.job(methods=SELF)))
    features[:, 4] = -0.0
    for k, row in enumerate(np.flatnonzero(problem.splits == "train").tolist()):
        label = problem.labels.numpy()[[row]]
        target = write_manifest(tmp_path / f"t{k}.parquet", features[[row]], label, ["val"], ["itself"])
        ip = column(score(problem.job(methods=("ip",), target=str(target))))
        assert value[k] == pytest.approx(-ip[k], rel=1e-12)


def test_a_loss_of_the_users_own_is_the_one_whose_gradient_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    smoothed: Callable[[Tensor, Tensor], Tensor] = lambda z, y: F.cross_entropy(  # noqa: E731
        z, y, reduction="none", label_smoothing=0.3
    )
    rows = [r for r in examples() if r.split == "train"]
    x = torch.tensor([r.features for r in rows], dtype=torch.float64)
    expected = []
    double = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    double.load_state_dict(model.state_dict())
    for row, r in zip(x, rows, strict=True):
        loss = smoothed(double(row[None]), torch.tensor([r.label])).sum()
        expected.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(double.parameters()))))
    asked = {"store": str(tmp_path), "method": "self-tracin", "precision": "fp64"}
    found = column(api.score(feature_table(rows), task=Task(model, None, smoothed), **asked))
    assert relative_error(found, -np.array(expected)) < 1e-12
    plain = column(api.score(feature_table(rows), task=Task(model, None), **asked))
    assert relative_error(plain, found) > 0.01


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_norm_of_a_row_predicted_with_confidence_is_exact(precision: str) -> None:
    """With a margin of 40, p_y - 1 is 0 even in float64; |g|^2 is 2 p^2 (|x|^2 + 1), p of the other label."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[20.0], [-20.0]]))
        model.bias.zero_()
    point = Point(model.eval(), "all", None, precision, CPU)
    x = torch.ones(1, 1, dtype=point.dtype)
    found = RowValues(point, CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)]).of(x, torch.tensor([0]))
    tolerance = 1e-12 if precision == "fp64" else 1e-5
    assert float(found[0, 0]) == pytest.approx(4.0 * np.exp(-80.0), rel=tolerance, abs=0.0)


def test_values_are_taken_at_dropped_parameters_where_the_point_has_them(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:7", (5,), train=6, val=2)
    x, y = problem.part("train")
    dropped = dropped_copy(problem.model, problem.spec, 3, 1, 0.3)
    point = Point(problem.model, "all", Dropout(3, 1, 0.3, True, "all", "all"), "fp64", CPU)
    found = RowValues(point, CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)]).of(x, y)[:, 0]
    assert relative_error(found.numpy(), norms(dropped, x, y)) < 1e-12


# -- what cannot be scored -------------------------------------------------------------------------------------------


class Drifting(nn.Module):
    """Logits are the same every time, but not the gradient of ``scale``: no module, run again, gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.head = nn.Linear(5, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        zero = self.scale - self.scale.detach()
        return self.head(self.first(x).tanh() * (1.0 + zero * torch.rand(4)))


def test_parameters_that_no_layer_reaches_are_named_with_a_way_out() -> None:
    point = Point(Drifting().double().eval(), "all", None, "fp64", CPU)
    values = RowValues(point, CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)])
    with pytest.raises(ModelError, match="scale") as error:
        values.of(torch.randn(6, 5, dtype=torch.float64), torch.zeros(6, dtype=torch.int64))
    assert "--params" in str(error.value.fix)
    last = Point(Drifting().double().eval(), "last", None, "fp64", CPU)
    found = RowValues(last, CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)])
    assert found.of(torch.randn(6, 5, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)).isfinite().all()


def test_a_row_without_finite_logits_has_no_value_and_spoils_no_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    x, y = torch.randn(5, 5, dtype=torch.float64), torch.arange(5) % 3
    expected = norms(model, x, y)
    x[1] = torch.inf
    found = RowValues(Point(model, "all", None, "fp64", CPU), CROSS_ENTROPY, [sum_over(SelfTracIn().of_block)]).of(
        x, y
    )[:, 0]
    good = [0, 2, 3, 4]
    assert torch.isnan(found[1])
    assert relative_error(found[good].numpy(), expected[good]) < 1e-12


@pytest.mark.parametrize("stored", [False, True], ids=["nothing stored", "logits stored"])
def test_rows_that_cannot_be_decoded_are_left_out(stored: bool, tmp_path: Path, digits_run: Path) -> None:
    """By the pass over rows where that comes first, else by this one."""
    table = digits_table()
    images = [row[:60] if k in (30, 44) else row for k, row in enumerate(table.column("image").to_pylist())]
    bad = write(with_column(table, "image", pa.array(images, pa.binary())), tmp_path / "bad.parquet")
    good = write(table.take([k for k in range(table.num_rows) if k not in (30, 44)]), tmp_path / "good.parquet")
    if stored:
        fill(job_of(good, digits_run, tmp_path / "store", spec=GradSpec(("loss",))))
    job = job_of(bad, digits_run, tmp_path / "store", spec=GradSpec(SELF), skip_bad=True)
    found = score(job)
    assert {"d0030", "d0044"} == {b.id for b in job.manifest.bad}
    expected = score(job_of(good, digits_run, None, spec=GradSpec(SELF)))
    assert found.column("id") == expected.column("id")
    assert relative_error(column(found), column(expected)) < 1e-5


# -- the memo law ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """Manifests of any rows at one checkpoint, with a store."""

    folder: Path
    run: Path
    written: int = 0

    def manifest(self, rows: list[Example]) -> Path:
        self.written += 1
        return write(feature_table(rows), self.folder / f"m{self.written}.parquet")

    def job(self, rows: list[Example], store: str | None = "store", **how: object):
        spec = GradSpec(SELF)
        where = None if store is None else self.folder / store
        return job_of(self.manifest(rows), self.run, where, **{"spec": spec, **how})  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


def test_relabelling_in_place_computes_exactly_those_rows(bench: Bench) -> None:
    job = bench.job(examples())
    assert fill(job) == 2 * N  # logits, and values
    before = column(score(job))
    rows = [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(examples())]
    job = bench.job(rows)
    (work,) = missing_work(job)
    (step,) = describe_plan(job, [work])["steps"]
    assert (work.rows, work.rows_in("values"), step["row_values_to_compute"]) == (0, 3, {"self-tracin": 3})
    assert fill(job) == 3
    after = column(score(job))
    assert np.flatnonzero(after != before).tolist() == [0, 4, 17]
    assert relative_error(after, column(score(bench.job(rows, None)))) < 1e-6
    assert fill(bench.job(rows)) == fill(bench.job(examples())) == 0  # the labels of before are stored too


def test_appending_computes_exactly_the_new_rows(bench: Bench) -> None:
    fill(bench.job(examples()))
    more = [Example(f"new{k}", draw_features(1000 + k), k % 3) for k in range(7)]
    again = [dataclasses.replace(r, id=f"again-{r.id}") for r in examples()[:5]]
    twins = [Example("twin-a", draw_features(2000), 0), Example("twin-b", draw_features(2000), 1)]
    rows = examples() + more + again + twins
    job = bench.job(rows)
    (work,) = missing_work(job)
    assert (work.rows, work.rows_in("values")) == (8, 9)  # twins are one payload and two rows
    assert fill(job) == 17
    assert relative_error(column(score(job)), column(score(bench.job(rows, None)))) < 1e-6


def test_other_parameters_are_other_values_and_other_methods_share_none(bench: Bench) -> None:
    fill(bench.job(examples()))
    assert fill(bench.job(examples(), spec=GradSpec(SELF, params="last"))) == N
    table = score(bench.job(examples(), spec=GradSpec(("ip", "self-tracin"))))
    alone = score(bench.job(examples()))
    assert np.array_equal(column(table, "score_self-tracin"), column(alone))


def test_a_stopped_pass_keeps_what_it_finished(bench: Bench) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    heard = Heard(stop, stop_at=3, stop_in="row gradients")
    with pytest.raises(KeyboardInterrupt):
        fill(bench.job(examples(), listener=heard, batch_size=8, shard_rows=8))
    (work,) = missing_work(bench.job(examples()))
    assert (work.rows, work.rows_in("values")) == (0, N - 24)
    assert fill(bench.job(examples())) == N - 24


def test_the_store_lists_verifies_and_collects_values(bench: Bench) -> None:
    before = column(score(bench.job(examples(), shard_rows=8, batch_size=8)))
    root = bench.folder / "store"
    (entry,) = [e for e in list_entries(root) if e.kind == "row_values"]
    assert (entry.files, entry.rows) == (5, N)
    assert "squared gradient norm" in entry.about
    kept = bench.job(examples()).train.payload_keys[10:]
    collect(root, None)
    assert fill(bench.job(examples())) == 0
    assert np.array_equal(column(score(bench.job(examples()))), before)
    collect(root, kept)
    (work,) = missing_work(bench.job(examples()))
    assert (work.rows, work.rows_in("values")) == (10, 10)
    (shard,) = (root / "row_values").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    files, damaged = verify(root)
    assert files > 1
    assert len(damaged) == 1
    assert missing_work(bench.job(examples()))[0].rows_in("values") == N


def test_a_dry_run_says_how_many_and_a_warm_run_imports_no_torch(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    asked = ["score", tabular, "--checkpoint", tabular_run, "--method", "self-tracin"]
    ran = call_cli(*asked, "--dry-run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["row_values_to_compute"] == {"self-tracin": N}
    assert ran.json["seconds"] is not None
    cold = call_cli(*asked, "-o", "cold.parquet", cwd=tmp_path)
    assert cold.code == 0, cold.err
    run_without_torch(*asked, "-o", "warm.parquet", cwd=tmp_path)
    assert (tmp_path / "cold.parquet").read_bytes() == (tmp_path / "warm.parquet").read_bytes()
