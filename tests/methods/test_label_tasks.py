"""Every method on labels that are numbers, or several a row, against dense float64 references.

Reference: rows' gradients, Jacobians and output Hessians by plain autograd of plain formulas, one row at a time; the
Gauss-Newton matrix from them, solved densely; refits without a row in closed form (methods.md T13).
Behavioural: scores are warm the second time, and what only classes have is refused with the way out.

    python -m pytest tests/methods/test_label_tasks.py
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.errors import ManifestError, UsageError
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec
from tests.cases import Heard, column, job_of, write
from tests.opened import score
from tests.oracle import relative_error, save_checkpoint

torch.set_num_threads(1)
TRAIN, VAL, D, L2, DAMPING = 30, 12, 4, 0.02, 0.05
DELTA = 0.8
Floats = NDArray[np.float64]


def huber(z: Tensor, y: Tensor) -> Tensor:
    r = (z[0] - y).abs()
    return r**2 / 2 if float(r.detach()) <= DELTA else DELTA * (r - DELTA / 2)


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda z, y: (z[0] - y) ** 2 / 2,
    f"huber:{DELTA}": huber,
    "binary": lambda z, y: F.binary_cross_entropy_with_logits(z, y.double(), reduction="sum"),
}
MODELS = [
    ("linear", "squared"),
    ("mlp:5", "squared"),
    ("mlp:5", f"huber:{DELTA}"),
    ("linear", "binary"),
    ("mlp:5", "binary"),
]


@dataclass(frozen=True, eq=False)
class Case:
    """A manifest, a checkpoint, and the same model and rows in float64."""

    folder: Path
    manifest: Path
    weights: Path
    model: nn.Module
    loss: str
    x: Tensor
    y: Tensor

    def pieces(self, k: int) -> tuple[Floats, Floats, Floats]:
        """Gradient [d], Jacobian [C, d] and output Hessian [C, C] of row k, by autograd over that row alone."""
        z = self.model(self.x[k][None])[0]
        parameters = list(self.model.parameters())
        rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in z]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
        at = z.detach()
        slope = torch.autograd.functional.jacobian(lambda v: PLAIN[self.loss](v, self.y[k]), at).numpy()
        bend = torch.autograd.functional.hessian(lambda v: PLAIN[self.loss](v, self.y[k]), at).numpy()
        return slope @ jacobian, jacobian, bend

    def dense(self) -> tuple[Floats, Floats, Floats]:
        """Rows' gradients [n, d] of the train rows, the Gauss-Newton matrix [d, d], and q [d]."""
        train = [self.pieces(k) for k in range(TRAIN)]
        q = np.mean([self.pieces(k)[0] for k in range(TRAIN, TRAIN + VAL)], axis=0)
        ggn = np.mean([j.T @ b @ j for _, j, b in train], axis=0)
        return np.stack([g for g, _, _ in train]), ggn, q

    def scores(self, *methods: str, **more: Any) -> pa.Table:
        """The score table; curvature methods have the l2 and damping of the reference."""
        options: dict[str, Any] = {m: {"damping": DAMPING, "l2": L2} for m in methods if m in CURVED}
        for name, given in more.pop("options", {}).items():
            options[name] = {**options.get(name, {}), **given}
        spec = GradSpec(methods, options=options, precision="fp64", **more)
        return score(job_of(self.manifest, self.weights, self.folder / "store", spec=spec))


CURVED = ("exact", "cg", "arnoldi", "lissa", "ekfac", "self-lissa")


def make(folder: Path, name: str, loss: str, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    n = TRAIN + VAL
    x = rng.normal(size=(n, D)).astype(np.float32)
    several = loss == "binary"
    y: Any = rng.integers(0, 2, (n, 3)).astype(np.int8) if several else x[:, 0] + rng.normal(size=n)
    spec = ModelSpec(
        name, 3 if several else 1, "features", (D,), classes=("a", "b", "c") if several else None, loss=loss
    )
    torch.manual_seed(seed)
    model = build_model(spec).double()
    table = pa.table(
        {
            "id": [f"r{k}" for k in range(n)],
            "features": pa.array(x.tolist(), pa.list_(pa.float32())),
            "label": pa.array(y.tolist(), pa.list_(pa.int8()) if several else pa.float64()),
            "split": ["train"] * TRAIN + ["val"] * VAL,
        }
    )
    task = {"task": "multi-label", "classes": json.dumps(["a", "b", "c"])} if several else {"task": "regression"}
    manifest = write(table.replace_schema_metadata(task), folder / "m.parquet")
    weights = save_checkpoint(folder / "w.safetensors", model, spec)
    return Case(folder, manifest, weights, model, loss, torch.from_numpy(x).double(), torch.from_numpy(y))


@pytest.fixture(scope="module", params=MODELS, ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp("labels"), *request.param)


def test_methods_equal_the_dense_reference(case: Case) -> None:
    g, ggn, q = case.dense()
    whole = ggn + (L2 + DAMPING) * np.eye(len(q))
    solved = g @ np.linalg.solve(whole, q)
    options: dict[str, Any] = {
        "cg": {"tolerance": 1e-12}, "arnoldi": {"k": len(q), "r": "all"}, "self-lissa": {"solve": "dense"},
        "lissa": {"batch": TRAIN, "tail": 0.0, "depth": 1000, "repeats": 1},
    }  # fmt: skip
    methods = ("ip", "exact", "cg", "lissa", "self-tracin", "self-lissa", "loss", "margin")
    found = case.scores(*methods, options=options)
    assert relative_error(column(found, "score_ip_utility"), g @ q) < 1e-11
    for method in ("exact", "cg", "lissa"):
        assert relative_error(column(found, f"score_{method}_utility"), solved) < 1e-8, method
    assert relative_error(-column(found, "score_self-tracin"), (g * g).sum(1)) < 1e-11
    own = np.einsum("nd,de,ne->n", g, np.linalg.inv(whole), g)
    assert relative_error(-column(found, "score_self-lissa"), own) < 1e-9
    losses = [
        float(PLAIN[case.loss](case.model(x[None])[0].detach(), y))
        for x, y in zip(case.x[:TRAIN], case.y, strict=False)
    ]
    assert relative_error(column(found, "loss"), np.array(losses)) < 1e-12
    assert "best_label" not in found.column_names
    assert "model_label" not in found.column_names
    assert ("prediction" in found.column_names) == (case.loss != "binary")


def test_the_hessian_equals_the_dense_reference(case: Case) -> None:
    g, _, q = case.dense()
    parameters = {n: p.detach() for n, p in case.model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def risk(theta: Tensor) -> Tensor:
        parts = {n: v.view_as(p) for (n, p), v in zip(parameters.items(), theta.split(sizes), strict=True)}
        z = torch.func.functional_call(case.model, parts, (case.x[:TRAIN],))
        return torch.stack([PLAIN[case.loss](a, b) for a, b in zip(z, case.y, strict=False)]).mean()

    theta = torch.cat([p.flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(risk, theta).numpy() + 1.5 * np.eye(len(q))
    options = {"exact": {"mode": "damp", "damping": 1.5 - L2}}
    found = column(case.scores("exact", options=options))
    assert relative_error(found, g @ np.linalg.solve(hessian, q)) < 1e-9


def test_datainf_equals_its_formula(case: Case) -> None:
    g, _, q = case.dense()
    ends = np.cumsum([0, *(p.numel() for p in case.model.parameters())])
    u = np.zeros_like(q)
    for a, b in itertools.pairwise(ends.tolist()):
        part, lam = g[:, a:b], L2 + DAMPING
        c = (part @ q[a:b]) / (lam + (part * part).sum(1))
        u[a:b] = (q[a:b] - (c[:, None] * part).mean(0)) / lam
    found = column(case.scores("datainf", options={"datainf": {"damping": DAMPING, "l2": L2}}))
    assert relative_error(found, g @ u) < 1e-9


def test_ekfac_with_exact_labels_has_the_diagonal_of_the_rotated_fisher(case: Case) -> None:
    """T22, T24: of one linear layer with squared error it is the Gauss-Newton matrix, with sampled labels too."""
    g, ggn, q = case.dense()
    options = {"ekfac": {"labels": "exact", "fit_sample": None}}
    found = column(case.scores("ekfac", options=options))
    if len(list(case.model.parameters())) == 2 and case.loss == "squared":
        expected = g @ np.linalg.solve(ggn + (L2 + DAMPING) * np.eye(len(q)), q)
        assert relative_error(found, expected) < 1e-9
        drawn = column(case.scores("ekfac", options={"ekfac": {"fit_sample": None}}))
        assert relative_error(drawn, expected) < 1e-9
    else:
        many = column(case.scores("ekfac", options={"ekfac": {"draws": 100, "fit_sample": None}}))
        assert np.corrcoef(found, many)[0, 1] > 0.98


def test_relative_scores_and_rows_gradients(case: Case) -> None:
    g, _, q = case.dense()
    found = column(case.scores("ip", relative=True))
    assert relative_error(found, (g @ q) / np.sqrt((g * g).sum(1))) < 1e-10


def test_leaving_a_row_out_of_ridge_is_the_effect_over_one_less_the_leverage(tmp_path: Path) -> None:
    """T13 on scikit-learn's diabetes: with the divisor kept, exact to rounding."""
    from sklearn.datasets import load_diabetes

    from influence_cli.model.train.recipe import Recipe
    from influence_cli.settings import Inputs
    from influence_cli.stages.retrain.request import RetrainRequest
    from influence_cli.stages.retrain.retrain import retrain

    features, progress = load_diabetes(return_X_y=True)
    features, splits = features.astype(np.float32), ["train"] * 300 + ["val"] * 70 + ["test"] * 72
    table = pa.table(
        {
            "id": [f"r{k}" for k in range(442)],
            "features": pa.array(features.tolist(), pa.list_(pa.float32())),
            "label": progress,
            "split": splits,
        }
    )
    manifest = write(table.replace_schema_metadata({"task": "regression"}), tmp_path / "m.parquet")
    decay = 0.01
    asked = RetrainRequest(
        Inputs(str(manifest), model="linear"), str(tmp_path / "run"), device="cpu", raw_features=True
    )
    metrics = retrain(asked, Recipe(optimizer="lbfgs", weight_decay=decay))
    x = np.hstack([features.astype(np.float64), np.ones((442, 1))])
    train, val, test = x[:300], x[300:370], x[370:]
    matrix = train.T @ train / 300 + decay * np.eye(11)
    theta = np.linalg.solve(matrix, train.T @ progress[:300] / 300)
    mean = metrics["arms"]["all rows"]["mean"]
    assert mean["rmse"]["mean"] == pytest.approx(np.sqrt(((test @ theta - progress[370:]) ** 2).mean()), rel=1e-6)
    spec = GradSpec(("exact",), options={"exact": {"damping": 0.0}}, precision="fp64")
    found = column(score(job_of(manifest, tmp_path / "run", tmp_path / "store", spec=spec)), "effect")
    leverage = np.einsum("nd,de,ne->n", train, np.linalg.inv(matrix), train) / 300
    for k in (0, 17, 150, 299):
        kept = np.arange(300) != k
        without = np.linalg.solve(
            train[kept].T @ train[kept] / 300 + decay * np.eye(11), train[kept].T @ progress[:300][kept] / 300
        )
        slope = ((val @ theta - progress[300:370])[:, None] * val).mean(0)
        moved = slope @ (without - theta)
        assert found[k] / (1.0 - leverage[k]) == pytest.approx(moved, rel=1e-5)


def test_what_only_classes_have_is_refused(tmp_path: Path) -> None:
    case = make(tmp_path, "linear", "squared")
    for objective in ("fairness", "eo-loss"):
        with pytest.raises(UsageError, match="about predicted classes, and the labels are numbers"):
            case.scores("ip", objectives=(objective,))
    with pytest.raises(UsageError, match="about predicted classes, and the labels are numbers"):
        case.scores("ip", objectives=("target-margin",))
    with pytest.raises(UsageError, match="linear attack"):
        case.scores("ip", objectives=("robustness",))
    found = case.scores("ip", objectives=("robustness",), options={"robustness": {"attack": "fgsm"}})
    assert np.isfinite(column(found)).all()
    other = make(tmp_path / "b", "linear", "binary")
    with pytest.raises(ManifestError, match=r"its labels are numbers .*the checkpoint's loss is binary"):
        score(job_of(case.manifest, other.weights, None, spec=GradSpec(("ip",))))
    heard = Heard()
    with pytest.raises(UsageError, match="--loss huber"):
        score(job_of(case.manifest, case.weights, None, listener=heard, spec=GradSpec(("ip",)), loss="huber:2"))
