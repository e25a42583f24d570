"""What training itself shows of each row: its margin, loss and error in the pass of every epoch, as it was trained on.

Values are of the logits that the training step computed: before the step, with the augmentation of that epoch, in
training mode (dropout on, batch statistics in BatchNorm).  No pass is run for them, and no number of training changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.model.losses.protocol import RowLoss

LOGITS_HELD = 4_000_000  # on a device before they are measured: one measurement of many batches costs what one does
IN_MEMORY = 1 << 19  # the same in memory: beginning to measure, in the midst of training, costs what 5,000 rows do
AT_ONCE = 1 << 16  # of these so many at a time, which a processor's cache holds
SHARD_BYTES = 8_000_000  # of values before they are written: an epoch of many rows, many epochs of a few
Values = dict[str, NDArray[np.float32]]  # by name [epochs, rows]


class EpochValues:
    """Values of the rows at ``keep``, which are those that are trained on, written shard by shard.

    With labels [n] of all rows, and

    margin       z_y - max_{c != y} z_c
    loss         the row's loss under the run's row loss, without its weight
    error        |softmax(z) - e_y|_2 (Paul et al., arXiv:2107.07075)
    probability  softmax(z)_y, where that is not exp(-loss)

    kept in float32.  What is taken of the logits is computed in float64, so that it is off by one rounding of float32,
    whatever cancels on the way.  A loss whose labels are no classes has its loss alone.  Where an epoch passes over a
    row it is NaN.
    """

    def __init__(
        self,
        keep: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss: RowLoss,
        write: Callable[[int, Values], None],
        size: int = SHARD_BYTES,
    ) -> None:
        self.labels, self.loss = labels, loss
        self.place = np.full(int(keep.max(initial=-1)) + 1, -1, dtype=np.int64)
        self.place[keep] = np.arange(len(keep))
        of_classes = ("margin", "error") if loss.likelihood else ("margin", "error", "probability")
        self.names = ("loss", *of_classes) if loss.by_class else ("loss",)
        self.given = not loss.likelihood  # whether the loss is not to be had from the logits
        self.write, self.size, self.rows = write, size, len(keep)
        self.held: list[tuple[int, NDArray[np.int64], Tensor, Tensor | None]] = []  # batches by epoch
        self.logits, self.most = 0, LOGITS_HELD  # that are held, and may be
        self.now = self.first = 1  # the epoch that goes on, and the first that is not written
        self.values = np.empty((len(self.names), 0, self.rows), dtype=np.float32)  # with room for more epochs

    def batch(self, rows: NDArray[np.int64], logits: Tensor, losses: Tensor) -> None:
        """The logits [b, C] and losses [b] of the rows [b] of a training step."""
        if not self.held:
            self.most = IN_MEMORY if logits.is_cpu else LOGITS_HELD
        self.held.append((self.now, rows, logits.detach(), losses.detach() if self.given else None))
        self.logits += logits.numel()
        if self.logits >= self.most:
            self._measure()

    def epoch(self) -> None:
        """The end of an epoch."""
        self.now += 1
        if (self.now - self.first) * self.rows * 4 * len(self.names) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Write the epochs that are not written yet."""
        self._measure()
        done = self.now - self.first
        if done:
            self.write(self.first, {name: self.values[k, :done] for k, name in enumerate(self.names)})
            self.values = np.empty((len(self.names), 0, self.rows), dtype=np.float32)
            self.first = self.now

    def _measure(self) -> None:
        """Take the values of what is held, all at once."""
        if not self.held:
            return
        epochs, rows, logits, losses = zip(*self.held, strict=True)
        self.held, self.logits = [], 0
        self._make_room(epochs[-1] - self.first + 1)
        every = np.concatenate(rows)
        starts = np.repeat((np.array(epochs) - self.first) * self.rows, [len(r) for r in rows])
        at = starts + self.place[every]
        for values, found in zip(self.values, self._values_of(every, logits, losses), strict=True):
            values.reshape(-1)[at] = found

    def _values_of(
        self, rows: NDArray[np.int64], logits: Sequence[Tensor], losses: Sequence[Tensor | None]
    ) -> NDArray[np.float32]:
        """Every value [names, n] of rows [n] in some batches."""
        given = [part for part in losses if part is not None]
        found = [torch.cat(given).float()] if given else []
        if self.loss.by_class:
            z = torch.cat(list(logits))
            z = z.cpu() if z.device.type == "mps" else z  # mps has no float64
            y = torch.from_numpy(self.labels[rows]).to(z.device)
            step = max(1, AT_ONCE // z.shape[1]) if z.is_cpu else len(z)
            pairs = zip(z.split(step), y.split(step), strict=True)
            loss, *others = torch.cat([torch.stack(of_classes(*some)).float() for some in pairs], dim=1)
            found = [*(part.to(loss.device) for part in found or [loss]), *others][: len(self.names)]
        return torch.stack(found).cpu().numpy()

    def _make_room(self, epochs: int) -> None:
        """Room for so many epochs at least, twice as much as there was: NaN where nothing is measured yet."""
        room = self.values.shape[1]
        if epochs > room:
            more = np.full((len(self.names), max(epochs, 2 * room) - room, self.rows), np.nan, dtype=np.float32)
            self.values = np.concatenate([self.values, more], axis=1)


def of_classes(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy, margin, error and probability [n] in float64 of logits z [n, C] and labels y [n].

    >>> [round(float(v), 4) for v in of_classes(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))]
    [0.6931, 0.0, 0.7071, 0.5]
    """
    # classes first: sums over the first axis are the faster ones where there are few
    rest, y = torch.empty(z.shape[::-1], dtype=torch.float64, device=z.device).copy_(z.t()), y[None]
    own = rest.gather(0, y)[0]
    best = rest.scatter_(0, y, -torch.inf).amax(0)
    most = torch.maximum(best, own)
    rest.sub_(most).exp_()  # in place from here on: a copy costs as much as the sum
    own_part = (own - most).exp_()
    others = rest.sum(0)
    total = others + own_part
    loss = torch.where(own >= best, others.log1p(), (most - own) + total.log())
    error = (rest.square_().sum(0) + others.square()).sqrt_() / total  # 1 - p_y is the sum of the others
    return loss, own - best, error, own_part / total
