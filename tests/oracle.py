"""References in float64 that share no arithmetic with the engine, and tiny problems to meet them on.

Reference: the per-row autograd loop and what follows from it (scores, per-label scores, mean target gradient), a
big-integer SplitMix64 with the dropout masks made from it, dense curvature row by row, and logistic regressions
refitted to convergence (by autograd, and in closed form with row weights).
Builders: PNG bytes, a Parquet manifest, a checkpoint that carries its spec as ``retrain`` writes it, and the ``Opened``
that ``influence score`` would open on the two.
"""

from __future__ import annotations

import hashlib
import io
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.store.keys import canonical_json
from tests.opened import Opened, opened

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other

Gradient = dict[str, Tensor]


# -- the loop ------------------------------------------------------------------------------------------------------


def row_gradient(model: nn.Module, x: Tensor, y: int, names: Sequence[str] | None = None) -> Gradient:
    """One row's cross-entropy gradient by name, from one backward pass over that row alone."""
    parameters = {n: p for n, p in model.named_parameters() if names is None or n in names}
    loss = F.cross_entropy(model(x[None]), torch.tensor([y]))
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), gradients, strict=True)}


def row_gradients(
    model: nn.Module, inputs: Tensor, labels: Tensor, names: Sequence[str] | None = None
) -> Iterator[Gradient]:
    """Every row's gradient, one at a time."""
    for x, y in zip(inputs, labels.tolist(), strict=True):
        yield row_gradient(model, x, y, names)


def dot(a: Gradient, b: Gradient) -> float:
    """Inner product over all names."""
    assert a.keys() == b.keys()
    return sum(float((a[n] * b[n]).sum()) for n in a)


def flat(gradient: Gradient) -> Tensor:
    """One vector [d], tensors by name."""
    return torch.cat([gradient[n].flatten() for n in sorted(gradient)])


def mean_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, names: Sequence[str] | None = None) -> Gradient:
    """Mean of the rows' gradients."""
    total: Gradient = {}
    for g in row_gradients(model, inputs, labels, names):
        total = {n: g[n] + total[n] if n in total else g[n] for n in g}
    return {n: t / len(inputs) for n, t in total.items()}


def loop_scores(
    model: nn.Module, inputs: Tensor, labels: Tensor, q: Gradient, names: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """<grad l_i, q> for every row [n]."""
    return np.array([dot(g, q) for g in row_gradients(model, inputs, labels, names)])


def loop_label_scores(
    model: nn.Module, inputs: Tensor, classes: int, q: Gradient, names: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """<grad l_i with label c, q> for every row and every label [n, C], one backward pass each from one forward pass."""
    parameters = {n: p for n, p in model.named_parameters() if names is None or n in names}
    found = np.empty((len(inputs), classes))
    for k, x in enumerate(inputs):
        z = model(x[None])
        for c in range(classes):
            loss = F.cross_entropy(z, torch.tensor([c]))
            g = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
            found[k, c] = sum(float((a * q[n]).sum()) for n, a in zip(parameters, g, strict=True) if a is not None)
    return found


# -- dropout masks, by big integers --------------------------------------------------------------------------------

_WRAP = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64_stream(key: int, count: int) -> list[int]:
    """The first ``count`` 64-bit outputs of SplitMix64 started at ``key`` (Steele, Lea, Flood 2014)."""
    out, state = [], key
    for _ in range(count):
        state = (state + _GOLDEN) & _WRAP
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WRAP
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WRAP
        out.append(z ^ (z >> 31))
    return out


def reference_mask(seed: int, member: int, name: str, shape: Sequence[int], rate: float) -> NDArray[np.bool_]:
    """The mask that (seed, member, tensor name) stands for: kept where the top 32 bits are at least rate 2^32."""
    key = hashlib.blake2b(f"{seed}:{member}:{name}".encode(), digest_size=8, person=b"influence.mask").digest()
    draws = splitmix64_stream(int.from_bytes(key, "little"), int(np.prod(shape)))
    return np.array([(z >> 32) >= round(rate * 2**32) for z in draws]).reshape(shape)


def dropped_copy(model: nn.Module, spec: ModelSpec, seed: int, member: int, rate: float) -> nn.Module:
    """A float64 model with every parameter masked and divided by 1 - rate, buffers as they are."""
    copy = build_model(spec).double().eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, p in copy.named_parameters():
            p *= torch.from_numpy(reference_mask(seed, member, name, tuple(p.shape), rate)).double() / (1.0 - rate)
    return copy


# -- a convex problem ----------------------------------------------------------------------------------------------


def refit(model: nn.Module, inputs: Tensor, labels: Tensor, penalty: float) -> None:
    """Minimise mean cross-entropy + penalty/2 |theta|^2 in place by Newton steps, to a gradient below 1e-12."""
    shapes = {n: p.shape for n, p in model.named_parameters()}
    sizes = [s.numel() for s in shapes.values()]

    def objective(theta: Tensor) -> Tensor:
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        logits = functional_call(model, {n: v.view(s) for (n, s), v in parts}, (inputs,))
        return F.cross_entropy(logits, labels) + 0.5 * penalty * (theta @ theta)

    theta = torch.zeros(sum(sizes), dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(objective, theta)
        theta = theta - torch.linalg.solve(
            torch.autograd.functional.hessian(objective, theta, vectorize=True), gradient
        )
    assert torch.autograd.functional.jacobian(objective, theta).abs().max() < 1e-12
    torch.nn.utils.vector_to_parameters(theta, model.parameters())


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax regression in closed form, numpy alone: theta [C, d + 1], the bias last, every entry penalised."""

    x: NDArray[np.float64]  # [n, d + 1], the last column 1
    y: NDArray[np.int64]
    classes: int

    @staticmethod
    def of(inputs: Tensor, labels: Tensor, classes: int) -> Softmax:
        x = inputs.double().flatten(1).numpy()
        return Softmax(np.hstack([x, np.ones((len(x), 1))]), labels.numpy(), classes)

    def probabilities(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        z = self.x @ theta.T
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def losses(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cross-entropy of every row [n]."""
        z = self.x @ theta.T
        top = z.max(axis=1)
        return top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(z)), self.y]

    def gradients(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Gradient of every row's loss [n, C (d + 1)]."""
        residual = self.probabilities(theta) - np.eye(self.classes)[self.y]
        return (residual[:, :, None] * self.x[:, None, :]).reshape(len(self.x), -1)

    def hessian(self, theta: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """sum_i w_i (diag(p) - p p^T) kron x x^T."""
        p, size = self.probabilities(theta), self.x.shape[1]
        out = np.empty((self.classes, size, self.classes, size))
        for a in range(self.classes):
            for b in range(a, self.classes):
                out[a, :, b] = (self.x * (weights * p[:, a] * ((a == b) - p[:, b]))[:, None]).T @ self.x
                out[b, :, a] = out[a, :, b]  # symmetric, like every block of it
        return out.reshape(self.classes * size, -1)

    def fit(
        self, weights: NDArray[np.float64], penalty: float, start: NDArray[np.float64] | None = None, divisor: float = 0
    ) -> NDArray[np.float64]:
        """Minimise sum w l / divisor + penalty/2 |theta|^2 by Newton steps (divisor 0: sum w), gradient below 1e-12.

        The Hessian of the step before does for as long as the gradient shrinks to a tenth with it.
        """
        divisor = divisor or float(weights.sum())
        theta = np.zeros((self.classes, self.x.shape[1])) if start is None else start.copy()
        inverse, before = np.zeros(0), 0.0
        for _ in range(60):
            p = self.probabilities(theta)
            residual = (p - np.eye(self.classes)[self.y]) * weights[:, None]
            gradient = (residual.T @ self.x / divisor + penalty * theta).ravel()
            size = float(np.abs(gradient).max())
            if size < 1e-13:
                break
            if size > 0.1 * before:
                hessian = self.hessian(theta, weights) / divisor + penalty * np.eye(theta.size)
                inverse = np.linalg.inv(hessian) if penalty else np.linalg.pinv(hessian, 1e-10)
            before = size
            theta = theta - (inverse @ gradient).reshape(theta.shape)
        assert size < 1e-12
        return theta

    def into(self, model: nn.Module, theta: NDArray[np.float64]) -> nn.Module:
        """The parameters as those of a ``linear`` model."""
        with torch.no_grad():
            model.get_parameter("head.weight").copy_(torch.from_numpy(theta[:, :-1].copy()))
            model.get_parameter("head.bias").copy_(torch.from_numpy(theta[:, -1].copy()))
        return model


# -- dense curvature -----------------------------------------------------------------------------------------------


_known: weakref.WeakKeyDictionary[nn.Module, dict[bytes, NDArray[np.float64]]] = weakref.WeakKeyDictionary()


def dense_curvature(model: nn.Module, x: Tensor, y: Tensor, w: Tensor, kind: str) -> NDArray[np.float64]:
    """``_dense_curvature``, once for a model with the same parameters, buffers and rows: tests share models."""
    tensors = [*model.state_dict().values(), x, y, w]
    key = hashlib.blake2b(kind.encode() + b"".join(t.detach().numpy().tobytes() for t in tensors)).digest()
    known = _known.setdefault(model, {})
    if key not in known:
        known[key] = _dense_curvature(model, x, y, w, kind)
    return known[key].copy()


def _dense_curvature(model: nn.Module, x: Tensor, y: Tensor, w: Tensor, kind: str) -> NDArray[np.float64]:
    """Weighted mean over rows, one by one, by its definition, in the order of the model's parameters.

    ``hessian``: autograd's; ``ggn``: J^T (diag(p) - p p^T) J; ``fisher``: sum_c p_c g_c g_c^T with a gradient for every
    label; ``empirical``: g g^T with the row's own.
    """
    shapes = {n: p.shape for n, p in model.named_parameters()}
    sizes = [s.numel() for s in shapes.values()]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def logits(flat: Tensor, row: Tensor) -> Tensor:
        parts = zip(shapes.items(), flat.split(sizes), strict=True)
        return functional_call(model, {n: v.view(s) for (n, s), v in parts}, (row[None],))[0]

    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for row, label, weight in zip(x, y.tolist(), w.tolist(), strict=True):
        z = logits(theta, row).detach()
        p = z.softmax(0)
        if kind == "hessian":
            part = torch.autograd.functional.hessian(
                lambda t, row=row, label=label: F.cross_entropy(logits(t, row)[None], torch.tensor([label])), theta,
                vectorize=True,  # all second backward passes of a row at once
            )  # fmt: skip
        elif kind == "ggn":
            jacobian = torch.autograd.functional.jacobian(lambda t, row=row: logits(t, row), theta)
            part = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
        else:
            share = {c: float(p[c]) for c in range(len(p))} if kind == "fisher" else {label: 1.0}
            part = torch.zeros_like(total)
            for c, chance in share.items():
                g = torch.cat([v.flatten() for v in row_gradient(model, row, c).values()])
                part += chance * torch.outer(g, g)
        total += weight * part
    return (total / w.sum()).numpy()


# -- builders ------------------------------------------------------------------------------------------------------


def png(pixels: NDArray[np.uint8], level: int = 6) -> bytes:
    """PNG bytes of pixels [H, W, 3] or [H, W]; another compression ``level`` gives other bytes, the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=level)
    return out.getvalue()


def write_manifest(
    path: Path,
    payloads: Sequence[bytes] | NDArray[np.float32],
    labels: Sequence[int] | NDArray[np.integer],
    splits: Sequence[str],
    ids: Sequence[str] | None = None,
    **columns: Any,
) -> Path:
    """A Parquet manifest of images (bytes) or features [n, d], with splits and any further columns."""
    ids = [f"row-{k:04d}" for k in range(len(labels))] if ids is None else list(ids)
    if isinstance(payloads, np.ndarray):
        payload = {"features": pa.array([v.tolist() for v in payloads], pa.list_(pa.float32()))}
    else:
        payload = {"image": pa.array(list(payloads), pa.binary())}
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            **payload,
            "label": pa.array([int(y) for y in labels], pa.int64()),
            "split": pa.array(list(splits), pa.string()),
            **{name: pa.array(values) for name, values in columns.items()},
        }
    )
    pq.write_table(table, path)
    return path


def save_checkpoint(path: Path, model: nn.Module, spec: ModelSpec, dtype: torch.dtype = torch.float64) -> Path:
    """Safetensors that say their own architecture in one metadata key, as ``retrain`` writes them."""
    weights = {
        k: (v.to(dtype) if v.is_floating_point() else v).detach().contiguous().clone()
        for k, v in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"influence": canonical_json({"model": spec.as_dict()})})
    return path


@dataclass(frozen=True, eq=False)
class Problem:
    """A manifest, a checkpoint, and the same model and inputs in float64 for the loop."""

    folder: Path
    spec: ModelSpec
    model: nn.Module
    inputs: Tensor  # [n, ...] of every row
    labels: Tensor
    splits: NDArray[np.str_]
    ids: list[str]
    payloads: list[bytes] | NDArray[np.float32]

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.parquet"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.safetensors"

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs and labels of one split, in the manifest's order."""
        chosen = torch.from_numpy(np.flatnonzero(self.splits == split))
        return self.inputs[chosen], self.labels[chosen]

    def permuted(self, order: NDArray[np.int64], name: str) -> Path:
        """The same manifest with its rows in another order."""
        payloads = (
            self.payloads[order]
            if isinstance(self.payloads, np.ndarray)
            else [self.payloads[k] for k in order.tolist()]
        )
        return write_manifest(
            self.folder / name,
            payloads,
            self.labels.numpy()[order],
            self.splits[order].tolist(),
            [self.ids[k] for k in order.tolist()],
        )

    def job(self, store: str | None = None, manifest: Path | None = None, **settings: Any) -> Opened:
        """The job that ``influence score`` would open; ``settings`` go to GradSpec, Runtime or Inputs by name.

        Without ``store`` a folder of its own that is empty, so that everything is computed.
        """
        runtime = {k: settings.pop(k) for k in ("batch_size", "workers", "shard_rows") if k in settings}
        inputs = {k: settings.pop(k) for k in ("target", "allow_overlap", "fit_rows") if k in settings}
        if store is None:
            store = f"store-{len(list(self.folder.glob('store-*')))}"
            (self.folder / store).mkdir()
        where = Inputs(str(manifest or self.manifest), checkpoint=str(self.checkpoint), **inputs)
        spec = GradSpec(**{"methods": ("ip",), "precision": "fp64", **settings})
        return opened(where, spec, Runtime(str(self.folder / store), device="cpu", **runtime))


def split_names(train: int, val: int, test: int = 0) -> list[str]:
    """Splits of train + val + test rows, interleaved by a fixed shuffle."""
    names = np.array(["train"] * train + ["val"] * val + ["test"] * test)
    return names[np.random.default_rng(0).permutation(len(names))].tolist()


def make_problem(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    classes: int = 4,
    train: int = 10,
    val: int = 7,
    seed: int = 0,
) -> Problem:
    """Random images (``shape`` [3, H, W]) or features ([d]) and a model whose every tensor is non-trivial.

    Parameters are jittered, so that norms are no identities and no bias is zero; BatchNorm statistics come from a
    few forward passes in training mode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    n = train + val
    labels = rng.integers(0, classes, n)
    if len(shape) == 1:
        features = rng.normal(size=(n, *shape)).astype(np.float32)
        payloads: Any = features
        inputs = torch.from_numpy(features).double()
        spec = ModelSpec(name, classes, "features", shape)
    else:
        pixels = rng.integers(0, 256, (n, *shape[1:], shape[0]), dtype=np.uint8)
        payloads = [png(p) for p in pixels]
        mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
        inputs = torch.from_numpy((pixels / 255.0 - np.array(mean)) / np.array(std)).permute(0, 3, 1, 2)
        inputs = inputs.contiguous()
        spec = ModelSpec(name, classes, "image", shape, mean, std)
    torch.manual_seed(seed)
    model = build_model(spec)
    shake(model, inputs.float(), seed)
    model = model.double().eval()
    splits = split_names(train, val)
    ids = [f"row-{k:04d}" for k in range(n)]
    problem = Problem(folder, spec, model, inputs, torch.from_numpy(labels), np.array(splits), ids, payloads)
    write_manifest(problem.manifest, payloads, labels, splits, ids)
    save_checkpoint(problem.checkpoint, model, spec)
    return problem


def shake(model: nn.Module, inputs: Tensor, seed: int) -> None:
    """Jitter every parameter and give BatchNorm statistics of its own."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * p.std(unbiased=False).clamp(min=0.2) * torch.randn(p.shape, generator=generator)
        model.train()
        for _ in range(3):
            model(inputs)
    model.eval()


def column(table: pa.Table, name: str = "score") -> NDArray[np.float64]:
    """A numeric column, null as NaN."""
    return table.column(name).cast(pa.float64()).fill_null(float("nan")).to_numpy()


def relative_error(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Largest difference over the largest expected size."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
