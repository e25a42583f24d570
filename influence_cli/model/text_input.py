"""What a folder of the Hugging Face form says of a model of text: its configuration, and the tokenizer beside it.

The configuration is what builds the network, less what only notes where it came from.  A tokenizer is known by the
bytes of its files, which ``retrain`` copies into its run folder, so that a warm run need not load it.  Nothing here
imports torch, and transformers only to make tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ModelError, UsageError
from influence_cli.store.files import replacing
from influence_cli.store.lfs import FIX, WHAT, is_pointer

HF = "hf:"  # prefix of a folder of the Hugging Face form, as a model's name
CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
# of a configuration: where it came from, how it is called, and what our own evaluation decides
_NOT_BUILT = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "num_labels", "problem_type",
    "torch_dtype", "transformers_version", "use_cache", "_attn_implementation", "attn_implementation",
    "finetuning_task", "task_specific_params", "output_attentions", "output_hidden_states", "return_dict",
    "gradient_checkpointing", "torchscript", "chunk_size_feed_forward", "_attn_implementation_autoset",
}  # fmt: skip
# positions of these count from the padding number on, so that as many fewer tokens fit
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod",
           "roberta-prelayernorm", "ibert", "mega", "luke", "layoutlm", "esm"}  # fmt: skip
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_NO_LIMIT = 10**6  # a tokenizer that says more says nothing
_USUAL = 512  # tokens, of a model that does not say
TEXT_EXTRA = "pip install 'influence-cli[text]'"


@dataclass(frozen=True)
class TextInput:
    """How texts become a model's input, and the network that takes it."""

    config: str  # transformers' configuration, as sorted JSON
    tokenizer: str  # the digest of its files
    max_length: int  # tokens
    longest: int  # tokens that the model takes; texts are cut to fewer, since that was asked for
    padding: int  # the number that fills rows up; a mask hides it
    texts: int | None = None  # of a row that it was trained on: 1, or 2 of pairs; None: nobody says
    asked: bool = field(default=False, compare=False)  # to cut texts that are longer than the model takes
    folder: Path | None = field(default=None, compare=False)  # where the tokenizer's files are

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and fingerprints."""
        return {
            "config": json.loads(self.config), "tokenizer": self.tokenizer, "max_length": self.max_length,
            "longest": self.longest, "padding": self.padding, **({} if self.texts is None else {"texts": self.texts}),
        }  # fmt: skip

    @staticmethod
    def from_dict(value: dict[str, Any], folder: Path | None = None) -> TextInput:
        """The inverse of ``as_dict``, with its files in ``folder``."""
        where = value.get("folder") if folder is None else folder
        about = {**value, "config": json.dumps(value["config"], sort_keys=True)}
        return TextInput(**{**about, "folder": None if where is None else Path(where)})

    @property
    def cut(self) -> bool:
        """Whether longer texts are cut, or refused."""
        return self.asked or self.max_length < self.longest

    @property
    def model_type(self) -> str:
        """What transformers calls the architecture."""
        return json.loads(self.config)["model_type"]

    def encoded(self, *texts: str) -> dict[str, NDArray[np.int32]]:
        """Token numbers and a mask, each [T], of a text or a pair.

        Raises:
            ValueError: there are more than the model takes, and they are not to be cut; or a number is none of the
                model's.
        """
        if self.texts not in (None, len(texts)):
            kinds = {1: "a text", 2: "a pair of texts"}
            raise ValueError(f"{kinds[len(texts)]} where the model was trained on {kinds[self.texts or 1]} a row")
        found = self._tokenize([texts])
        if len(found["input_ids"][0]) > self.max_length:
            what = f"the text has {len(found['input_ids'][0]):,} tokens where the model takes {self.max_length:,}"
            if not self.cut:
                raise ValueError(what)
            found = self._tokenize([texts], cut=True)
        return {name: np.asarray(values[0], dtype=np.int32) for name, values in found.items()}

    def lengths(self, rows: list[tuple[str, ...]]) -> NDArray[np.int64]:
        """Tokens of each text, uncut [n]."""
        return np.array([len(ids) for ids in self._tokenize(rows)["input_ids"]], dtype=np.int64)

    def _tokenize(self, rows: list[tuple[str, ...]], cut: bool = False) -> dict[str, list[list[int]]]:
        """Token numbers, mask and, where the model has any, types, of each row."""
        made = self.tokens(
            *(list(column) for column in zip(*rows, strict=True)),
            truncation=cut, max_length=self.max_length if cut else None, padding=False, verbose=False,
            return_attention_mask=True,
        )  # fmt: skip
        found = {name: made[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in made}
        if json.loads(self.config).get("type_vocab_size", 2) < 2:
            found.pop("token_type_ids", None)
        return found

    @functools.cached_property
    def tokens(self) -> Any:
        """The tokenizer.

        Raises:
            ModelError: its files are gone or have changed, or it is another model's.
        """
        if self.folder is None or tokenizer_digest(self.folder) != self.tokenizer:
            where = "" if self.folder is None else str(self.folder)
            what = "the tokenizer is not the one that the model was made with: its files are gone or have changed"
            raise ModelError(what, where=where, fix="copy the folder again, with its tokenizer")
        tokenizer = load_tokenizer(self.folder)
        size = json.loads(self.config).get("vocab_size")
        if size is not None and len(tokenizer) > 0 and max(tokenizer.get_vocab().values()) >= size:
            what = f"the tokenizer has {max(tokenizer.get_vocab().values()) + 1:,} tokens, the model {size:,}"
            raise ModelError(f"{what}: it is another model's", where=str(self.folder), fix="give the model's own")
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
        and value.keys() <= {"config", "tokenizer", "max_length", "longest", "padding", "texts", "folder", "asked"}
        and isinstance(value.get("config"), dict)
        and isinstance(value["config"].get("model_type"), str)
        and isinstance(value.get("tokenizer"), str)
        and value.get("texts") in (None, 1, 2)
        and all(type(value.get(name)) is int and value[name] >= 0 for name in ("max_length", "longest", "padding"))
    )


def placed(carried: dict[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """What a checkpoint carries of its model, with the folder of its tokenizer."""
    if carried is None or carried.get("text") is None:
        return carried
    return {**carried, "text": {**carried["text"], "folder": str(folder)}}


def require_transformers() -> Any:
    """The library.  Raises UsageError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        what = f"models of text need the extra text ({error})"
        raise UsageError(what, fix=TEXT_EXTRA) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; code that it names is not run.  Raises ModelError: it cannot be read."""
    transformers = require_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes its readers stumble over
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"the tokenizer cannot be read ({why})", where=str(folder), fix="copy it again") from error


def tokenizer_digest(folder: Path) -> str | None:
    """What the files of a folder's tokenizer are known by; None where there are none."""
    digest, some = hashlib.blake2b(digest_size=16), False
    for name in TOKENIZER_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if is_pointer(file):
            raise ModelError(WHAT, where=str(file), fix=FIX)
        content, some = file.read_bytes(), True
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest() if some else None


def folder_of(name: str) -> Path:
    """The folder in "hf:PATH".

    Raises:
        ModelError: it is no folder here: a name of the hub is not looked for in silence.
    """
    path = Path(name.removeprefix(HF)).expanduser()
    if not (path / CONFIG_FILE).is_file():
        what = f"{name} is no folder with a {CONFIG_FILE}"
        fix = "give a folder that save_pretrained wrote; one of the hub comes with: hf download NAME --local-dir FOLDER"
        raise ModelError(what, fix=fix)
    return path


def start_folder(name: str | None) -> str | None:
    """The folder whose weights a training of "hf:PATH" begins with; None where it has none, or is no such name."""
    if name is None or not name.startswith(HF):
        return None
    folder = folder_of(name)
    return str(folder) if any((folder / file).is_file() for file in WEIGHT_FILES) else None


def read_config(folder: Path) -> dict[str, Any] | None:
    """What ``config.json`` says, where it is transformers'; else None.

    Raises:
        ModelError: it is a pointer of Git LFS, or says of a model that cannot be taken.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    if is_pointer(path):
        raise ModelError(WHAT, where=str(path), fix=FIX)
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        return None
    if config.get("quantization_config") is not None:
        what = "the model is quantised, and has no gradients in its weights"
        raise ModelError(what, where=str(path), fix="give the model that was quantised")
    return config


def spec_values(
    folder: Path, max_length: int | None = None, kind: str = "text", num_classes: int | None = None
) -> dict[str, Any] | None:
    """The model spec of a folder that transformers wrote, as ``ModelSpec.from_dict`` reads it; None: it is none.

    ``num_classes`` None: as the configuration says.

    Raises:
        ModelError: the folder has no tokenizer, or the model takes fewer tokens than are asked for.
    """
    config = read_config(folder)
    if config is None:
        return None
    digest = tokenizer_digest(folder)
    if digest is None:
        what = f"no tokenizer beside {CONFIG_FILE} (looked for {', '.join(TOKENIZER_FILES[:2])}, vocab.txt and others)"
        raise ModelError(what, where=str(folder), fix="save it there: tokenizer.save_pretrained(FOLDER)")
    longest = _longest(config, folder)
    if max_length is not None and max_length > longest:
        what = f"--max-length {max_length} is more than the {longest} tokens that the model takes"
        raise UsageError(what, where=str(folder), fix=f"pass {longest} or less")
    names = _names(config)
    count = num_classes or (len(names) if names else 2)
    built = {k: v for k, v in config.items() if k not in _NOT_BUILT}
    length = max_length or longest
    text = {
        "config": built, "tokenizer": digest, "max_length": length, "longest": longest,
        "padding": config.get("pad_token_id") or 0, "asked": max_length is not None,
    }  # fmt: skip
    own = names if names is not None and len(names) == count and not _are_numbered(names) else None
    return {
        "name": f"{HF}{config['model_type']}", "num_classes": count, "kind": kind, "shape": [length],
        "classes": own, "text": text,
    }  # fmt: skip


def has_classifier(folder: Path) -> bool:
    """Whether the weights of a folder have a head for classes."""
    config = read_config(folder) or {}
    return any("ForSequenceClassification" in str(name) for name in config.get("architectures") or [])


def _longest(config: dict[str, Any], folder: Path) -> int:
    """The most tokens that a model takes, as its configuration and its tokenizer say."""
    said = [int(config[name]) for name in _LONGEST if isinstance(config.get(name), int) and config[name] > 0]
    most = min(said, default=_NO_LIMIT)
    if config["model_type"] in _OFFSET and most < _NO_LIMIT:
        most -= int(config.get("pad_token_id") or 0) + 1
    try:
        about = json.loads((folder / "tokenizer_config.json").read_text())
        length = about.get("model_max_length")
    except (OSError, ValueError, AttributeError):
        length = None
    if isinstance(length, int | float) and 0 < length < _NO_LIMIT and math.isfinite(length):
        most = min(most, int(length))
    return most if most < _NO_LIMIT else _USUAL


def _names(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the outputs, in order, where the configuration has all."""
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    ordered = [names.get(str(k), names.get(k)) for k in range(len(names))]
    return tuple(map(str, ordered)) if all(n is not None for n in ordered) else None


def _are_numbered(names: tuple[str, ...]) -> bool:
    """Whether names are what transformers calls outputs that nobody named."""
    return all(name == f"LABEL_{k}" for k, name in enumerate(names))
