"""Finding weights as people have them, and naming what is in them; imports no torch.

A checkpoint is a run folder of ``retrain``, a safetensors file, a folder or index of sharded safetensors, or a torch
file (read as data only).  The digest of safetensors covers names, dtypes, shapes and values, whatever the sharding and
the metadata; that of a torch file covers its bytes.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_cli.errors import ModelError
from influence_cli.store.files import METADATA_KEY, DamagedFile, file_digest, tensor_digest

RUN_FILE, WEIGHTS_FILE = "run.json", "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
IN_FOLDER = (WEIGHTS_FILE, "model" + INDEX_SUFFIX, "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Files of weights and the digest of what is in them."""

    locator: str
    files: tuple[Path, ...]
    digest: str


def find_checkpoint(locator: str) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The weights behind a path or folder, and the model spec they carry, if any.

    Raises:
        ModelError: nothing there, a shard is missing or damaged, or an unknown kind of file.
    """
    path, carried = Path(locator), None
    if path.is_dir():
        path, carried = _in_folder(path, locator)
    if not path.exists():
        raise ModelError("no such checkpoint", where=locator, fix="pass --checkpoint PATH")
    try:
        if path.name.endswith(INDEX_SUFFIX):
            files = _shards(path, locator)
            return Checkpoint(locator, files, tensor_digest(files)), carried
        if path.suffix == ".safetensors":
            checkpoint = Checkpoint(locator, (path,), tensor_digest((path,)))  # first: it finds damage
            return checkpoint, carried or _carried_spec(path)
    except DamagedFile as error:
        raise ModelError(f"the checkpoint is damaged ({error})", where=locator, fix="copy it again") from error
    if path.suffix in TORCH_SUFFIXES:
        return Checkpoint(locator, (path,), file_digest(path)), carried
    raise ModelError(f"unknown kind of checkpoint {path.suffix!r}", where=locator, fix="use .safetensors, .pt or .pth")


def recipe_of(locator: str) -> dict[str, Any] | None:
    """How a run folder's checkpoint was trained (optimizer, weight_decay, ...), or None where nothing says."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        recipe = json.loads((Path(locator) / RUN_FILE).read_text())["recipe"]
        return recipe if isinstance(recipe, dict) else None
    return None


def _in_folder(folder: Path, locator: str) -> tuple[Path, dict[str, Any] | None]:
    carried = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # otherwise --model says what it is
        carried = json.loads((folder / RUN_FILE).read_text())["model"]
    for name in IN_FOLDER:
        if (folder / name).exists():
            return folder / name, carried
    raise ModelError(
        f"no weights in the folder (looked for {', '.join(IN_FOLDER)})",
        where=locator,
        fix="give a run folder of `retrain`, or the file itself",
    )


def _shards(index: Path, locator: str) -> tuple[Path, ...]:
    """The files that an index of sharded safetensors names, in order."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"the index cannot be read ({error})", where=str(index), fix="copy it again") from error
    files = tuple(index.parent / name for name in names)
    for file in files:
        if not file.exists():
            raise ModelError(f"a shard is missing: {file.name}", where=locator, fix="copy it beside the index")
    return files


def _carried_spec(path: Path) -> dict[str, Any] | None:
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(min(length, 100_000_000)))
    try:
        return json.loads(header["__metadata__"][METADATA_KEY])["model"]
    except (KeyError, ValueError, TypeError):
        return None
