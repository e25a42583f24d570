"""Models of the Hugging Face hub by name, "hf:ORG/NAME" or "hf:ORG/NAME@REVISION", which are downloaded when asked for.

A name is one commit: what is downloaded stands in the hub's own cache (HF_HOME) in a folder that is called by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from influence_cli.errors import ModelError, disk_full
from influence_cli.events import SILENT, Listener
from influence_cli.model.hf_folder import CONFIG_FILE, HF, HUB_NAME, IMAGES_FILE, by_hand
from influence_cli.model.text_input import TOKENIZER_FILES, require_transformers

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_OLDER = ("pytorch_model.bin",)  # of models without safetensors
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub as it was downloaded."""

    folder: Path
    name: str  # ORG/NAME@COMMIT


def download(named: str, listener: Listener = SILENT) -> HubModel:
    """The files of a model on the hub, or of its copy in the cache where HF_HUB_OFFLINE is set, all of one commit.

    Raises:
        ModelError: there is no such model, no network, or no leave to read it.
        UsageError: transformers is not installed.
    """
    require_transformers()
    import huggingface_hub

    found = HUB_NAME.fullmatch(named)
    assert found is not None
    repository, revision = found["name"], found["revision"]
    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    place = "the cache, since HF_HUB_OFFLINE is set," if offline else huggingface_hub.constants.ENDPOINT
    cache = huggingface_hub.constants.HF_HUB_CACHE
    listener.note(f"getting {repository}, revision {revision or 'main'}, from {place} into {cache}")

    def get(*patterns: str) -> Path:
        try:
            return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
        except Exception as error:  # of the network, the hub's answers, the cache: all are outside of this program
            if isinstance(error, MemoryError) or disk_full(error):
                raise
            raise _not_had(named, error, offline) from error

    about = (CONFIG_FILE, IMAGES_FILE, *TOKENIZER_FILES)
    folder = get(*about, *_WEIGHTS)
    if not any(folder.glob("*.safetensors")):
        folder = get(*about, *_OLDER)
    commit = folder.name if COMMIT.fullmatch(folder.name) else revision
    listener.note(f"{repository} is revision {commit}, in {folder}")
    return HubModel(folder, f"{repository}@{commit}")


def _not_had(named: str, error: Exception, offline: bool) -> ModelError:
    why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()[:200]
    what = f"{HF}{named} cannot be had from the hub ({type(error).__name__}: {why})"
    way = "unset HF_HUB_OFFLINE where there is a network" if offline else "see that there is a network and such a name"
    return ModelError(what, fix=f"{way}; or {by_hand(named)}")
