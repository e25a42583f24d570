"""How near bif and gex come to exact influence on a small network, and what they cost.

    python tests/benchmarks/bif.py OUT > table.md

Digits as 64 features (scikit-learn's copy), 15 % of the train labels flipped, a network of one hidden layer with 16
units; about three minutes of one processor.  The reference is ``exact`` (Gauss-Newton) at the same damping.  The first
table has a line for each set of options; the second what finds the flipped labels.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.events import SILENT

TRAIN, VAL, FLIPPED = 400, 200, 0.15
CONFIGURATIONS = (  # name, options
    ("defaults", {}),
    ("damping 0.3", {"damping": 0.3}),
    ("damping 0.03", {"damping": 0.03}),
    ("nbeta 10,000", {"nbeta": 1e4}),
    ("nbeta n/ln n = 66.8", {"nbeta": 66.8}),
    ("rmsprop", {"sampler": "rmsprop"}),
    ("damping 0.3, step 0.1 / lambda, thin 1", {"damping": 0.3, "nbeta": 1e4, "step": 3.85e-6, "thin": 1}),
)
HEADINGS = (
    *("bif", "damping", "nbeta", "eps lambda_max", "draws", "effective draws (least of losses, Phi)", "R-hat", "loss"),
    *("LLC", "Pearson with `exact`", "Spearman", "Spearman of `ip`", "CPU seconds"),
)


def digits(path: Path) -> np.ndarray:
    """A manifest; which train rows have a wrong label."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))[: TRAIN + VAL]
    x, y = (x[order] / 16.0).astype(np.float32), y[order].astype(np.int64)
    wrong = np.zeros(TRAIN, dtype=bool)
    wrong[rng.choice(TRAIN, round(FLIPPED * TRAIN), replace=False)] = True
    labels = y.copy()
    labels[:TRAIN][wrong] = (y[:TRAIN][wrong] + rng.integers(1, 10, wrong.sum())) % 10
    split = ["train"] * TRAIN + ["val"] * VAL
    columns = {"id": [str(k) for k in range(len(x))], "features": list(x), "label": labels, "split": split}
    pq.write_table(pa.table(columns), path)
    return wrong


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, without ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def main() -> None:
    """Train once, then score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    manifest, run = asked.out / "digits.parquet", str(asked.out / "run")
    wrong = digits(manifest)
    if not Path(run).exists():
        trained = {"epochs": 60, "lr": 0.2, "batch_size": 64, "weight_decay": 0.0}
        influence_cli.retrain(str(manifest), run, model="mlp:16", raw_features=True, listener=SILENT, **trained)

    def scored(method: str, **options: Any) -> tuple[np.ndarray, dict[str, Any], float]:
        began = time.process_time()
        table = influence_cli.score(
            str(manifest), checkpoint=run, method=method, options={method: options}, store=str(asked.out / "store"),
            listener=SILENT,
        )  # fmt: skip
        took = time.process_time() - began
        return table.column("score").to_numpy(), provenance(table.schema).get("further", {}).get(method, {}), took

    ip, _, ip_seconds = scored("ip")
    found: dict[str, np.ndarray] = {"ip": ip, "loss": scored("loss")[0]}
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    usual = scored("bif", draws=4, chains=1)[1]["damping"]
    for name, options in CONFIGURATIONS:
        damping = options.get("damping", usual)
        exact = scored("exact", damping=damping, l2=0.0)[0]
        found[f"exact, damping {damping:.2g}"] = exact
        scores, facts, seconds = scored("bif", **options)
        found[f"bif, {name}"] = scores
        of = facts["objectives"]["utility"]
        figures = (
            f"{damping:.3g}", f"{facts['nbeta']:,.0f}", f"{facts['step_times_largest']:.2g}", f"{of['draws']:,}",
            f"{of['least_effective_draws']:.0f}, {of['effective_draws']:.0f}", f"{of['worst_rhat']:.2f}",
            f"{facts['start_loss']:.3f} to {of['mean_loss']:.3f}", f"{of['learning_coefficient']:.3g}",
            f"{np.corrcoef(scores, exact)[0, 1]:.3f}", f"{spearman(scores, exact):.3f}",
            f"{spearman(ip, exact):.3f}", f"{seconds:.1f}",
        )  # fmt: skip
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)
    for centre in ("mean", "checkpoint"):
        scores, facts, seconds = scored("gex", centre=centre)
        found[f"gex, centre {centre}"] = scores
        print(
            f"\ngex, centre {centre}: {seconds:.1f} CPU seconds; drift {json.dumps(facts['relative_distance'][::31])}"
        )
    found["gex-ip"] = scored("gex-ip")[0]
    found["bif, defaults, correlation"] = scored("bif", norm="correlation")[0]
    print(f"\nip alone took {ip_seconds:.1f} CPU seconds, start included.\n")
    print(f"| scores | AUC of flipped labels | Spearman with `exact` at {usual:.3g} |\n|---|---|---|")
    for name, scores in found.items():
        against = spearman(scores, found[f"exact, damping {usual:.2g}"])
        print(f"| {name} | {roc_auc_score(wrong, -scores):.3f} | {against:.3f} |")


if __name__ == "__main__":
    main()
