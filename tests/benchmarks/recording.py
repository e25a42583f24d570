"""What noting every row at every epoch costs a training of a tiny network (results/epochs_and_folds.md).

    python tests/benchmarks/recording.py DIGITS_MANIFEST [--rounds 10] [--more 24] [--epochs 100]

The processor's time of a training that notes with that of the same training with ``--more`` recorders beside its own,
by turns, which of the two is first changing by round; the difference over their number is what one costs, and is held
against the training without its start (a training of two epochs) and without its own recorder.  The others write what
they noted as the first does, into the same files.  No clock is looked at within a step: that alone costs as much.  With
many recorders the noise of two trainings, a tenth of either on a busy machine, is divided by their number.  The last
line is the mean over rounds with a 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy import stats

import influence_cli
from influence_cli.model.train.epoch_values import EpochValues


def add_recorders(count: Callable[[], int]) -> None:
    """Have every recorder of a training told to as many others."""
    others, plain = dict[int, list[EpochValues]](), {n: getattr(EpochValues, n) for n in ("batch", "epoch", "flush")}
    init = EpochValues.__init__

    def begun(self: EpochValues, keep: Any, labels: Any, loss: Any, write: Any, *size: int) -> None:
        init(self, keep, labels, loss, write, *size)
        others[id(self)] = more = [EpochValues.__new__(EpochValues) for _ in range(count())]
        for each in more:
            init(each, keep, labels, loss, lambda *_: None, *size)

    def told(name: str) -> Callable[..., None]:
        def tell(self: EpochValues, *given: Any) -> None:
            plain[name](self, *given)
            for each in others[id(self)]:
                plain[name](each, *given)

        return tell

    EpochValues.__init__ = begun  # pyright: ignore[reportAttributeAccessIssue]
    for name in plain:
        setattr(EpochValues, name, told(name))


def main() -> None:
    """Print a line a round, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--more", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    more = 0
    add_recorders(lambda: more)

    def seconds(epochs: int, recorders: int) -> float:
        nonlocal more
        more = recorders
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            influence_cli.retrain(asked.manifest, f"{folder}/RUN", model="mlp:128", epochs=epochs)
            return time.process_time() - started

    seconds(2, 0)
    shares = list[float]()
    for k in range(asked.rounds):
        found, start = dict[int, float](), seconds(2, 0)
        for recorders in (0, asked.more)[:: 1 if k % 2 else -1]:
            found[recorders] = seconds(asked.epochs, recorders)
        own, many = found[0], found[asked.more]
        one = (many - own) / asked.more
        shares.append(one / (own - one - start))
        print(f"round {k + 1}: {own:.3g} s, with {asked.more} more {many:.3g} s: {shares[-1]:.2%} of the steps each")
    mean, n = statistics.mean(shares), len(shares)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(shares) / n**0.5
    print(
        f"mean {mean:.2%}, 95 % interval {mean - half:.2%} to {mean + half:.2%}; median {statistics.median(shares):.2%}"
    )


if __name__ == "__main__":
    main()
