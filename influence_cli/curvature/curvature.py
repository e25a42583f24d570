"""Curvature of the training objective's data term over the fit rows: products and the dense matrix.

With weights w_i, n = sum w_i, outputs z_i [C] and their Jacobian J_i [C, d] in the selected parameters, the row loss
l_i, its slope a_i [C] and its Hessian B_i [C, C] in the outputs (``model.losses``):

    gradient    (1/n) sum w_i J_i^T a_i
    ggn         (1/n) sum w_i J_i^T B_i J_i         (the Fisher is the same matrix)
    hessian     (1/n) sum w_i hess l_i
    empirical   (1/n) sum w_i g_i g_i^T

Rows are streamed; of several processes each has some of the batches (``divided``).  Sums over batches are in float64
and depend on the batch size in rounding alone; what is summed is in float64 too, unless ``over`` asks for products in
float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.curvature.dense import (
    CurvatureKind,
    LinearHead,
    check_rows,
    finite_sum,
    linear_head,
)
from influence_cli.curvature.head import Head, HeadInputs, head_of
from influence_cli.curvature.jacobians import Jacobians, Way
from influence_cli.curvature.linearised import Linearised
from influence_cli.curvature.row_sums import RowSums
from influence_cli.data.manifest import Rows
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.tape import Tape
from influence_cli.engines.point import DTYPES, Point, unreached, usable_rows
from influence_cli.events import SILENT, Listener
from influence_cli.maths.iterative import FORGETFUL, Interim
from influence_cli.model.decoded import Batches, DecodedBatches
from influence_cli.model.dropout import Dropout
from influence_cli.model.examples import alike, batches, chunked, from_all_over, move, to_input
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss
from influence_cli.model.named_tensors import mapped
from influence_cli.model.own_module import copied
from influence_cli.model.parameters import select_parameters
from influence_cli.model.spec import ModelSpec

Floats = NDArray[np.float64]
Batch = tuple[NDArray[np.int64], Tensor, Tensor, Tensor]
SumsOf = Callable[["Curvature"], list[Tensor]]  # one that may be sent, where it is divided


class Curvature(RowSums):
    """What a method sees of the fit rows at one member; ``factor`` is what it fitted, or found fitted."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        rows: Rows,
        params: str = "all",
        dropout: Dropout | None = None,
        device: torch.device | None = None,
        batch_size: int = 256,
        workers: int = 1,
        listener: Listener = SILENT,
        way: Way = "auto",
        precision: str = "fp64",
        without: Sequence[str] = (),
        loss: RowLoss = CROSS_ENTROPY,
        head: Head | None = None,
    ) -> None:
        """Nothing is computed yet, and the model is copied before it is moved to ``precision``.

        Parameters ``without`` are outside of it, though they are selected (see ``unused``).  A ``head`` of this model
        that was found elsewhere, in the same precision or in float32, takes the place of one of its own.
        """
        device = device or torch.device("cpu")
        self.device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.spec, self.rows, self.batch_size, self.workers = spec, rows, batch_size, workers
        self.listener, self.loss = listener, loss
        self.way: Way = way
        self._selected = {n: p.shape for n, p in select_parameters(model, params).items()}
        self.layout = {n: shape for n, shape in self._selected.items() if n not in without}
        self.sizes = [shape.numel() for shape in self.layout.values()]
        self.weight = float(np.sort(rows.weights).sum())
        self.factor: dict[str, Floats] = {}
        self.further: list[dict[str, Floats]] = []  # other factors that the method needs
        self.beside: list[Curvature] = []  # the same rows at other members, where a factor is of several
        self.interim: Interim = FORGETFUL
        self.divided: Callable[[Curvature, SumsOf], list[Tensor]] | None = None  # how several processes sum up
        self.precision, self.dtype = precision, DTYPES[precision]
        self._own: Curvature | None = None
        self.given_head = None if without else head
        self._open = lambda: Point(copied(model), params, dropout, precision, self.device)
        self._at_this_point = functools.partial(
            Curvature, model, spec, params=params, dropout=dropout, device=device, batch_size=batch_size,
            workers=workers, way=way, without=without, loss=loss, head=self.given_head,
        )  # fmt: skip
        self._labels_and_weights = rows.manifest.labels, rows.manifest.weights()
        self._by_rows: dict[tuple[bytes, str], Curvature] = {}
        self._checked = False  # whether a product has seen that every row's logits are finite
        self._decoded: Batches | None = None
        self.found_head: Head | None = None  # see ``head``, which has looked for it then
        self._looked_for_head = False
        self.kept_inputs: Batches | None = None  # the head's inputs of all rows, where a pass has kept them

    def unusable(self, others: bool = False) -> NDArray[np.int64]:
        """Manifest rows whose logits or derivatives are not finite in this precision: they are to be in no sum.

        The head's inputs are kept for passes that follow; with ``others`` what was decoded too, for other precisions.
        """
        found: list[int] = []
        for index, x, _, _ in self.head_batches("fit rows checked", others):
            found += index[~usable_rows(self.at, x).cpu().numpy()].tolist()
        return np.array(sorted(found), dtype=np.int64)

    def head_inputs(self) -> HeadInputs | None:
        """The inputs of the head by payload key; None where there is no head, or a pass has not kept them."""
        return HeadInputs.of(self.found_head, self.kept_inputs or [], self.rows.manifest.payload_keys)

    def unused(self) -> list[str]:
        """Parameters of the layout that the logits of no row depend on; all rows are looked at where there may be some.

        Nothing is known of a model that cannot be differentiated backwards.
        """
        given = self._given
        if given is not None and given.point.few is not None:
            found = unreached(given.point, given.point.few)
        elif self._probes is None:
            return []
        else:
            found = unreached(self.point, to_input(move(self._probes, self.device), self.spec, self.dtype))
        if found:  # a model may take another way with other rows
            for _, x, _, _ in self.head_batches("parameters in use"):
                found &= unreached(self.at, x)
        return [n for n in self.layout if n in found]

    @property
    def outside(self) -> dict[str, torch.Size]:
        """Selected parameters that are not in the layout, and their shapes."""
        return {n: shape for n, shape in self._selected.items() if n not in self.layout}

    def over(self, rows: Rows, precision: str) -> Curvature:
        """The curvature of other rows at the same point, its products in ``precision``; it reports no progress.

        For the same rows it is the same object, which has kept what it decoded.
        """
        key = rows.index.tobytes(), precision
        if key not in self._by_rows:
            made = self._by_rows[key] = self._at_this_point(rows, precision=precision)
            same = [c for (of, _), c in self._by_rows.items() if of == key[0] and c._decoded is not None]
            made._decoded = same[0]._decoded if same else None
            made._take_inputs(self._by_rows)
            made.divided = self.divided
            made.__dict__["_probes"] = self._probes  # read once: those of a part of the rows are no better
        return self._by_rows[key]

    def sums(self, of: SumsOf) -> list[Tensor]:
        """What ``of`` sums up over the fit rows, here or by several processes."""
        return of(self) if self.divided is None else self.divided(self, of)

    def part(self, rank: int, size: int) -> Curvature:
        """The same over every ``size``-th batch, from that of ``rank`` on: sums are of their rows alone."""
        if self._own is None:
            batch = np.arange(len(self.rows)) // self.batch_size
            self._own = self._at_this_point(self.rows.take(batch % size == rank), precision=self.precision)
            self._own.listener = self.listener
            self._own.__dict__["_probes"] = self._probes
            self._take_inputs(self._by_rows)
            mine = (self.kept_inputs or [])[rank::size]
            if mine and np.array_equal(np.concatenate([index for index, _ in mine]), self._own.rows.index):
                self._own._have_inputs(mine)
        return self._own

    @property
    def size(self) -> int:
        """d, the number of selected parameters."""
        return sum(self.sizes)

    @functools.cached_property
    def point(self) -> Point:
        """A copy of the model: no graph is kept of parameters that are not selected."""
        if self._given is not None:
            return self._given.whole
        opened = self._open()
        opened.model.requires_grad_(False)
        opened = opened.less(self.outside)
        if self._probes is not None:
            opened.few = to_input(move(self._probes, self.device), self.spec, self.dtype)
        return opened

    @functools.cached_property
    def _probes(self) -> Tensor | None:
        """Some decoded rows, on which whatever derives is checked."""
        return from_all_over(self.rows, self.spec)

    @property
    def theta(self) -> Floats:
        """The selected parameters, flat [d]."""
        return torch.cat([p.reshape(-1) for p in self.point.selected.values()]).double().cpu().numpy()

    def dense(self, kind: CurvatureKind) -> tuple[Floats, Floats]:
        """The symmetric matrix [d, d] and the gradient [d], in one pass over the fit rows.

        Raises:
            ManifestError: a row's logits or their derivatives are not finite; names it.
        """
        matrix, gradient = self.sums(functools.partial(RowSums.dense_sums, kind=kind))
        matrix = finite_sum(self.rows, (matrix + matrix.T) / (2.0 * self.weight))
        return matrix.cpu().numpy(), (gradient / self.weight).cpu().numpy()

    def product(self, kind: CurvatureKind, columns: Floats) -> Floats:
        """G v or H v for every column of [d, k], in one pass over the fit rows that they share."""
        (total,) = self.sums(functools.partial(RowSums.product_sums, kind=kind, columns=columns))
        total /= self.weight
        return finite_sum(self.rows, total).cpu().numpy().T

    def quadratic(self, columns: Floats) -> tuple[Floats, Floats]:
        """v^T G v for every column of [d, k], and the gradient [d], in one pass over the fit rows.

        Raises:
            ManifestError: a row's logits are not finite; names it.
        """
        forms, gradient = self.sums(functools.partial(RowSums.quadratic_sums, columns=columns))
        forms, gradient = finite_sum(self.rows, forms / self.weight), finite_sum(self.rows, gradient[0] / self.weight)
        return forms.cpu().numpy(), gradient.cpu().numpy()

    # -- one batch ---------------------------------------------------------------------------------------------------

    def head(self, x: Tensor) -> Head | None:
        """The module behind whose inputs all selected parameters lie; looked for with the first inputs given."""
        if not self._looked_for_head:
            self.found_head, self._looked_for_head = self._given or head_of(self.point, x), True
        return self.found_head

    @functools.cached_property
    def _given(self) -> Head | None:
        """The head that was given, in this precision; None where it is on another device."""
        return None if self.given_head is None else self.given_head.on(self.device, self.dtype)

    @property
    def input_dtype(self) -> torch.dtype:
        """The precision of the model's inputs: that of what lies before a head that was given."""
        return self.dtype if self._given is None else self._given.whole.dtype

    def _take_inputs(self, others: dict[tuple[bytes, str], Curvature]) -> None:
        """Have what another of the same rows has kept of the given head's inputs, in this precision."""
        own = self.rows.index.tobytes()
        kept = [c.kept_inputs for (rows, _), c in others.items() if rows == own and c._given is not None]
        found = next((batches for batches in kept if batches is not None), None)
        if self.kept_inputs is None and found is not None:
            self._have_inputs([(index, h.to(self.dtype)) for index, h in found])

    def _have_inputs(self, batches: Batches) -> None:
        """Have these inputs of the given head, if there is one."""
        if self._given is not None:
            self.kept_inputs, self.found_head, self._looked_for_head = batches, self._given, True

    @property
    def at(self) -> Point:
        """Where logits are a function of the parameters and of what ``head_batches`` yields."""
        return self.point if self.found_head is None else self.found_head.point

    @functools.cached_property
    def _linearised(self) -> Linearised:
        linear = None if self.found_head is None or self._linear is None else self.found_head.path
        return Linearised(self.at, self.loss, linear)

    @functools.cached_property
    def _linear(self) -> LinearHead | None:
        """The head, where it is one linear layer; asked for once it has been looked for."""
        head = self.found_head
        return None if head is None else linear_head(head.module, head.path, self.layout)

    @functools.cached_property
    def _jacobians(self) -> Jacobians:
        outputs = self.spec.num_classes
        return Jacobians(self.at, self.layout, self.point.recurrent, outputs, self.way, self.loss)

    # -- rows --------------------------------------------------------------------------------------------------------

    def batches(self, what: str) -> Iterator[Batch]:
        """(rows, inputs, labels, weights) of every batch; small data are decoded once and kept."""
        manifest, kept = self.rows.manifest, DecodedBatches()
        payloads = alike(manifest.payloads(self.rows.index), manifest.payload_kind, self.batch_size)
        chunks = chunked(payloads, self.batch_size)
        source = self._decoded or batches(manifest, chunks, self.spec, self.workers)
        with self.listener.progress(what, len(self.rows), "fit rows") as progress:
            for index, decoded in source:
                kept.add(index, decoded)
                yield index, to_input(move(decoded, self.device), self.spec, self.input_dtype), *self._labelled(index)
                progress.advance(len(index))
        self._decoded = kept.all()

    def head_batches(self, what: str, keep_decoded: bool = False) -> Iterator[Batch]:
        """``batches``, with the inputs of the ``head`` in the place of the model's; these too are kept where small.

        What was decoded is let go of then, unless it is to be kept too.
        """
        self._take_inputs(self._by_rows)
        if self.kept_inputs is not None:
            with self.listener.progress(what, len(self.rows), "fit rows") as progress:
                for index, h in self.kept_inputs:
                    yield index, h, *self._labelled(index)
                    progress.advance(len(index))
            return
        kept, head = DecodedBatches(), None
        for index, x, y, w in self.batches(what):
            head = self.head(x)
            h = x if head is None else head.inputs(x)
            if head is not None:
                kept.add(index, h)
            yield index, h, y, w
        self.kept_inputs = kept.all() if head is not None else None
        if self.kept_inputs is not None and not keep_decoded:
            self._decoded = None

    def layers(self) -> Layers:
        """The blocks of what ``tapes`` runs, the model or its head; planned on the first batch."""
        if self.kept_inputs:
            return Layers(self.at, self.kept_inputs[0][1])
        first = self.over(self.rows.take(np.arange(min(self.batch_size, len(self.rows)))), "fp64")
        _, x, _, _ = next(first.batches("layers"))
        x = mapped(lambda t: t.to(self.dtype) if t.is_floating_point() else t, x)  # integers are looked up
        head = self.head(x)
        return Layers(self.point, x) if head is None else Layers(head.point, head.inputs(x))

    def tapes(self, layers: Layers, what: str) -> Iterator[tuple[NDArray[np.int64], Tape, Tensor, Tensor]]:
        """(rows, a forward pass, labels, weights) of every batch.

        Raises:
            ManifestError: a row's logits are not finite; names it.
        """
        for index, x, y, w in self.head_batches(what):
            tape = layers.forward(x)
            check_rows(self.rows, index, tape.logits)
            yield index, tape, y, w

    def _labelled(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Labels and weights of some rows."""
        labels, weights = (torch.from_numpy(values[index]) for values in self._labels_and_weights)
        return move(labels, self.device), move(weights.to(self.dtype), self.device)
