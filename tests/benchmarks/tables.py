"""From a raw CSV to a linear model in two commands, beside scikit-learn's pipeline on the same rows: one table.

    python tests/benchmarks/tables.py [--csv FILE:LABEL ...] > table.md       about 20 s a file on one core

Without files it is scikit-learn's breast cancer, written as a CSV with pandas' index.  Both sides train on rows that
the manifest calls train (scikit-learn's on val too) and are tested on its test rows: the mean over
``--seeds`` divisions.
scikit-learn: columns of numbers imputed by the median and standardised, columns of text one-hot, LogisticRegression.
Ours: ``influence manifest`` and ``influence retrain --model linear`` with their defaults, and with lbfgs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import influence_cli


def breast_cancer(folder: Path) -> str:
    """The CSV that pandas writes, with names of classes and its index."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True)["frame"].rename(columns={"target": "diagnosis"})
    frame["diagnosis"] = frame["diagnosis"].map({0: "malignant", 1: "benign"})
    frame.to_csv(folder / "cancer.csv")
    return f"{folder / 'cancer.csv'}:diagnosis"


def scikit(path: str, label: str, split: np.ndarray) -> float:
    """Test accuracy of the usual pipeline."""
    frame = pd.read_csv(path, sep=None, engine="python", keep_default_na=True, na_values=["?"])
    frame = frame.drop(columns=[c for c in frame if str(c).startswith("Unnamed") or str(c).lower() == "id"])
    frame, split = frame[frame[label].notna()], split[frame[label].notna().to_numpy()]
    x, y = frame.drop(columns=label), frame[label]
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = make_pipeline(SimpleImputer(strategy="constant", fill_value="-"), OneHotEncoder(handle_unknown="ignore"))
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")), (texts, make_column_selector(dtype_exclude="number"))
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=2000)).fit(x[split != "test"], y[split != "test"])
    return float(model.score(x[split == "test"], y[split == "test"]))


def ours(manifest: str, folder: Path, **recipe: object) -> float:
    """Test accuracy of a linear model."""
    metrics = influence_cli.retrain(manifest, str(folder), model="linear", **recipe)
    return float(next(iter(metrics["arms"].values()))["mean"]["accuracy"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", nargs="*", default=[], metavar="FILE:LABEL")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    print(
        "| file | rows | features | scikit-learn | ours, defaults | ours, lbfgs | difference, points |\n"
        + "|---" * 7
        + "|"
    )
    with tempfile.TemporaryDirectory() as place:
        for source in asked.csv or [breast_cancer(Path(place))]:
            path, _, label = source.rpartition(":")
            found = []
            for seed in range(asked.seeds):
                folder = Path(place) / f"{Path(path).stem}-{seed}"
                folder.mkdir()
                out = str(folder / "m.parquet")
                made = influence_cli.manifest(path, out, label=label, seed=seed, skip_bad=True)
                table = pq.read_table(out, columns=["id", "split"])
                rows = sum(1 for _ in pd.read_csv(path, sep=None, engine="python").index)
                split = np.full(rows, "none", dtype="<U5")
                split[[int(i.rpartition("-")[2]) for i in table["id"].to_pylist()]] = table["split"].to_pylist()
                defaults = ours(out, folder / "run")
                convex = ours(out, folder / "lbfgs", optimizer="lbfgs", weight_decay=1e-3)
                found.append((scikit(path, label, split), defaults, convex))
            width = sum(len(f.get("categories", [0] * f.get("width", 1))) for f in json.loads(
                pq.read_schema(out).metadata[b"influence.columns"])["features"])  # fmt: skip
            theirs, defaults, convex = np.mean(found, axis=0)
            points = ", ".join(f"{100 * (mine - theirs):+.1f}" for mine in (defaults, convex))
            shown = f"{theirs:.3f} | {defaults:.3f} | {convex:.3f} | {points}"
            print(f"| {Path(path).name} | {len(made.manifest):,} | {width} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
