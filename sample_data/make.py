"""Make manifest.parquet: scikit-learn's digits with 15 % of the training labels planted wrong.

    python sample_data/make.py && cd sample_data && influence retrain -o run && rm -r run/arms

1,797 scans of 8x8 pixels from the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
UCI, CC BY 4.0), as greyscale PNG; 60 % train, 20 % val, 20 % test, stratified.  In train every seventh label or so
(exactly 15 %, drawn with seed 7) is replaced by one of the nine others; ``clean_label`` keeps the truth.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED, WRONG = 7, 0.15


def png(pixels: np.ndarray) -> bytes:
    """A greyscale PNG of pixels 0..16."""
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def main() -> None:
    """Write the manifest beside this script."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    train, rest = train_test_split(rows, test_size=0.4, random_state=SEED, stratify=digits.target)
    val, test = train_test_split(rest, test_size=0.5, random_state=SEED, stratify=digits.target[rest])
    split = np.full(len(rows), "train", dtype=object)
    split[val], split[test] = "val", "test"
    rng = np.random.default_rng(SEED)
    labels = digits.target.astype(np.int64)
    wrong = rng.choice(train, int(WRONG * len(train)), replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    images = [{"bytes": png(image), "path": None} for image in digits.images]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "id": pa.array([f"digit-{k:04d}" for k in rows]),
            "split": pa.array(split.tolist()),
            "image": pa.array(images, image_type),
            "label": pa.array(noisy),
            "clean_label": pa.array(labels),
        }
    ).replace_schema_metadata({"classes": json.dumps([str(k) for k in range(10)])})
    pq.write_table(table, Path(__file__).with_name("manifest.parquet"))


if __name__ == "__main__":
    main()
