"""How texts become a model's input: a tokenizer, and how many tokens it may give.

A tokenizer is known by the bytes of its files, which ``retrain`` copies into its run folder, so that a warm run need
not load it.  Nothing here imports torch, and transformers only to make tokens.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import BadPayload
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.byte_pairs import BytePairs, Pair, are_merges
from influence_cli.store.files import replacing
from influence_cli.store.lfs import refuse_pointer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
_NUMBERS = ("max_length", "longest", "padding")
_NAMES = {1: "a text", 2: "a pair of texts"}


@dataclass(frozen=True)
class TextInput:
    """A tokenizer, how long its rows may be, and how they are filled up."""

    tokenizer: str  # the digest of its files
    max_length: int  # tokens
    longest: int  # tokens that the model takes; texts are cut to fewer, since that was asked for
    padding: int  # the number that fills rows up; a mask hides it
    vocabulary: int | None = None  # token numbers that the model knows
    types: bool = True  # whether the model tells the two texts of a pair apart by types of tokens
    end: int | None = None  # the token that every row has to hold once, of models that read and write
    texts: int | None = None  # of a row that it was trained on: 1, or 2 of pairs; None: nobody says
    merges: tuple[Pair, ...] | None = None  # of a tokenizer of our own: the pairs of bytes that it learned
    asked: bool = field(default=False, compare=False)  # to cut texts that are longer than the model takes
    folder: Path | None = field(default=None, compare=False)  # where the tokenizer's files are

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and fingerprints."""
        names = ("tokenizer", *_NUMBERS, "vocabulary", "types", "end", "texts", "merges")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> TextInput:
        """The inverse of ``as_dict``; ``folder`` may stand beside its values."""
        where = value.get("folder")
        merges = value.get("merges")
        pairs = None if merges is None else tuple((a, b) for a, b in merges)
        return TextInput(**{**value, "merges": pairs, "folder": None if where is None else Path(where)})

    @property
    def cut(self) -> bool:
        """Whether longer texts are cut, or refused."""
        return self.asked or self.max_length < self.longest

    def encoded(self, *texts: str) -> dict[str, NDArray[np.int32]]:
        """Token numbers and a mask, each [T], of a text or a pair.

        Raises:
            ValueError: there are more than the model takes, and they are not to be cut; or pairs where the model was
                trained on single texts.
            ModelError: the tokenizer cannot be used.
        """
        if self.texts not in (None, len(texts)):
            raise ValueError(f"{_NAMES[len(texts)]} where the model was trained on {_NAMES[self.texts or 1]} a row")
        found = self._tokenize([texts])
        count = len(found["input_ids"][0])
        if count > self.max_length and not self.cut:
            fix = f"shorten it, or pass --max-length {self.max_length} to cut texts to as many tokens"
            raise BadPayload(f"the text has {count:,} tokens where the model takes {self.max_length:,}", fix)
        if count > self.max_length:
            found = self._tokenize([texts], cut=True)
        return {name: np.asarray(values[0], dtype=np.int32) for name, values in found.items()}

    def lengths(self, rows: list[tuple[str, ...]]) -> NDArray[np.int64]:
        """Tokens of each text, uncut [n]."""
        return np.array([len(ids) for ids in self._tokenize(rows)["input_ids"]], dtype=np.int64)

    def _tokenize(self, rows: list[tuple[str, ...]], cut: bool = False) -> dict[str, list[list[int]]]:
        """Token numbers, mask and, where the model has any, types, of each row."""
        if self.merges is not None:
            ids = [self.pairs.encode(text)[: self.max_length if cut else None] for (text,) in rows]
            return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        made = self.tokens(
            *(list(column) for column in zip(*rows, strict=True)),
            truncation=cut, max_length=self.max_length if cut else None, padding=False, verbose=False,
            return_attention_mask=True,
        )  # fmt: skip
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if self.types else ()))
        return {name: made[name] for name in names if name in made}

    @functools.cached_property
    def pairs(self) -> BytePairs:
        """The tokenizer, where it is of our own."""
        return BytePairs(self.merges or ())

    @functools.cached_property
    def tokens(self) -> Any:
        """The tokenizer.

        Raises:
            ModelError: its files are gone or have changed, or it is another model's.
        """
        if self.folder is None or tokenizer_digest(self.folder) != self.tokenizer:
            raise other_tokenizer(self.folder)
        tokenizer = load_tokenizer(self.folder)
        count = 1 + max(tokenizer.get_vocab().values(), default=-1)
        if self.vocabulary is not None and count > self.vocabulary:
            what = f"the tokenizer has {count:,} tokens, the model {self.vocabulary:,}: it is another model's"
            raise ModelError(what, where=str(self.folder), fix="give the model's own")
        return tokenizer

    def copy_files(self, folder: Path) -> None:
        """Put the tokenizer's files beside a checkpoint, byte by byte."""
        assert self.folder is not None
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file() and self.folder.resolve() != folder.resolve():
                with replacing(folder / name) as temporary:
                    shutil.copyfile(self.folder / name, temporary)


def is_text_input(value: Any) -> bool:
    """Whether a value is a model's text input as JSON keeps it."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"tokenizer", *_NUMBERS, "vocabulary", "types", "end", "texts", "merges", "folder", "asked"}
        and isinstance(value.get("tokenizer"), str)
        and all(type(value.get(name)) is int and value[name] >= 0 for name in _NUMBERS)
        and isinstance(value.get("vocabulary"), int | None)
        and isinstance(value.get("types", True), bool)
        and isinstance(value.get("end"), int | None)
        and value.get("texts") in (None, 1, 2)
        and (value.get("merges") is None or are_merges(value["merges"]))
    )


def other_tokenizer(folder: Path | None) -> ModelError:
    """The error of a folder whose tokenizer is not the model's."""
    what = "the tokenizer is not the one that the model was made with: its files are gone or have changed"
    return ModelError(
        what, where="" if folder is None else str(folder), fix="copy the folder again, with its tokenizer"
    )


def placed(carried: dict[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """What a checkpoint carries of its model, with the folder of its tokenizer.

    Raises:
        ModelError: a tokenizer lies there that is not the model's: what is stored of it would be of other tokens.
    """
    if carried is None or carried.get("text") is None:
        return carried
    there = None if carried["text"].get("merges") is not None else tokenizer_digest(folder)
    if there is not None and there != carried["text"]["tokenizer"]:
        raise other_tokenizer(folder)
    return {**carried, "text": {**carried["text"], "folder": str(folder)}}


def require_transformers() -> Any:
    """The library.  Raises UsageError: it is not installed."""
    try:
        transformers: Any = importlib.import_module("transformers")  # a checker of types would read all of its models
    except ImportError as error:
        fix = "pip install 'influence-cli[text]'"
        raise UsageError(f"models of transformers need the extra text ({error})", fix=fix) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; code that it names is not run.

    Raises:
        ModelError: it cannot be read, or the model's configuration, which its reader looks at, cannot.
    """
    transformers = require_transformers()
    how = {"local_files_only": True, "trust_remote_code": False}
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), **how)
    except Exception as error:  # whatever a damaged file makes its readers stumble over
        try:
            transformers.AutoConfig.from_pretrained(str(folder), **how)
        except Exception as of_config:  # then the tokenizer's files may be as they should
            what = f"it says of no model that transformers {transformers.__version__} knows ({short(of_config)})"
            fix = "copy it again, or install the version of transformers that the model needs"
            raise ModelError(what, where=str(folder / "config.json"), fix=fix) from of_config
        what = f"the tokenizer cannot be read ({short(error)})"
        raise ModelError(what, where=str(folder), fix="copy it again") from error


def short(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join((str(error).strip() or type(error).__name__).split())[:200]


def tokenizer_digest(folder: Path) -> str | None:
    """What the files of a folder's tokenizer are known by; None where there are none."""
    digest, some = hashlib.blake2b(digest_size=16), False
    for name in TOKENIZER_FILES:
        file = folder / name
        if not file.is_file():
            continue
        refuse_pointer(file, ModelError)
        content, some = file.read_bytes(), True
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest() if some else None
