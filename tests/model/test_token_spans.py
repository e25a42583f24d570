"""Where tokens stand in a text: pieces of the text are whole characters, and together they are the text.

python -m pytest tests/model/test_token_spans.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from influence_cli.errors import ModelError
from influence_cli.model import byte_pairs
from influence_cli.model.text_input import TextInput, tokenizer_digest
from influence_cli.model.token_spans import special_names, token_spans
from tests.texts import tokenizer, tokenizers, transformers

TEXT = "Die Straße  日本 👩‍👩‍👧\n\n\tnaïve  \r\n Ende "


def of_pairs(size: int = 300, **more: Any) -> TextInput:
    """Our own encoding, learned from the text."""
    merges = byte_pairs.learn([TEXT] * 2, size)
    return TextInput(byte_pairs.digest(merges), 4096, 4096, 0, vocabulary=size, merges=merges, **more)


def of_folder(folder: Path, made: Any, **more: Any) -> TextInput:
    """The tokenizer of transformers, saved."""
    made.save_pretrained(folder)
    digest = tokenizer_digest(folder)
    assert digest is not None
    return TextInput(digest, 4096, 4096, 0, folder=folder, **more)


def byte_level(trimmed: bool) -> Any:
    """A tokenizer as GPT-2's, whose tokens are bytes, and which counts a space before a word to it or not."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    single = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    level = tokenizers.processors.ByteLevel(trim_offsets=trimmed)
    made.post_processor = tokenizers.processors.Sequence([level, single])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", pad_token="<s>")


def tiles(spans: Any, text: str, first: int) -> bool:
    """Whether tokens from ``first`` on stand one after the other, overlapping within characters alone, to the end."""
    at = 0
    for start, end in spans[first:].tolist():
        if not (start < end and start in (at, at - 1) and end >= at):
            return False
        at = end
    return at == len(text)


def test_our_own_encoding_tiles_the_text() -> None:
    model = of_pairs()
    spans = token_spans(model, TEXT)
    assert len(spans) == len(model.encoded(TEXT)["input_ids"])
    assert spans[0].tolist() == [0, 0]
    assert tiles(spans, TEXT, 1)
    assert special_names(model) == {"0": "<begin>"}
    pairs = model.pairs
    for number, (start, end) in zip(model.encoded(TEXT)["input_ids"].tolist()[1:], spans[1:].tolist(), strict=True):
        assert pairs.pieces[number] in TEXT[start:end].encode()


@pytest.mark.parametrize("trimmed", [True, False])
def test_tokens_of_bytes_tile_the_text_with_the_spaces_before_them(trimmed: bool, tmp_path: Path) -> None:
    model = of_folder(tmp_path, byte_level(trimmed))
    spans = token_spans(model, TEXT)
    assert len(spans) == len(model.encoded(TEXT)["input_ids"])
    assert spans[0].tolist() == [0, 0]
    assert tiles(spans, TEXT, 1)
    assert special_names(model) == {"0": "<s>"}
    words = [TEXT[a:b] for a, b in spans.tolist()]
    assert any(word.startswith(" ") and len(word) > 1 for word in words)


def test_tokens_of_words_have_their_words_and_added_ones_their_names(tmp_path: Path) -> None:
    model = of_folder(tmp_path, tokenizer())
    spans = token_spans(model, "The  cat\nsees")
    assert ["The  cat\nsees"[a:b] for a, b in spans.tolist()] == ["", "The", "  cat", "\nsees", ""]
    assert special_names(model)["2"] == "[CLS]"


def test_a_text_that_is_cut_has_the_places_of_the_tokens_that_are_left(tmp_path: Path) -> None:
    for model in (of_pairs(), of_folder(tmp_path, byte_level(False))):
        cut = dataclasses.replace(model, max_length=7, asked=True)
        assert token_spans(cut, TEXT).tolist() == token_spans(model, TEXT)[:7].tolist()
        assert len(cut.encoded(TEXT)["input_ids"]) == 7


def test_a_tokenizer_that_does_not_tell_where_its_tokens_stand_is_refused(tmp_path: Path) -> None:
    model = of_folder(tmp_path, tokenizer())

    class Slow:
        is_fast = False

    model.__dict__["tokens"] = Slow()
    with pytest.raises(ModelError, match="does not tell where"):
        token_spans(model, TEXT)
