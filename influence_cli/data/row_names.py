"""The name of a manifest's rows: the fingerprint of what stages agree on, made a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influence_cli.data.ids import Ids
from influence_cli.data.split_column import Splits
from influence_cli.store.arrow import values_of
from influence_cli.store.keys import KEY_BYTES, Keys, canonical_json, fingerprint_of_text, taken
from influence_cli.store.parquet import column_digest

BLOCK = 4096  # rows whose text is in memory at once: of more, what one block lets go is given back and taken anew
_ESCAPED = r'["\\\x00-\x1f]'  # what JSON does not write as it is


def named_rows(ids: Ids, keys: Keys, splits: Splits) -> str:
    """Name of rows of distinct ids with their row keys [n, 16] and splits [n], in whatever order they stand.

    It is the fingerprint of [id, key in hex, split] of every row, sorted; that text is made a block at a time.
    """
    order = values_of(pc.call_function("sort_indices", [ids.column]), 0).astype(np.int64)
    escaped = pc.call_function("match_substring_regex", [ids.column], pc.MatchSubstringOptions(_ESCAPED))
    plain = not pc.call_function("any", [escaped]).as_py()

    def text() -> Iterator[bytes]:
        yield b'{"kind":"manifest","revision":1,"rows":['
        for first in range(0, len(order), BLOCK):
            here = order[first : first + BLOCK]
            names = ids.take(here)
            quoted = [f'"{name}"' for name in names] if plain else [canonical_json(name) for name in names]
            digits = taken(keys, here).tobytes().hex()
            rows = zip(quoted, range(0, len(digits), 2 * KEY_BYTES), splits[here].tolist(), strict=True)
            block = ",".join([f'[{name},"{digits[at : at + 2 * KEY_BYTES]}","{split}"]' for name, at, split in rows])
            yield (("," if first else "") + block).encode()
        yield b"]}"

    return fingerprint_of_text(text())


def digest_of_ids(table: pa.Table) -> str:
    """Digest of the column of ids, whatever chunks it is in."""
    return column_digest("id", table.column("id"))
