"""How many tokens the texts of some rows have, and how many texts are cut: said before they are used."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.events import Listener
from influence_cli.model.spec import ModelSpec
from influence_cli.store.keys import digest_of_sorted, fingerprint

if TYPE_CHECKING:
    from influence_cli.store import Store

CHUNK = 1024


@dataclass(frozen=True)
class TextLengths:
    """Tokens of texts before any is cut."""

    rows: int
    shortest: int
    median: int
    longest: int
    over: int  # with more than the model is given

    def said(self, limit: int, name: str, cut: bool) -> str:
        """In one sentence; where texts are not ``cut`` those that are too long are refused."""
        own = f"{self.shortest} to {self.longest} tokens (middle one {self.median})"
        if self.over == 0:
            return f"texts: {own}, none above {limit}"
        over = f"{self.over:,} of {self.rows:,} {name} rows"
        return f"texts: {own}; {over} {'are cut to' if cut else 'have more than the'} {limit} tokens" + (
            "" if cut else " that the model takes"
        )

    def say(self, limit: int, name: str, cut: bool, listener: Listener) -> None:
        """The same, as a warning where some are too long."""
        (listener.warn if self.over else listener.note)(self.said(limit, name, cut))


def text_lengths(rows: Rows, spec: ModelSpec, store: Store | None) -> TextLengths | None:
    """Of all texts of some rows, remembered in the store; None where there are none, or the model takes other input."""
    text = spec.text
    if text is None or len(rows) == 0 or not rows.manifest.payload_kind.ragged:
        return None
    named = {"rows": digest_of_sorted(rows.payload_keys), "tokenizer": text.tokenizer, "limit": text.max_length}
    key = fingerprint("text-lengths", 1, **named)
    note = store.read_model_note(key) if store else None
    if note is not None:
        return TextLengths(**note)
    counts = list[Any]()
    kind, chunk = rows.manifest.payload_kind, list[tuple[str, ...]]()
    for _, payload in rows.manifest.payloads(rows.index):
        chunk.append(tuple(kind.as_values(payload).values()))  # pyright: ignore[reportOptionalMemberAccess]
        if len(chunk) == CHUNK:
            counts.append(text.lengths(chunk))
            chunk.clear()
    counts += [text.lengths(chunk)] if chunk else []
    lengths = np.concatenate(counts)
    over = int((lengths > text.max_length).sum())
    found = TextLengths(len(rows), int(lengths.min()), int(np.median(lengths)), int(lengths.max()), over)
    if store:
        store.write_model_note(key, asdict(found))
    return found
