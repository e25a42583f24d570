"""Kronecker factors of the Fisher's layers over the fit rows, in two passes.

The Fisher's gradients are of labels that the model itself gives: drawn from what it predicts by row key, fresh ones in
each pass, or exactly, as the C columns of a root of the output curvature, a backward pass each.
``KroneckerForm`` is what rows' own gradients are in them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.dense import check_rows
from influence_cli.engines.layerwise.blocks import MATERIALISED, Block, BlockLayout
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.protocol import total
from influence_cli.engines.layerwise.tape import Tape
from influence_cli.errors import ModelError
from influence_cli.maths.hashed_draws import keyed_uniform
from influence_cli.maths.kronecker import (
    KroneckerInverse,
    eigenbasis,
    inverse_forms,
    rotated_squares,
    second_moment,
)
from influence_cli.model.next_token import drawing
from influence_cli.processes.messages import may_be_sent
from influence_cli.store.keys import Keys

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

Arrays = dict[str, NDArray[Any]]
BASIS = ("q_a", "q_s", "e_a", "e_s")  # of a layer's factors: eigenvectors and eigenvalues
FIRST, SECOND = 0, 1  # passes: of the bases, and of the eigenvalues in them


@dataclass
class _Layer:
    """One affine layer's sums, then bases; and the parameters that it holds, by their place among those selected."""

    layout: BlockLayout
    weight: int
    bias: int  # -1 where it has none, or it is not selected
    moment_a: Tensor
    moment_s: Tensor
    steps: float = 0.0  # sum_i w_i T
    basis: Arrays = field(default_factory=dict)
    turn: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.empty(0), torch.empty(0)))  # q_a and q_s
    lam: Tensor = field(default_factory=lambda: torch.empty(0))


class KroneckerFit:
    """The factors of a curvature's layers."""

    def __init__(self, curvature: Curvature, labels: str, draws: int, seed: int) -> None:
        """Layers are found now; ``labels`` is sampled or exact."""
        self.curvature, self.labels, self.draws, self.seed = curvature, labels, draws, seed
        self.layers: Layers = curvature.layers()
        self.names = list(curvature.layout)
        self._of: dict[str, _Layer] = {b.name: self._layer(b) for b in self.layers.blocks if b.affine is not None}
        inside = {n for layer in self._of.values() for n in layer.layout.shapes}
        self.factored = [n for n in self.names if n in inside]  # parameters in layers that are
        self.others = [n for n in self.names if n not in inside]
        self._given: Arrays = {}  # the bases
        self._traces = {b.name: 0.0 for b in self.layers.blocks if b.affine is None}

    def arrays(self) -> Arrays:
        """Bases and eigenvalues of every layer by its number, and the mean eigenvalue of the other parameters.

        A run that was stopped after the first pass goes on with the second.
        """
        return fitted_together([self])

    def take(self, bases: Arrays) -> None:
        """Have the bases of every layer by its number, for the second pass."""
        self._given = bases
        for k, layer in enumerate(self._of.values()):
            self._set_basis(layer, {name: bases[f"{k}.{name}"] for name in BASIS})

    def first_pass(self) -> None:
        """Sum up the moments of every layer."""
        if self.curvature.divided is None:
            self._sum_moments()
            return
        steps, *found = self.curvature.sums(functools.partial(_moments, **self._how))
        for layer, count, a, s in zip(self._of.values(), steps.tolist(), found[::2], found[1::2], strict=True):
            layer.steps, layer.moment_a, layer.moment_s = count, a, s

    def second_pass(self) -> None:
        """Sum up squares in the bases."""
        if self.curvature.divided is None:
            self._sum_squares()
            return
        traces, *found = self.curvature.sums(functools.partial(_squares, **self._how, bases=self._given))
        self._traces = dict(zip(self._traces, traces.tolist(), strict=True))
        for layer, lam in zip(self._of.values(), found, strict=True):
            layer.lam = lam

    @property
    def _how(self) -> dict[str, Any]:
        return {"labels": self.labels, "draws": self.draws, "seed": self.seed}

    def _sum_moments(self) -> None:
        for index, tape, y, w in self._tapes("curvature (ekfac: bases)", FIRST):
            self._add_moments(index, tape, y, w)

    def _sum_squares(self) -> None:
        for index, tape, y, w in self._tapes("curvature (ekfac: eigenvalues)", SECOND):
            self._add_squares(index, tape, y, w)

    def bases(self, others: list[KroneckerFit]) -> Arrays:
        """Eigenvectors and eigenvalues of both factors of every layer, by its number: of the mean with ``others``."""
        found: Arrays = {}
        for k, (name, layer) in enumerate(self._of.items()):
            for other in others:
                its = other._of[name]
                layer.moment_a += its.moment_a
                layer.moment_s += its.moment_s
                layer.steps += its.steps
                its.moment_a = its.moment_s = torch.empty(0)
            found |= {f"{k}.{n}": a for n, a in self._eigenbases(layer, 1 + len(others)).items()}
        return found

    def eigenvalues(self, others: list[KroneckerFit]) -> Arrays:
        """Eigenvalues of every layer with its bases and place, and the mean of the other parameters' ones."""
        n, found = self.curvature.weight * (1 + len(others)), Arrays()
        for k, (name, layer) in enumerate(self._of.items()):
            lam = (sum((other._of[name].lam for other in others), layer.lam) / n).cpu().numpy()
            place = np.array([layer.weight, layer.bias], dtype=np.float64)
            found |= {f"{k}.{name}": value for name, value in {**layer.basis, "lam": lam, "place": place}.items()}
        place = {n: self.names.index(n) for n in self.others}
        means = dict.fromkeys(place, float("nan"))
        for b in self.layers.blocks:
            if b.name in self._traces:
                mean = sum((other._traces[b.name] for other in others), self._traces[b.name]) / (n * b.size)
                means |= dict.fromkeys(b.shapes, mean)
        found["others"] = np.array([[place[n], means[n]] for n in place], dtype=np.float64).reshape(-1, 2)
        return found

    def try_passes(self) -> None:
        """Both passes, with the identity for every basis: nothing is kept of them."""
        for index, tape, y, w in self._tapes("curvature (ekfac)", FIRST):
            self._add_moments(index, tape, y, w)
        for layer in self._of.values():
            sizes = {"a": len(layer.moment_a), "s": len(layer.moment_s)}
            kind = np.float32 if self.curvature.dtype == torch.float32 else np.float64
            bases: Arrays = {f"q_{n}": np.eye(size, dtype=kind) for n, size in sizes.items()}
            self._set_basis(layer, bases | {f"e_{n}": np.ones(size) for n, size in sizes.items()})
        for index, tape, y, w in self._tapes("curvature (ekfac)", SECOND):
            self._add_squares(index, tape, y, w)

    def sizes(self) -> list[int]:
        """The sizes of the matrices whose eigenvectors are the bases: inputs that are always 0 are in none."""
        for index, tape, y, w in self._tapes("curvature (ekfac)", FIRST):
            self._add_moments(index, tape, y, w)
        moments = [m for layer in self._of.values() for m in (layer.moment_a, layer.moment_s)]
        return [int((m.diagonal() > 0.0).sum()) for m in moments]

    def _layer(self, layout: BlockLayout) -> _Layer:
        assert layout.affine is not None
        own = layout.sites[0].names
        weight = self.names.index(own["weight"])
        bias = self.names.index(own["bias"]) if "bias" in own else -1
        tall = layout.affine.shape[0]
        zeros = lambda k: torch.zeros(k, k, dtype=torch.float64, device=self.curvature.device)  # noqa: E731
        return _Layer(layout, weight, bias, zeros(layout.size // tall), zeros(tall))

    def _tapes(self, what: str, stream: int) -> Iterator[tuple[NDArray[np.int64], Tape, Tensor, Tensor]]:
        """(rows, a forward pass, labels, weights) of every batch, or of every draw where the model gives the labels.

        The next tokens of a language model are drawn within its forward pass, fresh ones in each pass by row key.
        """
        c = self.curvature
        if not c.loss.draws:
            yield from c.tapes(self.layers, what)
            return
        keys = c.rows.manifest.row_keys
        for index, x, y, w in c.batches(what):
            for draw in range(self.draws):

                def uniform(tokens: int, own: Keys = keys[index], first: int = 2 * draw + stream) -> Tensor:
                    every = [keyed_uniform(own, self.seed, first + 2 * self.draws * t) for t in range(tokens)]
                    return torch.from_numpy(np.stack(every, axis=1))

                with drawing(c.point.model, uniform):
                    tape = self.layers.forward(x)
                check_rows(c.rows, index, tape.logits)
                yield index, tape, y, w / self.draws

    def _cotangents(
        self, index: NDArray[np.int64], z: Tensor, y: Tensor, stream: int
    ) -> Iterator[tuple[Tensor, float]]:
        """(gradient of the rows' scalars in their logits [b, C], its share) of all that make up the Fisher."""
        if self.curvature.loss.draws:  # what was drawn is in the losses already
            yield self.curvature.loss.slopes(z, y).to(z), 1.0
            return
        at = self.curvature.loss.curvature(z, y)
        if self.labels == "exact":
            root = at.root()
            yield from ((root[:, :, c], 1.0) for c in range(root.shape[2]))
            return
        keys = self.curvature.rows.manifest.row_keys[index]
        for draw in range(self.draws):

            def uniform(k: int, first: int = 2 * draw + stream) -> Tensor:
                return torch.from_numpy(keyed_uniform(keys, self.seed, first + 2 * self.draws * k)).to(z.device)

            yield at.drawn(uniform), 1.0 / self.draws

    def _blocks(self, index: NDArray[np.int64], tape: Any, y: Tensor, stream: int) -> Iterator[tuple[int, float, Any]]:
        """(which cotangent, its share, block) of every block and cotangent."""
        every = list(self._cotangents(index, tape.logits, y, stream))
        for k, (cotangent, share) in enumerate(every):
            for block in tape.pull(cotangent, keep=k + 1 < len(every)):
                yield k, share, block

    def _add_moments(self, index: NDArray[np.int64], tape: Any, y: Tensor, w: Tensor) -> None:
        for k, share, block in self._blocks(index, tape, y, FIRST):
            layer = self._of.get(block.name)
            if layer is None:
                continue
            for rows, a, d in block.positions():
                check_rows(self.curvature.rows, index[rows], d)
                if k == 0 and self.curvature.spec.payload_kind.ragged:
                    used = (d != 0).any(2)  # what rows are filled up with has no part in their gradients
                    layer.moment_a += second_moment(a * used[:, :, None], w[rows])
                    layer.steps += float((w[rows].double()[:, None] * used).sum())
                elif k == 0:
                    layer.moment_a += second_moment(a, w[rows])
                    layer.steps += float(w[rows].double().sum()) * a.shape[1]
                layer.moment_s += second_moment(d, w[rows]) * share

    def _eigenbases(self, layer: _Layer, fits: int = 1) -> Arrays:
        """From sums over so many fits to a basis; the sums are let go of."""
        n, dtype = self.curvature.weight * fits, self.curvature.dtype
        e_a, q_a = eigenbasis(layer.moment_a / n)
        e_s, q_s = eigenbasis(layer.moment_s / max(layer.steps, 1e-300))
        layer.moment_a = layer.moment_s = torch.empty(0)
        return {name: t.cpu().numpy() for name, t in zip(BASIS, (q_a.to(dtype), q_s.to(dtype), e_a, e_s), strict=True)}

    def _set_basis(self, layer: _Layer, basis: Arrays) -> None:
        """Have a basis, for the second pass."""
        layer.basis, device = basis, self.curvature.device
        layer.turn = torch.from_numpy(basis["q_a"]).to(device), torch.from_numpy(basis["q_s"]).to(device)
        layer.lam = torch.zeros(len(basis["e_s"]), len(basis["e_a"]), dtype=torch.float64, device=device)

    def _add_squares(self, index: NDArray[np.int64], tape: Any, y: Tensor, w: Tensor) -> None:
        for _, share, block in self._blocks(index, tape, y, SECOND):
            layer = self._of.get(block.name)
            if layer is None:
                self._traces[block.name] += share * float((block.squared_norms() * w.double()).sum())
                continue
            for rows, a, d in block.positions():
                layer.lam += rotated_squares(a, d, w[rows], *layer.turn) * share


@may_be_sent
def _moments(curvature: Curvature, labels: str, draws: int, seed: int) -> list[Tensor]:
    """Sums of the first pass over a curvature's rows: steps [L], and both moments of every layer."""
    fit = KroneckerFit(curvature, labels, draws, seed)
    fit._sum_moments()
    layers = list(fit._of.values())
    steps = torch.tensor([layer.steps for layer in layers], dtype=torch.float64, device=curvature.device)
    return [steps, *(moment for layer in layers for moment in (layer.moment_a, layer.moment_s))]


@may_be_sent
def _squares(curvature: Curvature, labels: str, draws: int, seed: int, bases: Arrays) -> list[Tensor]:
    """Sums of the second pass: traces of the blocks that are no layers, and the squares of every layer."""
    fit = KroneckerFit(curvature, labels, draws, seed)
    fit.take(bases)
    fit._sum_squares()
    traces = torch.tensor(list(fit._traces.values()), dtype=torch.float64, device=curvature.device)
    return [traces, *(layer.lam for layer in fit._of.values())]


def fitted_together(fits: list[KroneckerFit]) -> Arrays:
    """The factors of several curvatures as one: the mean moments' bases, and in them the mean of the rows' squares."""
    first, *others = fits
    interim = first.curvature.interim
    bases = interim.load()
    if not bases:
        for fit in fits:
            fit.first_pass()
        bases = first.bases(others)
    for fit in fits:
        fit.take(bases)
    if bases:
        interim.offer(lambda: bases)
    for fit in fits:
        fit.second_pass()
    return first.eigenvalues(others)


class KroneckerForm:
    """From the blocks of b rows to g_i^T P g_i, float64 [b]; P in a layer's eigenbasis or a number for a parameter."""

    def __init__(self, inverse: KroneckerInverse, names: list[str]) -> None:
        """``names`` are the parameters by their place in ``inverse``."""
        self.layers = {names[layer.weight]: layer for layer in inverse.layers}
        self.shares = {names[k]: 1.0 / inverse.scalars[k] if k in inverse.scalars else 0.0 for k in inverse.others}
        self._held: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, blocks: list[Block]) -> Tensor:
        """The sum over blocks."""
        return torch.stack([self._of(block) for block in blocks]).sum(0)

    def _of(self, block: Block) -> Tensor:
        affine = block.layout.affine is not None
        weight = block.layout.sites[0].names["weight"] if affine else None
        if weight in self.layers:
            return self._in_basis(block, weight)
        names = list(block.layout.shapes)
        if not set(names) <= set(self.shares):
            raise ModelError(
                f"layer {block.name} is not used as it was when its Kronecker factors were fitted",
                fix="fit them on rows like these: --fit-rows MANIFEST",
            )
        shares = {self.shares[name] for name in names}
        if shares == {0.0}:
            return torch.zeros(block.b, dtype=torch.float64, device=block.like.device)
        if len(shares) == 1:
            return block.squared_norms() * shares.pop()
        return _weighted_squares(block, self.shares)

    def _in_basis(self, block: Block, weight: str) -> Tensor:
        if weight not in self._held:
            layer, like = self.layers[weight], block.like
            q_a, q_s = (torch.from_numpy(q.copy()).to(like.device, like.dtype) for q in (layer.q_a, layer.q_s))
            self._held[weight] = q_a, q_s, torch.from_numpy(1.0 / layer.shifted).to(like.device)
        return torch.cat([inverse_forms(a, d, *self._held[weight]) for _, a, d in block.positions()])


def _weighted_squares(block: Block, shares: dict[str, float]) -> Tensor:
    """Squared norms of a block's parameters, each times its share; rows are taken some at a time."""
    found: list[Tensor] = []
    step = max(1, MATERIALISED // max(1, block.layout.size))
    for first in range(0, block.b, step):
        gradients = block.gradients(slice(first, first + step))
        found.append(torch.stack([total(g.square()) * shares[name] for name, g in gradients.items()]).sum(0))
    return torch.cat(found)
