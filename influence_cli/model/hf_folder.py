"""What a folder that transformers wrote says of its model: the network, and how texts or images become its input.

The configuration is what builds the network, less what only notes where it came from.  Nothing here imports torch or
transformers.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from influence_cli.errors import ModelError, UsageError
from influence_cli.model.spec import NEXT_TOKEN
from influence_cli.model.text_input import TOKENIZER_FILES, tokenizer_digest
from influence_cli.store.lfs import refuse_pointer

HF = "hf:"  # prefix of a folder of transformers, as a model's name
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")  # of a model, at a revision
CONFIG_FILE, IMAGES_FILE = "config.json", "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TEXTS, IMAGES = "ForSequenceClassification", "ForImageClassification"  # how classifiers' classes are called
# of a configuration: where it came from, how it is called, and what our own evaluation decides
_NOT_BUILT = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "num_labels", "problem_type",
    "torch_dtype", "transformers_version", "use_cache", "_attn_implementation", "attn_implementation",
    "finetuning_task", "task_specific_params", "output_attentions", "output_hidden_states", "return_dict",
    "gradient_checkpointing", "torchscript", "chunk_size_feed_forward", "_attn_implementation_autoset",
}  # fmt: skip
# positions of these count from the padding number on, so that as many fewer tokens fit
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod",
           "roberta-prelayernorm", "ibert", "luke", "layoutlm", "esm"}  # fmt: skip
_LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")
_NO_LIMIT = 10**6  # a tokenizer that says more says nothing
_USUAL = 512  # tokens, of a model that does not say
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def hub_name(model: str | None) -> str | None:
    """The name on the hub that "hf:NAME" may mean; None where there is such a file or folder, or no such name."""
    if model is None or not model.startswith(HF):
        return None
    named = model.removeprefix(HF)
    return None if Path(named).expanduser().exists() or HUB_NAME.fullmatch(named) is None else named


def by_hand(named: str) -> str:
    """How a model comes here without us."""
    repository, _, revision = named.partition("@")
    at = f" --revision {revision}" if revision else ""
    return f"run `hf download {repository}{at} --local-dir FOLDER` where there is a network, and pass {HF}FOLDER"


def folder_of(name: str) -> Path:
    """The folder in "hf:PATH".

    Raises:
        ModelError: it is no folder here: a name of the hub is not looked for in silence.
    """
    path, named = Path(name.removeprefix(HF)).expanduser(), hub_name(name)
    if not (path / CONFIG_FILE).is_file():
        what = f"{name} is no folder with a {CONFIG_FILE}"
        fix = "give a folder that save_pretrained wrote"
        if named is not None:
            what += ", and a name of the hub is downloaded only where --pretrained says so"
            fix = f"add --pretrained to `influence retrain`, or {by_hand(named)}"
        raise ModelError(what, where="" if named else str(path), fix=fix)
    return path


def start_folder(name: str | None) -> str | None:
    """The folder whose weights a training of "hf:PATH" begins with; None where it has none, or is no such name."""
    if name is None or not name.startswith(HF):
        return None
    folder = folder_of(name)
    if any((folder / file).is_file() for file in WEIGHT_FILES):
        return str(folder)
    held = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHTS)
    if held:  # they are not to be passed over, and random ones trained in their place
        what = f"the weights are in a form that influence does not read: {', '.join(held[:3])}"
        raise ModelError(what, where=str(folder), fix="save them as safetensors: model.save_pretrained(FOLDER)")
    return None


def is_network(value: Any) -> bool:
    """Whether a value is a configuration of transformers, as JSON keeps it."""
    return isinstance(value, dict) and isinstance(value.get("model_type"), str)


def read_config(folder: Path) -> dict[str, Any] | None:
    """What ``config.json`` says, where it is transformers'; else None.

    Raises:
        ModelError: it is a pointer of Git LFS, damaged beside a tokenizer, or says of a model that cannot be taken.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    refuse_pointer(path, ModelError)
    config = _json(path)
    if config is None and tokenizer_digest(folder) is not None:  # else it may be another program's
        raise ModelError("it is no JSON object, so that it says of no model", where=str(path), fix="copy it again")
    if config is None or not is_network(config):
        return None
    if config.get("quantization_config") is not None:
        what = "the model is quantised, and has no gradients in its weights"
        raise ModelError(what, where=str(path), fix="give the model that was quantised")
    return config


def architectures(folder: Path) -> list[str]:
    """The names of the classes whose weights a folder has."""
    return [str(name) for name in (read_config(folder) or {}).get("architectures") or []]


def has_classifier(folder: Path) -> bool:
    """Whether the weights of a folder have a head for classes."""
    return any(kind in name for name in architectures(folder) for kind in (TEXTS, IMAGES))


def spec_values(
    folder: Path,
    max_length: int | None = None,
    num_classes: int | None = None,
    images: bool | None = None,
    language: bool = False,
) -> dict[str, Any] | None:
    """The model spec of a folder that transformers wrote, as ``ModelSpec.from_dict`` reads it; None: it is none.

    ``num_classes`` None: as the configuration says.  ``images`` None: by what lies beside it.  ``language``: a model of
    the texts themselves, which predicts no class.

    Raises:
        ModelError: the folder has no tokenizer, or does not say how images become its input.
        UsageError: the model takes fewer tokens than are asked for.
    """
    config = read_config(folder)
    if config is None:
        return None
    if language:
        network = {k: v for k, v in config.items() if k not in _NOT_BUILT}
        about = {"name": f"{HF}{config['model_type']}", "num_classes": 1, "network": network, "loss": NEXT_TOKEN}
        return {**about, **_of_texts(config, folder, max_length)}
    if images is None:
        named = [str(name) for name in config.get("architectures") or []]
        images = any(IMAGES in name for name in named) or not (
            any(TEXTS in name for name in named) or tokenizer_digest(folder) or not (folder / IMAGES_FILE).is_file()
        )
    names = _names(config)
    count = num_classes or (len(names) if names else 2)
    own = names if names is not None and len(names) == count and not _are_numbered(names) else None
    about = {
        "name": f"{HF}{config['model_type']}", "num_classes": count, "classes": own,
        "network": {k: v for k, v in config.items() if k not in _NOT_BUILT},
    }  # fmt: skip
    return {**about, **(_of_images(config, folder) if images else _of_texts(config, folder, max_length))}


def _of_texts(config: dict[str, Any], folder: Path, max_length: int | None) -> dict[str, Any]:
    digest = tokenizer_digest(folder)
    if digest is None:
        what = f"no tokenizer beside {CONFIG_FILE} (looked for {', '.join(TOKENIZER_FILES[:2])}, vocab.txt and others)"
        raise ModelError(what, where=str(folder), fix="save it there: tokenizer.save_pretrained(FOLDER)")
    words = config.get("vocab_size", 1)
    if words is not None and (type(words) is not int or words < 1):
        raise ModelError(
            f"its vocab_size is {words!r}, not a number of tokens", where=str(folder / CONFIG_FILE), fix="copy it again"
        )
    longest = _longest(config, folder)
    if max_length is not None and max_length > longest:
        what = f"--max-length {max_length} is more than the {longest} tokens that the model and its tokenizer take"
        raise UsageError(what, where=str(folder), fix=f"pass {longest} or less")
    length = max_length or longest
    text = {
        "tokenizer": digest, "max_length": length, "longest": longest, "padding": _padding(config, folder),
        "vocabulary": config.get("vocab_size"), "types": (config.get("type_vocab_size", 2) or 0) > 1,
        "end": config.get("eos_token_id") if config.get("is_encoder_decoder") else None,
        "asked": max_length is not None, "folder": str(folder),
    }  # fmt: skip
    return {"kind": "text", "shape": [length], "text": text}


def _of_images(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How pixels become the input, as the image processor beside the weights says; sizes are [height, width]."""
    about = _json(folder / IMAGES_FILE)
    if about is None:
        what, fix = f"no {IMAGES_FILE} beside {CONFIG_FILE}", "save it there: processor.save_pretrained(FOLDER)"
        raise ModelError(what, where=str(folder), fix=fix)
    size, cut = about.get("size") or {}, about.get("crop_size") or {}
    size = {"shortest_edge": size} if isinstance(size, int) and about.get("do_center_crop") else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    cut = {"height": cut, "width": cut} if isinstance(cut, int) else cut
    channels, crop = int(config.get("num_channels", 3)), None
    try:
        if "shortest_edge" in size and about.get("crop_pct") is not None and not about.get("do_center_crop"):
            shape = [size["shortest_edge"]] * 2  # as ConvNeXt's processor has it: cut below 384 pixels, else stretched
            crop = float(about["crop_pct"]) if shape[0] < 384 else None
        elif about.get("do_center_crop"):
            shape = [cut["height"], cut["width"]]
            crop = min(shape) / (size.get("shortest_edge") or min(size["height"], size["width"]))
        else:
            shape = [size["height"], size["width"]]
        plain = about.get("do_normalize") is False
        mean = [0.0] * channels if plain else [float(v) for v in about["image_mean"]]
        std = [1.0] * channels if plain else [float(v) for v in about["image_std"]]
        resampling = _RESAMPLING[int(about.get("resample", 3))]
        scaled = abs(about.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
        if len(mean) != channels or (crop is not None and crop > 1) or not scaled:
            raise ValueError("a form of input that influence does not make")
    except (KeyError, TypeError, ValueError) as error:
        what = f"{IMAGES_FILE} does not say how images become the input in a way that influence knows ({error})"
        fix = "give the model as python:PKG.MOD:FACTORY, an influence_cli.Task with a transform"
        raise ModelError(what, where=str(folder), fix=fix) from error
    made = {"kind": "image", "shape": [channels, *map(int, shape)], "mean": mean, "std": std}
    return {**made, "interpolation": resampling, **({} if crop is None else {"crop": crop})}


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none, or it cannot be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _longest(config: dict[str, Any], folder: Path) -> int:
    """The most tokens that a model takes, as its configuration and its tokenizer say."""
    said = [int(config[name]) for name in _LONGEST if isinstance(config.get(name), int) and config[name] > 0]
    most = min(said, default=_NO_LIMIT)
    if config["model_type"] in _OFFSET and most < _NO_LIMIT:
        most -= max(0, int(config.get("pad_token_id") or 0)) + 1
    length = (_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    if isinstance(length, int | float) and 0 < length < _NO_LIMIT and math.isfinite(length):
        most = min(most, int(length))
    return most if most < _NO_LIMIT else _USUAL


def _padding(config: dict[str, Any], folder: Path) -> int:
    """The number that rows are filled up with: the model's, else its tokenizer's, else that of its end of text.

    Decoders pool the last token of a row that is not this one, so that it must be no word.
    """
    own = config.get("pad_token_id")
    if type(own) is int and own >= 0:
        return own
    token = (_json(folder / "tokenizer_config.json") or {}).get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    added = (_json(folder / "tokenizer.json") or {}).get("added_tokens")
    for entry in added if isinstance(added, list) and token is not None else ():
        if entry.get("content") == token and type(entry.get("id")) is int:
            return entry["id"]
    for name in ("eos_token_id", "bos_token_id"):
        value = config.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and value >= 0:
            return value
    return 0


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
