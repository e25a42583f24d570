"""The figure in results/canaries.md, from what ``canaries.sh`` left: curves of canaries and of rows that are wrong.

python tests/benchmarks/canary_figure.py OUT sample_data/canaries.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SETS = {"digits": "digits, 15 % wrong, mlp:128", "cifar10n-small": "CIFAR-10N, 39 % wrong, resnet18"}
COLUMNS = {"loss": "#d55e00", "exact_utility": "#009e73", "all:ip_utility": "#cc79a7", "random": "#888888"}


def main(out: Path, figure: Path) -> None:
    """Draw one panel a data set: solid canaries, dashed the rows that are really wrong."""
    found = [name for name in SETS if (out / name / "trust.json").exists()]
    drawn, panels = plt.subplots(1, len(found), figsize=(5.2 * len(found), 4.2), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], found, strict=True):
        result = json.loads((out / name / "trust.json").read_text())
        (canaries,) = result["canaries"]
        for column, colour in COLUMNS.items():
            for source, style in ((canaries, "-"), (result, "--")):
                d = source["detection"][column]
                curve = d["curves"]["roc"]
                what = f"{column.removesuffix('_utility').removeprefix('all:')}, " + (
                    f"canaries: AUC {d['auc']:.2f}" if style == "-" else f"really wrong: {d['auc']:.2f}"
                )
                x, y = curve["false_positive_rate"], curve["true_positive_rate"]
                axes.plot(x, y, color=colour, ls=style, lw=1.5, label=what)
        axes.set(title=SETS[name], xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(fontsize=7.5, loc="lower right")
        axes.grid(alpha=0.25)
    drawn.savefig(figure, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
