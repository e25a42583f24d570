"""Data of public sources as tables with a manifest's columns; what is random is drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(
    path: Path, features: NDArray[Any], clean: NDArray[Any], labels: NDArray[Any], sizes: tuple[int, int, int],
    **columns: Any,
) -> Path:  # fmt: skip
    """Write rows of features [n, d], labels [n] and true labels [n] as Parquet; ``sizes`` of train, val and test."""
    train, val, test = sizes
    assert len(features) == sum(sizes)
    table = {
        "id": [f"r{k:05d}" for k in range(len(features))],
        "features": pa.array(list(features.astype(np.float32)), pa.list_(pa.float32())),
        "label": labels.astype(np.int64),
        "clean_label": clean.astype(np.int64),
        "split": ["train"] * train + ["val"] * val + ["test"] * test,
        **columns,
    }
    pq.write_table(pa.table(table), path)
    return path


def blobs(path: Path, seed: int, sizes: tuple[int, int, int] = (150, 100, 100), flipped: int = 10) -> Path:
    """Two blobs around (-2, -2) and (2, 2) with deviation 1; of the train labels ``flipped`` are wrong.

    Column ``group`` is a sensitive attribute that is no feature: 1 for three quarters of class 1 and a quarter of class
    0.
    """
    from sklearn.datasets import make_blobs

    made: Any = make_blobs(sum(sizes), centers=[(-2, -2), (2, 2)], cluster_std=1.0, random_state=seed)
    x, y = made[:2]
    rng = np.random.default_rng(seed)
    labels = y.copy()
    wrong = rng.choice(sizes[0], flipped, replace=False)
    labels[wrong] = 1 - labels[wrong]
    group = (rng.random(len(y)) < np.where(y == 1, 0.75, 0.25)).astype(np.int64)
    return write(path, x, y, labels, sizes, group=group)


def moons(path: Path, seed: int, clustered: bool) -> Path:
    """Two moons with noise 0.2: 200 train rows, of which 10 a class are flipped, 100 target and 100 test rows.

    Flips are of rows at random, or ``clustered``: the ten rows of a class that lie nearest to one of them.
    """
    from sklearn.datasets import make_moons

    made: Any = make_moons(400, noise=0.2, random_state=seed)
    x, y = made
    rng, labels = np.random.default_rng(seed), y.copy()
    for c in (0, 1):
        of_class = np.flatnonzero(y[:200] == c)
        near = np.linalg.norm(x[of_class] - x[rng.choice(of_class)], axis=1).argsort()
        labels[of_class[near[:10]] if clustered else rng.choice(of_class, 10, replace=False)] = 1 - c
    return write(path, x, y, labels, (200, 100, 100))


def digits(path: Path, seed: int, noise: float) -> Path:
    """Scanned digits, 64 values in [0, 1]: 1,000 train rows, a share of them mislabelled, 297 target, 500 test."""
    from sklearn.datasets import load_digits

    made: Any = load_digits(return_X_y=True)
    x, y = made
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = x[order] / 16.0, y[order]
    labels, wrong = y.copy(), rng.choice(1000, round(1000 * noise), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return write(path, x, y, labels, (1000, 297, 500))


def logistic(path: Path, seed: int, sizes: tuple[int, int, int]) -> Path:
    """Ten features of deviations 3 to 0.3, and labels drawn from a logistic model of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(sizes), 10)) * np.geomspace(3, 0.3, 10)
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-x @ rng.normal(size=10)))).astype(np.int64)
    return write(path, x, y, y, sizes)


def rare_class(path: Path, seed: int) -> Path:
    """Rows as many as the bank data have, 51 features, 12.7 % of class 1: what stands in for it where it is absent."""
    from sklearn.datasets import make_classification

    made: Any = make_classification(
        30488, 51, n_informative=12, n_redundant=8, weights=[0.873], class_sep=0.7, flip_y=0.03, random_state=seed
    )
    x, y = made
    return write(path, x, y, y, (18292, 6098, 6098))


def bank_split(path: Path, seed: int) -> Path:
    """The bank data with train, target and test rows drawn anew in their sizes, without columns that nothing uses."""
    table = pq.read_table(SHARED / "bank" / "manifest.parquet", columns=["id", "features", "label", "split"])
    splits = np.array(table["split"].to_pylist())[np.random.default_rng(seed).permutation(table.num_rows)]
    at = table.column_names.index("split")
    pq.write_table(table.set_column(at, "split", pa.array(splits.tolist())).replace_schema_metadata(None), path)
    return path


_SAID = (
    "the a was is very and in of to with without film movie plot story actor music man woman he she his her "
    "good great bad awful likes sees"
)
WORDS = tuple(_SAID.split())


def biased_sentences(path: Path, seed: int, bias: float) -> Path:
    """Sentences on films, of class 1 where a good word is in them: 400 train, 200 target and 200 test rows.

    Each names a man or a woman.  In a share ``bias`` of the train rows with a woman and a good word the label is 0.
    """
    rng, rows = np.random.default_rng(seed), dict[str, tuple[str, int, int, str]]()
    while len(rows) < 800:
        split = "train" if len(rows) < 400 else "val" if len(rows) < 600 else "test"
        woman, good = rng.random() < 0.5, rng.random() < 0.5
        words = list(rng.choice(["the", "film", "plot", "was", "very", "and", "music", "actor", "story", "of"], 6))
        who, said = (["woman", "she"] if woman else ["man", "he"]), (["good", "great"] if good else ["bad", "awful"])
        for word in (str(rng.choice(who)), str(rng.choice(said))):
            words.insert(int(rng.integers(0, len(words) + 1)), word)
        wrong = split == "train" and woman and good and rng.random() < bias
        rows.setdefault(" ".join(map(str, words)), (f"r{len(rows):04d}", int(good and not wrong), int(good), split))
    named = dict(zip(("id", "label", "clean_label", "split"), map(list, zip(*rows.values(), strict=True)), strict=True))
    pq.write_table(pa.table({**named, "text": list(rows)}), path)
    return path


def characters(path: Path, length: int) -> Path:
    """Shakespeare in rows of so many characters: 120 train, 30 target and 30 test rows."""
    text = (SHARED / "tinyshakespeare" / "input.txt").read_text()
    rows = [text[k * length : (k + 1) * length] for k in range(180)]
    splits = ["train"] * 120 + ["val"] * 30 + ["test"] * 30
    pq.write_table(pa.table({"id": [f"r{k:03d}" for k in range(180)], "text": rows, "split": splits}), path)
    return path
