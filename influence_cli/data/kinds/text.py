"""Texts, and pairs of texts, which a model's tokenizer makes token numbers of.

A batch is padded on the right to its longest row, and what a row's padding holds never reaches its own tokens: the mask
tells the model, and a row alone has the logits that it has in any batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import BadPayload, Decoded, InputSpec, Kind, is_text

TOKENS, MASK = "input_ids", "attention_mask"  # what every model of text calls its token numbers, and which count
CHANGE = "embedding_change"  # of an attacked row: what is added to the embeddings of its tokens [b, T, d]
BLANK_TOKENS = 8  # of an input that only tries whether a model runs


class Text(Kind):
    """One text a row, in column ``text``."""

    name = "text"
    columns = ("text",)
    types = {"text": pa.string()}  # noqa: RUF012
    wanted = "text"
    domain = "influence.text"
    as_it_is = False
    threads = False  # a tokenizer is one object, and no place for several threads
    ragged = True
    own_target = True
    repair = "give the model rows as it was trained on"

    def holds(self, kind: pa.DataType) -> bool:
        """Text."""
        return is_text(kind)

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Any]:
        """Texts as they are."""
        return batch.column("text").to_pylist()

    def fault(self, payload: Any) -> BadPayload | None:
        """A text has a character that is no space."""
        empty = next((name for name, text in self.as_values(payload).items() if not text.strip()), None)
        if empty is None:
            return None
        return BadPayload(f"column {empty}: the text is empty", "write one, or take the row out")

    def raw(self, payload: Any) -> bytes:
        """Its UTF-8."""
        return payload.encode()

    def from_source(self, row: Mapping[str, Any], folder: Path) -> Any:
        """The text.  Raises BadPayload: it is missing, empty, or no Unicode (half of a surrogate pair)."""
        for column in self.columns:
            text = row[column]
            if text is None:
                raise BadPayload(f"column {column}: the text is missing", "write one, or take the row out")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                what = f"column {column}: character {error.start} is half of a surrogate pair, which is no Unicode"
                raise BadPayload(what, "save the source as UTF-8 again") from error
        return super().from_source(row, folder)

    def shape(self, payload: Any, whole: bool = False) -> tuple[int, ...]:
        """Its characters: only a tokenizer knows of tokens."""
        return (sum(map(len, self.as_values(payload).values())),)

    def decode(self, payload: Any, spec: InputSpec) -> Decoded:
        """Token numbers and a mask, each [T].  Raises ValueError: more tokens than the model takes."""
        if spec.text is None:
            raise ValueError("texts where the model takes something else")
        found = spec.text.encoded(*((payload,) if isinstance(payload, str) else payload))
        if spec.is_language and len(found[TOKENS]) < 2:
            raise BadPayload("the text is one token, after which there is none to predict", "take the row out")
        return found

    def odd(self, values: Sequence[Decoded]) -> int | None:
        """None: rows have as many tokens as they have."""
        return None

    def lengths(self, decoded: Any) -> NDArray[np.int64]:
        """Tokens."""
        return decoded[MASK].sum(axis=1, dtype=np.int64)

    def collate(self, values: Sequence[Any]) -> Decoded:
        """Each array [b, T] for the longest row's T, others filled with 0 on the right; the mask says where."""
        longest = max(len(value[MASK]) for value in values)
        return {
            name: np.stack([np.pad(value[name], (0, longest - len(value[name]))) for value in values])
            for name in values[0]
        }

    def blank(self, spec: InputSpec, rows: int) -> Decoded:
        """Rows of a few tokens from all over the vocabulary."""
        return self._sample(spec, rows, min(BLANK_TOKENS, spec.shape[0]))

    def filled(self, spec: InputSpec) -> tuple[Decoded, Decoded]:
        """A row alone [1, T], and in a batch [2, U] with a longer one."""
        long = min(2 * BLANK_TOKENS, spec.shape[0])
        alone, longer = self._sample(spec, 1, max(2, long // 2)), self._sample(spec, 1, long)
        rows = [{name: value[0] for name, value in made.items()} for made in (alone, longer)]
        return alone, self.collate(rows)

    def _sample(self, spec: InputSpec, rows: int, tokens: int) -> dict[str, Any]:
        """Rows of different tokens, none of which fills up, and the last of which ends a text where that is needed."""
        some = [k for k in range(tokens + 2) if k not in (spec.text.padding, spec.text.end)][:tokens]
        ids = np.tile(np.array(some, dtype=np.int64), (rows, 1))
        if spec.text.end is not None:
            ids[:, -1] = spec.text.end
        return {TOKENS: ids, MASK: np.ones_like(ids)}

    def to_input(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """Integers i64 [b, T], cut to the longest row of this batch, with the model's own padding number."""
        mask = decoded[MASK].bool()
        longest = max(1, int(mask.sum(1).max()))
        cut = {name: tensor[:, :longest].long() for name, tensor in decoded.items()}
        cut[TOKENS] = cut[TOKENS].masked_fill(~mask[:, :longest], spec.text.padding)
        return cut

    def of_attacked(self, values: Any, spec: InputSpec) -> Any:
        """The input of rows with a change of their embeddings [b, T, d], which is cut as they are."""
        made = self.to_input({name: tensor for name, tensor in values.items() if name != CHANGE}, spec, None)
        return {**made, CHANGE: values[CHANGE][:, : made[MASK].shape[1]]}

    def as_values(self, payload: Any) -> dict[str, Any]:
        """The text."""
        return {"text": payload}

    def as_arrays(self, payload: Any, where: str) -> Decoded:
        """Texts as arrays of characters, of no fixed length."""
        values = {name: np.array(text) for name, text in self.as_values(payload).items()}
        return next(iter(values.values())) if len(values) == 1 else values

    @property
    def embedded_types(self) -> dict[str, tuple[pa.DataType, dict[str, Any]]]:
        """Columns of text."""
        return {name: (kind, {"dtype": "string", "_type": "Value"}) for name, kind in self.types.items()}


class TextPair(Text):
    """Two texts a row, in columns ``text_a`` and ``text_b``, which a tokenizer joins."""

    name = "text_pair"
    columns = ("text_a", "text_b")
    types = {"text_a": pa.string(), "text_b": pa.string()}  # noqa: RUF012
    domain = "influence.texts"
    model_kind = "text"
    own_target = False

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Any]:
        """Both texts; None where one is missing."""
        pairs = zip(*(batch.column(name).to_pylist() for name in self.columns), strict=True)
        return [None if a is None or b is None else (a, b) for a, b in pairs]

    def raw(self, payload: Any) -> bytes:
        """The first text's length in UTF-8, eight bytes, and both texts."""
        a, b = (text.encode() for text in payload)
        return len(a).to_bytes(8, "little") + a + b

    def as_values(self, payload: Any) -> dict[str, Any]:
        """Both texts, by column."""
        return dict(zip(self.columns, payload, strict=True))
