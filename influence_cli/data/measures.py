"""What models are measured by: what people call it, whether more is better, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure; a ``share`` is shown in percent, any other to four digits."""

    called: str
    higher: bool
    share: bool = True

    def text(self, value: float) -> str:
        """A value as people read it.

        >>> Measure("RMSE", False, False).text(53.4123), Measure("accuracy", True).text(0.9)
        ('53.41', '90.0%')
        """
        return f"{value:.1%}" if self.share else f"{value:.4g}"

    def interval(self, mean: float, half: float | None) -> str:
        """A mean with the half-width of its interval; shares in percent, without the sign.

        >>> MEASURES["accuracy"].interval(0.8745, 0.0039), MEASURES["rmse"].interval(54.123, None)
        ('87.45 ± 0.39', '54.12')
        """
        if self.share:
            return f"{100 * mean:.2f}" + ("" if half is None else f" ± {100 * half:.2f}")
        return f"{mean:.4g}" + ("" if half is None else f" ± {half:.2g}")


MEASURES: dict[str, Measure] = {
    "accuracy": Measure("accuracy", True),
    "balanced_accuracy": Measure("balanced accuracy", True),
    "micro_f1": Measure("micro F1", True),
    "macro_f1": Measure("macro F1", True),
    "exact_match": Measure("exact match", True),
    "rmse": Measure("RMSE", False, share=False),
    "mae": Measure("MAE", False, share=False),
    "r2": Measure("R2", True, share=False),
    "token_loss": Measure("loss per token", False, share=False),
    "perplexity": Measure("perplexity", False, share=False),
    "loss": Measure("loss", False, share=False),
}
HEADLINES = ("accuracy", "rmse", "token_loss", "loss")  # the first of these that is measured says how good a model is
CHIEF = ("accuracy", "token_loss", "loss")  # the first of these that is measured decides which model is better


def chief_of(measured: Iterable[str]) -> str:
    """The measure that decides between models: accuracy, or where labels are no classes the loss.

    >>> chief_of({"loss": 1.0, "rmse": 2.0}), chief_of({"accuracy": 0.9, "loss": 1.0})
    ('loss', 'accuracy')
    """
    there = set(measured)
    return next((name for name in CHIEF if name in there), "accuracy")


def headline_of(measured: Iterable[str]) -> str:
    """The measure that says how good a model is: accuracy, or where numbers are predicted the error.

    >>> headline_of({"loss": 1.0, "rmse": 2.0}), headline_of({"accuracy": 0.9, "loss": 1.0})
    ('rmse', 'accuracy')
    """
    there = set(measured)
    return next((name for name in HEADLINES if name in there), "accuracy")
