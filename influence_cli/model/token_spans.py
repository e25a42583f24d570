"""Where in a text each of its tokens stands, in characters, and what tokens without a place are called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ModelError
from influence_cli.model.text_input import TextInput

BEGINS = "<begin>"  # what the first token of our own encoding is called


def token_spans(model: TextInput, text: str) -> NDArray[np.int32]:
    """The first character of each token and the one after its last, [T, 2]; equal where a token stands for none.

    Space before a token that the tokenizer counts to no token is counted to that one.  Tokens that are a part of a
    character alone have the whole one.

    Raises:
        ModelError: the tokenizer does not tell where its tokens stand.
    """
    spans, special = _of_pairs(model, text) if model.merges is not None else _of_tokenizer(model, text)
    end = 0
    for k in range(len(spans)):
        first, last = spans[k]
        if special[k]:
            spans[k] = end
            continue
        if first > end and text[end:first].isspace():
            spans[k, 0] = end
        end = max(end, int(last))
    return spans


def spans_of_texts(model: TextInput, texts: tuple[str, ...]) -> NDArray[np.int32]:
    """For each token of one text, or of two that are joined, which text it is of and where [T, 3].

    The first number is the text's, -1 of a token that was added; the others are as ``token_spans`` has them.

    Raises:
        ModelError: the tokenizer does not tell where its tokens stand.
    """
    if len(texts) == 1:
        spans = token_spans(model, texts[0])
        return np.column_stack([np.where(spans[:, 1] > spans[:, 0], 0, -1), spans]).astype(np.int32)
    made = _tokenized(model, texts)
    of = np.array([-1 if k is None else k for k in made.sequence_ids()], dtype=np.int32)
    return np.column_stack([of, np.array(made["offset_mapping"], dtype=np.int32).reshape(-1, 2)])


def special_names(model: TextInput) -> dict[str, str]:
    """The names of tokens that stand for no part of a text, by number as text."""
    if model.merges is not None:
        return {"0": BEGINS}
    tokens = model.tokens
    return {str(k): str(tokens.convert_ids_to_tokens(k)) for k in tokens.all_special_ids}


def _of_tokenizer(model: TextInput, text: str) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Places as the tokenizer gives them, and which tokens are added to the text."""
    made = _tokenized(model, (text,))
    spans = np.array(made["offset_mapping"], dtype=np.int32).reshape(-1, 2)
    return spans, np.array(made["special_tokens_mask"], dtype=bool) & (spans[:, 0] == spans[:, 1])


def _tokenized(model: TextInput, texts: tuple[str, ...]) -> Any:
    """What the tokenizer says of one text, or of two.  Raises ModelError: not where its tokens stand."""
    tokens: Any = model.tokens
    if not tokens.is_fast:
        what = "the tokenizer does not tell where in a text its tokens stand"
        fix = "save it as tokenizer.json, or leave --tokens out"
        raise ModelError(what, where=str(model.folder or ""), fix=fix)
    return tokens(
        *texts, truncation=model.cut, max_length=model.max_length if model.cut else None, padding=False, verbose=False,
        return_offsets_mapping=True, return_special_tokens_mask=True,
    )  # fmt: skip


def _of_pairs(model: TextInput, text: str) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Places from how many bytes each token is."""
    ids = model.pairs.encode(text)[: model.max_length if model.cut else None]
    ends = np.cumsum([len(model.pairs.pieces[k]) for k in ids])
    lengths = [len(c.encode()) for c in text]
    character = np.repeat(np.arange(len(text)), lengths)  # of every byte
    spans = np.zeros((len(ids), 2), dtype=np.int32)
    for k in range(1, len(ids)):
        spans[k] = character[ends[k - 1]], character[ends[k] - 1] + 1
    return spans, np.arange(len(ids)) == 0
