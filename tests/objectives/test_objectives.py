"""Objectives about groups and attacks (methods.md 3.2, 3.3, 3.5; T47, T48, T57).

Reference: every direction against central differences of Phi, computed here from the model's own outputs, along three
random unit vectors on an MLP, a ResNet with BatchNorm and a ViT; the weighted backward pass against autograd of the
whole of Phi; signal-to-noise against per-row gradients; the bootstrap standard error against the formula.
Behavioural: options, groups and attacks name directions; cells that are too small, one group, one label and target rows
that are test rows are refused.

    python -m pytest tests/objectives/test_objectives.py
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from influence_cli.data.tables import provenance
from influence_cli.engines.attacked import attack, attacked_input
from influence_cli.engines.attacks import Attack
from influence_cli.errors import ManifestError, ModelError, UsageError
from influence_cli.events import SILENT
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.grads.group_parts import parity_warnings, undecided
from influence_cli.stages.run.objective_inputs import target_groups
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.score.noise import describe_noise, is_noise
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import Heard, call_cli, verify
from tests.opened import Opened, describe_plan, direction_noise, fill, missing_work, opened, score
from tests.oracle import Problem, column, flat, loop_scores, make_problem, relative_error

GROUPS = ("a", "b")
Phi = Callable[[Tensor], Tensor]  # logits of the target rows to Phi


def with_groups(problem: Problem, groups: list[Any], name: str = "group", labels: Any = None) -> Problem:
    """The problem's manifest with a column of groups, in place."""
    table = pq.read_table(problem.manifest)
    if name in table.column_names:
        table = table.drop_columns([name])
    table = table.append_column(name, pa.array(groups))
    if labels is not None:
        table = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
        problem.labels[:] = torch.tensor(labels)
    pq.write_table(table, problem.manifest)
    return problem


def grouped_problem(folder: Path, model: str, shape: tuple[int, ...], classes: int, val: int, groups: int) -> Problem:
    """A problem whose target rows are dealt to (group, label) cells of at least ten rows each."""
    problem = make_problem(folder, model, shape, classes=classes, train=12, val=val)
    labels, kind = problem.labels.numpy().copy(), np.zeros(len(problem.ids), dtype=np.int64)
    rows = np.flatnonzero(problem.splits == "val")
    labels[rows] = np.arange(len(rows)) % classes
    kind[rows] = (np.arange(len(rows)) // classes) % groups
    return with_groups(problem, [f"g{k}" for k in kind], labels=labels.tolist())


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return grouped_problem(tmp_path_factory.mktemp("mlp"), "mlp:7", (5,), 2, 90, 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return grouped_problem(tmp_path_factory.mktemp("three"), "mlp:7", (5,), 3, 120, 3)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return grouped_problem(tmp_path_factory.mktemp("resnet"), "test_resnet", (3, 32, 32), 2, 44, 2)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return grouped_problem(tmp_path_factory.mktemp("vit"), "test_vit", (3, 32, 32), 2, 44, 2)


def groups_of(problem: Problem) -> np.ndarray[Any, Any]:
    """Groups of the target rows, in the manifest's order."""
    return np.array(pq.read_table(problem.manifest)["group"].to_pylist())[problem.splits == "val"]


def measured(job: Opened, objective: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """q and what is known of it."""
    fill(job)
    name = job.direction(job.members[0], objective)
    q, meta = job.store.directions.read(name), job.store.directions.meta(name)
    assert q is not None
    assert meta is not None
    return {n: torch.from_numpy(np.array(t)) for n, t in q.items()}, meta


def smooth(d: Tensor, tau: float = 1e-3) -> Tensor:
    return (d * d + tau * tau).sqrt()


def oracle(objective: str, y: Tensor, groups: np.ndarray[Any, Any], options: dict[str, Any]) -> Phi:
    """Phi as methods.md writes it, by loops over groups, labels and classes."""
    names, tau = sorted(set(groups)), options.get("tau", 1e-3)

    def gap(values: Tensor, keep: Tensor) -> Tensor:
        mu = [values[keep & torch.from_numpy(groups == g)].mean() for g in names]
        if options.get("signed"):
            return mu[1] - mu[0]
        sizes = torch.stack([smooth(b - a, tau) for a, b in itertools.combinations(mu, 2)])
        if options.get("aggregate") == "max":
            return 0.02 * torch.logsumexp(sizes / 0.02, 0)
        if options.get("aggregate") == "variance":
            m = torch.tensor([float((keep.numpy() & (groups == g)).sum()) for g in names]).double()
            means = torch.stack(mu)
            share = m / m.sum()
            return (share * (means - (share * means).sum()) ** 2).sum()
        return sizes.mean()

    def phi(z: Tensor) -> Tensor:
        p, every = z.softmax(1), torch.ones(len(y), dtype=torch.bool)
        classes = [options["favourable"]] if "favourable" in options else [1] if z.shape[1] == 2 else range(z.shape[1])
        if objective == "eo-loss":
            loss = F.cross_entropy(z, y, reduction="none")
            mu = [loss[(y == 1) & torch.from_numpy(groups == g)].mean() for g in names]
            return mu[0] - mu[1]
        out: list[Tensor] = []
        for c in classes:
            inside, outside = y == c, y != c
            if objective == "fairness":
                out.append(gap(p[:, c], every))
            elif objective == "equal-opportunity":
                out.append(gap(p[:, c], inside))
            else:
                both = torch.stack([gap(p[:, c], inside), gap(p[:, c], outside)])
                out.append(both.max() if options.get("worst") else both.sum())
        return torch.stack(out).mean()

    return phi


def check(problem: Problem, objective: str, options: dict[str, Any], inputs: Tensor | None = None) -> None:
    """q . r against central differences of Phi for three random unit r, and Phi and q against autograd."""
    x, y = problem.part("val")
    x = x if inputs is None else inputs
    phi = (
        (lambda z: F.cross_entropy(z, y))
        if objective in ("utility", "robustness")
        else oracle(objective, y, groups_of(problem), options)
    )
    q, meta = measured(problem.job(objectives=(objective,), options={objective: options}), objective)
    theta = {n: p.detach().clone() for n, p in problem.model.named_parameters()}
    at = {n: p.clone().requires_grad_() for n, p in theta.items()}
    value = phi(functional_call(problem.model, at, (x,)))
    expected = dict(zip(at, torch.autograd.grad(value, list(at.values())), strict=True))
    assert meta["phi"] == pytest.approx(value.item(), rel=1e-10, abs=1e-12)
    assert relative_error(flat(q).numpy(), flat(expected).numpy()) < 1e-10
    generator = torch.Generator().manual_seed(5)
    h = 1e-5
    with torch.no_grad():
        for _ in range(3):
            r = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in theta.items()}
            norm = flat(r).norm()
            along = float(flat(q) @ flat(r) / norm)
            up, down = (
                phi(functional_call(problem.model, {n: p + s * h / norm * r[n] for n, p in theta.items()}, (x,)))
                for s in (1, -1)
            )
            assert along == pytest.approx(float(up - down) / (2 * h), rel=1e-6, abs=1e-6 * meta["norm"])


# -- directions (T47, T48) -----------------------------------------------------------------------------------------

ARCHITECTURES = ("mlp", "resnet", "vit")
EVERY = ("utility", "fairness", "equal-opportunity", "equalised-odds", "eo-loss")


@pytest.mark.parametrize("objective", EVERY)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_directions_are_finite_differences(objective: str, architecture: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(architecture), objective, {})


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_robustness_is_the_gradient_on_constant_inputs(kind: str, architecture: str, tmp_path: Path) -> None:
    name, shape = {"mlp": ("mlp:7", (5,))}.get(architecture, (f"test_{architecture}", (3, 32, 32)))
    problem = make_problem(tmp_path, name, shape, classes=2, train=3, val=12)
    options = {"attack": kind, "steps": 2}
    job = problem.job(objectives=("robustness",), options={"robustness": options})
    fill(job)
    moved = job.attacks("robustness").read(job.target.row_keys)["input"]
    spec, order = problem.spec, np.argsort(job.target.index)
    check(problem, "robustness", options, attacked_input(torch.from_numpy(moved[order]), spec))
    x, y = problem.part("val")
    pixels = x if spec.kind == "features" else x * torch.tensor(spec.std).view(1, 3, 1, 1).double()
    if spec.kind == "image":
        pixels = ((pixels + torch.tensor(spec.mean).view(1, 3, 1, 1).double()) * 255).round().to(torch.uint8)
    again = attack(problem.model, spec, Attack(**options), pixels, y, job.target.row_keys[order])
    assert (again - torch.from_numpy(moved[order])).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("fairness", {"tau": 0.2}),
        ("fairness", {"aggregate": "max"}),
        ("fairness", {"aggregate": "variance"}),
        ("fairness", {"favourable": 2}),
        ("equal-opportunity", {"favourable": 0}),
        ("equalised-odds", {"worst": True}),
        ("equalised-odds", {"favourable": 1, "aggregate": "max"}),
        ("equalised-odds", {}),
        ("fairness", {}),
    ],
)
def test_three_groups_and_three_classes(objective: str, options: dict[str, Any], three: Problem) -> None:
    check(three, objective, options)


def test_signed_and_absolute_differ_by_a_factor(mlp: Problem) -> None:
    check(mlp, "fairness", {"signed": True})
    signed, about = measured(mlp.job(objectives=("fairness",), options={"fairness": {"signed": True}}), "fairness")
    plain, meta = measured(mlp.job(objectives=("fairness",)), "fairness")
    factor = about["phi"] / meta["phi"]
    assert abs(factor) == pytest.approx(1.0, abs=0.1)
    assert relative_error(flat(plain).numpy(), factor * flat(signed).numpy()) < 1e-10


def test_objectives_of_one_run_are_those_of_runs_of_their_own(mlp: Problem) -> None:
    names = (*EVERY, "robustness")
    together = mlp.job(objectives=names)
    table = score(together)
    for name in names:
        alone = mlp.job(objectives=(name,))
        assert alone.direction(alone.members[0], name) == together.direction(together.members[0], name)
        q, meta = measured(alone, name)
        shared, about = measured(together, name)
        assert relative_error(flat(shared).numpy(), flat(q).numpy()) < 1e-12
        assert about == meta
        x, y = mlp.part("train")
        expected = loop_scores(mlp.model, x, y, q)
        assert relative_error(column(table, f"score_{name}"), expected) < 1e-9
    parts = provenance(table.schema)["noise"]["equalised-odds"]["parts"]
    assert [t["term"] for t in parts["terms"]] == ["class 1, label 1", "class 1, label 0"]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_and_order_change_nothing(batch_size: int, three: Problem) -> None:
    q, meta = measured(three.job(objectives=("equalised-odds",)), "equalised-odds")
    other, about = measured(three.job(objectives=("equalised-odds",), batch_size=batch_size), "equalised-odds")
    assert relative_error(flat(other).numpy(), flat(q).numpy()) < 1e-12
    assert about["snr"] == pytest.approx(meta["snr"], rel=1e-9)


# -- noise and parts -----------------------------------------------------------------------------------------------


def test_signal_to_noise_is_that_of_rows_within_their_groups(mlp: Problem) -> None:
    """sum_k m_k V_k with V_k between 8 buckets a group, dealt in order of key, from per-row gradients by hand."""
    job = mlp.job(objectives=("fairness",))
    q, meta = measured(job, "fairness")
    x, _ = mlp.part("val")
    groups, keys = groups_of(mlp), [k.tobytes() for k in job.target.row_keys]
    p = mlp.model(x).softmax(1)[:, 1]
    parameters = list(mlp.model.parameters())
    names = [n for n, _ in mlp.model.named_parameters()]
    rows = [dict(zip(names, torch.autograd.grad(v, parameters, retain_graph=True), strict=True)) for v in p]
    gap = (p[groups == "g1"].mean() - p[groups == "g0"].mean()).item()
    variance = 0.0
    for group, sign in (("g1", 1.0), ("g0", -1.0)):
        chosen = sorted(np.flatnonzero(groups == group).tolist(), key=lambda k: keys[k])
        m = len(chosen)
        terms = torch.stack([flat(rows[k]) * sign * gap / (gap**2 + 1e-6) ** 0.5 / m for k in chosen])
        means = [terms[b::8].mean(0) for b in range(8)]
        sizes = [len(terms[b::8]) for b in range(8)]
        between = sum(s * float(((v - terms.mean(0)) ** 2).sum()) for s, v in zip(sizes, means, strict=True)) / 7
        variance += m * between
    assert meta["snr"] == pytest.approx(float((flat(q) ** 2).sum()) / variance, rel=1e-9)


def test_halves_are_weighted_as_the_whole_and_give_a_reliability(mlp: Problem) -> None:
    job = mlp.job(objectives=("fairness",))
    noise = direction_noise(job) if fill(job) >= 0 else {}
    member = job.members[0]
    half = job.store.directions.read(job.direction(member, "fairness", half=True))
    assert half is not None
    x, _ = mlp.part("val")
    groups, keys = groups_of(mlp), [k.tobytes() for k in job.target.row_keys]
    chosen = {g: sorted(np.flatnonzero(groups == g).tolist(), key=lambda k: keys[k]) for g in ("g0", "g1")}
    p = mlp.model(x).softmax(1)[:, 1]
    gap = (p[chosen["g1"]].mean() - p[chosen["g0"]].mean()).item()
    # buckets b, b + 8, ... of which the even ones make the half: every second row of a group
    even = p[chosen["g1"][::2]].mean() - p[chosen["g0"][::2]].mean()
    factor = gap / (gap**2 + 1e-6) ** 0.5
    parameters = dict(mlp.model.named_parameters())
    expected = dict(zip(parameters, torch.autograd.grad(factor * even, list(parameters.values())), strict=True))
    found = {n: torch.from_numpy(np.array(t)) for n, t in half.items()}
    assert relative_error(flat(found).numpy(), flat(expected).numpy()) < 1e-10
    assert -1.0 <= noise["fairness"]["reliability"] <= 1.0


def test_parts_have_sizes_means_gap_and_its_standard_error(mlp: Problem) -> None:
    job = mlp.job(objectives=("fairness",))
    _, meta = measured(job, "fairness")
    (term,) = meta["parts"]["terms"]
    p, groups = mlp.model(mlp.part("val")[0]).softmax(1)[:, 1].detach().numpy(), groups_of(mlp)
    for g in ("g0", "g1"):
        assert term["groups"][g]["rows"] == int((groups == g).sum())
        assert term["groups"][g]["mean"] == pytest.approx(p[groups == g].mean(), abs=1e-12)
    assert term["gap"] == pytest.approx(p[groups == "g1"].mean() - p[groups == "g0"].mean(), abs=1e-12)
    se = sum(p[groups == g].var() / (groups == g).sum() for g in ("g0", "g1")) ** 0.5
    assert term["gap_se"] == pytest.approx(se, rel=0.25)  # 200 draws: 5 % is its own standard error


def test_parity_is_said(mlp: Problem) -> None:
    job = mlp.job(objectives=("fairness",), options={"fairness": {"tau": 5.0}})
    fill(job)
    noise = direction_noise(job)
    assert undecided(noise["fairness"])
    assert "already at parity (|D| < tau = 5)" in parity_warnings(noise)[0]
    noise["fairness"]["parts"]["at_parity"] = False
    noise["fairness"]["parts"]["terms"][0]["gap_se"] = 9.0
    assert "below its standard error" in parity_warnings(noise)[0]
    noise["fairness"]["parts"]["terms"][0]["gap_se"] = 0.0
    assert parity_warnings(noise) == []


def test_a_gap_whose_sign_is_chance_is_no_ground_for_a_gate() -> None:
    term = {"gap": 0.01, "gap_se": 0.02}
    entry: dict[str, Any] = {"snr": 50.0, "reliability": 0.9, "parts": {"at_parity": False, "terms": [term]}}
    assert is_noise(entry)
    assert "D within its standard error" in describe_noise(entry)
    assert not is_noise({**entry, "parts": {"at_parity": False, "terms": [term, {"gap": -0.3, "gap_se": 0.02}]}})
    assert not is_noise({"snr": 50.0, "reliability": 0.9})


def test_the_plan_counts_the_passes_over_the_target(mlp: Problem) -> None:
    """A forward and a backward (twice that) for means of rows; a forward for group means, and as much a group gap."""
    for objectives, passes in ((("utility",), 3), (("fairness",), 4), (("utility", "fairness", "eo-loss"), 10)):
        job = mlp.job(objectives=objectives)
        assert describe_plan(job, missing_work(job))["steps"][0]["target_passes"] == passes


def test_a_score_table_is_replayed_with_its_groups(mlp: Problem, tmp_path: Path) -> None:
    table = pq.read_table(mlp.manifest)
    pq.write_table(table.append_column("sex", table.column("group")).drop_columns(["group"]), tmp_path / "m.parquet")
    inputs = Inputs(str(tmp_path / "m.parquet"), checkpoint=str(mlp.checkpoint), group="sex")
    runtime = Runtime(str(tmp_path / "store"), device="cpu")
    job = opened(inputs, GradSpec(("ip",), objectives=("fairness",)), runtime)
    again = Opened(*reopen(provenance(score(job).schema), runtime, SILENT, source="the table"))
    member = job.members[0]
    assert again.direction(member, "fairness") == job.direction(member, "fairness")


# -- names ---------------------------------------------------------------------------------------------------------


def test_groups_and_options_name_a_direction_and_the_column_does_not(mlp: Problem, tmp_path: Path) -> None:
    def name(path: Path | None = None, **options: Any) -> str:
        job = mlp.job(objectives=("fairness",), manifest=path, options={"fairness": options})
        return job.direction(job.members[0], "fairness")

    table = pq.read_table(mlp.manifest)
    groups = table["group"].to_pylist()
    path = tmp_path / "more.parquet"
    other = [("g0" if k % 2 else "g1") for k in range(len(groups))]
    pq.write_table(table.append_column("sex", pa.array(groups)).append_column("odd", pa.array(other)), path)
    assert name(path, column="sex") == name()
    assert len({name(), name(path, column="odd"), name(tau=0.01), name(aggregate="max")}) == 4
    plain = mlp.job()
    assert plain.direction(plain.members[0], "utility") == mlp.job(manifest=path).direction(plain.members[0], "utility")


@pytest.mark.parametrize("values", [[True, False], [3, 11], ["x", "y"]])
def test_groups_may_be_text_integers_or_booleans(values: list[Any], mlp: Problem, tmp_path: Path) -> None:
    table = pq.read_table(mlp.manifest)
    kinds = [values[g == "g1"] for g in table["group"].to_pylist()]
    pq.write_table(table.append_column("kind", pa.array(kinds)), tmp_path / "kind.parquet")
    job = mlp.job(
        objectives=("fairness",), manifest=tmp_path / "kind.parquet", options={"fairness": {"column": "kind"}}
    )
    assert job.groups["fairness"].names == tuple(str(v) for v in sorted(values))


def test_an_attack_is_made_once_and_shared_by_members_and_methods(mlp: Problem) -> None:
    options = {"ip-ensemble": {"members": 3}, "robustness": {"attack": "fgsm"}}
    job = mlp.job(methods=("ip-ensemble", "ip"), objectives=("robustness",), options=options)
    score(job)
    folders = list((job.store.root / "attacks").iterdir())
    assert [f.name for f in folders] == [job.attack("robustness")]
    assert sum(e.rows or 0 for e in list_entries(job.store.root) if e.kind == "attacks") == len(job.target)
    assert [e.about for e in list_entries(job.store.root) if e.kind == "attacks"] == ["mlp:7, fgsm eps 0.1"]
    before = {p: p.stat().st_mtime_ns for p in folders[0].glob("*.safetensors")}
    again = mlp.job(
        store=job.store.root.name, methods=("ip",), params="last", objectives=("robustness",), options=options
    )
    score(again)
    assert {p: p.stat().st_mtime_ns for p in folders[0].glob("*.safetensors")} == before
    metas = [j.store.directions.meta(j.direction(j.plain_member(), "robustness")) for j in (job, again)]
    digests = [m["parts"]["attack"]["digest"] for m in metas if m is not None]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    weaker = mlp.job(objectives=("robustness",), options={"robustness": {"attack": "fgsm", "eps": 0.01}})
    assert weaker.attack("robustness") != job.attack("robustness")


def test_damaged_attacks_are_made_again_and_collected_with_their_rows(mlp: Problem) -> None:
    job = mlp.job(objectives=("robustness",))
    q, _ = measured(job, "robustness")
    (shard,) = (job.store.root / "attacks").rglob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 1
    shard.write_bytes(bytes(raw))
    assert len(verify(job.store.root)[1]) == 1
    (job.store.root / "directions" / f"{job.direction(job.members[0], 'robustness')}.safetensors").unlink()
    again, _ = measured(mlp.job(store=job.store.root.name, objectives=("robustness",)), "robustness")
    assert relative_error(flat(again).numpy(), flat(q).numpy()) == 0.0
    collect(job.store.root, job.target.payload_keys)
    assert sum(e.rows or 0 for e in list_entries(job.store.root) if e.kind == "attacks") == len(job.target)
    collect(job.store.root, job.train.payload_keys)
    assert sum(e.rows or 0 for e in list_entries(job.store.root) if e.kind == "attacks") == 0


# -- what is refused -----------------------------------------------------------------------------------------------

Change = Callable[[list[str], list[int], np.ndarray[Any, Any]], None]  # groups and labels in place, at target rows


def refused(
    problem: Problem,
    tmp_path: Path,
    change: Callable[[list[str], list[int], np.ndarray[Any, Any]], None],
    objective: str,
) -> str:
    """The message where the target's groups and labels were changed so."""
    table = pq.read_table(problem.manifest)
    groups, labels = table["group"].to_pylist(), table["label"].to_pylist()
    change(groups, labels, np.flatnonzero(problem.splits == "val"))
    table = table.set_column(table.column_names.index("group"), "group", pa.array(groups, pa.string()))
    table = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ManifestError) as error:
        problem.job(objectives=(objective,), manifest=tmp_path / "bad.parquet")
    return str(error.value)


def test_small_cells_one_group_one_label_and_no_groups_are_refused(mlp: Problem, tmp_path: Path) -> None:
    def few(groups: list[str], labels: list[int], val: np.ndarray[Any, Any]) -> None:
        cell = [k for k in val if groups[k] == "g1" and labels[k] == 1]
        for k in cell[9:]:
            groups[k] = "g0"

    def one_group(groups: list[str], labels: list[int], val: np.ndarray[Any, Any]) -> None:
        for k in val:
            groups[k] = "g0"

    def one_label(groups: list[str], labels: list[int], val: np.ndarray[Any, Any]) -> None:
        for k in val:
            labels[k] = 1

    def none(groups: list[Any], labels: list[int], val: np.ndarray[Any, Any]) -> None:
        for k in val:
            groups[k] = None

    message = refused(mlp, tmp_path, few, "equal-opportunity")
    assert "9 target rows in the cell (group g1, label 1), and a mean needs at least 10" in message
    assert "--group COLUMN" in message
    assert "every target row is of one group, g0" in refused(mlp, tmp_path, one_group, "fairness")
    assert "the label of every target row is 1" in refused(mlp, tmp_path, one_label, "equalised-odds")
    assert "no target row has a group" in refused(mlp, tmp_path, none, "fairness")


@pytest.mark.parametrize("objective", ["fairness", "equalised-odds", "eo-loss"])
def test_rows_without_a_group_are_in_no_gap_and_are_counted(objective: str, mlp: Problem, tmp_path: Path) -> None:
    """Scores are those of a target without them."""
    table, without = pq.read_table(mlp.manifest), np.flatnonzero(mlp.splits == "val")[[3, 7, 20]]
    groups = table["group"].to_pylist()
    for k in without:
        groups[k] = None
    place = table.column_names.index("group")
    pq.write_table(table.set_column(place, "group", pa.array(groups, pa.string())), tmp_path / "null.parquet")
    pq.write_table(table.take(np.setdiff1d(np.arange(len(table)), without)), tmp_path / "less.parquet")
    found, heard = [], Heard()
    for name in ("null", "less"):
        job = mlp.job(objectives=(objective,), manifest=tmp_path / f"{name}.parquet")
        target_groups(job.run.objectives, job.target, job.run.inputs, job.model, heard)
        found.append(score(job).column("score").to_numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6 * np.abs(found[1]).max())
    assert f"{objective}: 3 of 90 target rows have no group (column group): the gap is that of the others" in (
        heard.warnings
    )


def test_options_that_cannot_be_are_refused(mlp: Problem, three: Problem) -> None:
    for options, match in (
        ({"column": "sex"}, "no column 'sex'"),
        ({"column": "label"}, None),
        ({"tau": 0.0}, "tau is 0 and must be positive"),
        ({"aggregate": "mean"}, "one of pairs, variance, max"),
        ({"favourable": 2}, "is no class of the model"),
    ):
        if match is None:
            assert mlp.job(objectives=("fairness",), options={"fairness": options}).groups["fairness"].names == (
                "0",
                "1",
            )
            continue
        with pytest.raises((ManifestError, UsageError), match=match):
            mlp.job(objectives=("fairness",), options={"fairness": options})
    for objective, options in (("fairness", {"signed": True}), ("eo-loss", {})):
        with pytest.raises(UsageError, match="is between two groups, and column group has 3"):
            three.job(objectives=(objective,), options={objective: options})
    with pytest.raises(UsageError, match="kappa is 0 and must be positive"):
        mlp.job(objectives=("robustness",), options={"robustness": {"kappa": 0}})


def test_linear_on_a_model_that_is_not_is_refused_with_the_fix(mlp: Problem) -> None:
    with pytest.raises(ModelError, match="mlp:7 is not") as error:
        fill(mlp.job(objectives=("robustness",), options={"robustness": {"attack": "linear"}}))
    assert "--set robustness.attack=pgd" in str(error.value)


@pytest.mark.parametrize("objective", ["utility", "robustness"])
def test_target_rows_that_are_test_rows_are_refused(objective: str, tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:4", (5,), classes=2, train=20, val=40)
    table = pq.read_table(problem.manifest)
    val = np.flatnonzero(problem.splits == "val")
    copies = table.take(pa.array(val[:2]))
    ids, splits = pa.array(["copy-0", "copy-1"]), pa.array(["test", "test"])
    copies = copies.set_column(0, "id", ids).set_column(copies.column_names.index("split"), "split", splits)
    path = tmp_path / "leak.parquet"
    pq.write_table(pa.concat_tables([table, copies]), path)
    with pytest.raises(ManifestError, match=r"2 of 40 target rows are test rows \(same payload\)"):
        problem.job(objectives=(objective,), manifest=path)
    job = problem.job(objectives=(objective,), manifest=path, allow_overlap=True)
    assert len(job.target) == 38
    fill(job)
    if objective == "robustness":
        test_keys = job.manifest.rows("test").row_keys
        assert job.attacks("robustness").missing(test_keys).all()  # V' has seen none of them
        assert not job.attacks("robustness").missing(job.target.row_keys).any()


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_says_phi_and_its_parts(mlp: Problem, tmp_path: Path) -> None:
    table = pq.read_table(mlp.manifest)
    pq.write_table(
        table.rename_columns(["sex" if n == "group" else n for n in table.column_names]), tmp_path / "m.parquet"
    )
    base = ("m.parquet", "--checkpoint", mlp.checkpoint, "--objective", "fairness", "--objective", "robustness")
    ran = call_cli("score", "--method", "ip", *base, cwd=tmp_path)
    assert ran.code == 2
    assert "pass --group COLUMN" in ran.err
    ran = call_cli(
        "score",
        "--method",
        "ip",
        *base,
        "--group",
        "sex",
        "--set",
        "robustness.attack=fgsm",
        "-o",
        "s.parquet",
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    assert "class 1: D " in ran.err
    assert "mean by sex: g0" in ran.err
    assert "fgsm attack, eps 0.1: target accuracy under attack" in ran.err
    assert "warning: fairness: cells of fewer than" not in ran.err
    origin = provenance(pq.read_schema(tmp_path / "s.parquet"))
    assert origin["manifest"]["group"] == "sex"
    assert origin["noise"]["robustness"]["parts"]["attack"]["eps"] == 0.1
    piped = call_cli("grads", "--method", "ip", *base, "--set", "fairness.column=sex", "-o", "g.parquet", cwd=tmp_path)
    assert piped.code == 0, piped.err
    again = call_cli("score", "g.parquet", "-o", "again.parquet", cwd=tmp_path)
    assert again.code == 0, again.err
    (tmp_path / "influence.toml").write_text('[objective.fairness]\ncolumn = "sex"\ntau = 0.02\n')
    told = call_cli("score", "--method", "ip", *base, "-o", "t.parquet", cwd=tmp_path)
    assert told.code == 0, told.err
    options = provenance(pq.read_schema(tmp_path / "t.parquet"))["spec"]["options"]
    assert options["fairness"] == {"column": "sex", "tau": 0.02}
    assert json.dumps(origin)


def test_the_favourable_class_may_be_named(mlp: Problem, tmp_path: Path) -> None:
    """By name or by number it is one objective, under one name in the store."""
    table = pq.read_table(mlp.manifest)
    names = json.loads((table.schema.metadata or {}).get(b"classes", b"[]")) or ["no", "yes", "perhaps"]
    pq.write_table(table.replace_schema_metadata({"classes": json.dumps(names)}), tmp_path / "m.parquet")
    base = [
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--checkpoint",
        mlp.checkpoint,
        "--objective",
        "fairness",
        "--store",
        "store",
    ]
    found, directions = list[Any](), list[int]()
    for favourable in (names[0], "0"):
        ran = call_cli(*base, "--set", f"fairness.favourable={favourable}", "-o", "s.parquet", cwd=tmp_path)
        assert ran.code == 0, ran.err
        found.append(pq.read_table(tmp_path / "s.parquet").column("score").to_numpy())
        directions.append(len(list((tmp_path / "store").glob("directions/*.safetensors"))))
    assert directions[0] == directions[1] > 0
    np.testing.assert_array_equal(*found)
    ran = call_cli(*base, "--set", "fairness.favourable=none at all", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "fairness.favourable=none at all is no class of the manifest" in ran.err
