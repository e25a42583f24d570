"""A folder of LoRA adapters as peft writes it: what they are put on, and in which form.

``adapter_config.json`` names the folder of the base model and says of each layer's adapter its rank r and alpha; the
weights are in ``adapter_model.safetensors``.  Nothing here imports torch or peft.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from influence_cli.errors import ModelError
from influence_cli.store.lfs import refuse_pointer

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEPT = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")  # what decides on numbers
_REFUSED = {  # other forms of adapters, by the key that asks for them
    "use_dora": "DoRA", "lora_bias": "biases in the adapters", "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA", "layer_replication": "replicated layers", "corda_config": "CorDA", "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow", "target_parameters": "adapters on bare parameters",
    "trainable_token_indices": "trained tokens",
}  # fmt: skip


def read_adapter(folder: Path) -> dict[str, Any] | None:
    """What decides on the numbers of a folder's adapters, as plain values; None where the folder has none.

    Raises:
        ModelError: the configuration cannot be read, or is not of LoRA.
    """
    config = _config(folder)
    if config is None:
        return None
    where = str(folder / ADAPTER_FILE)
    if config.get("peft_type") != "LORA":
        what = f"the adapters are {config.get('peft_type')}, and only those of LoRA are taken"
        raise ModelError(what, where=where, fix="merge them into the model with peft: merge_and_unload()")
    odd = [called for key, called in _REFUSED.items() if config.get(key)]
    odd += ["a trained bias"] if config.get("bias", "none") != "none" else []
    if odd:
        what = f"the adapters have {', '.join(odd)}, which is not followed"
        raise ModelError(what, where=where, fix="merge them into the model with peft: merge_and_unload()")
    kept = {key: config[key] for key in _KEPT if config.get(key)}
    if not isinstance(kept.get("r"), int) or not isinstance(kept.get("lora_alpha"), int | float):
        raise ModelError("the configuration says no r and lora_alpha", where=where, fix="save the adapters again")
    return kept


def base_folder(folder: Path) -> Path:
    """The folder of the model that adapters are put on: beside the adapters, or from here.

    Raises:
        ModelError: it is no folder here: one of the hub is not looked for in silence.
    """
    name = str((_config(folder) or {}).get("base_model_name_or_path"))
    for place in (folder / name, Path(name)):
        if (place / "config.json").is_file():
            return place
    what = f"the base model of the adapters, {name}, is no folder here"
    fix = f"download it, and name its folder as base_model_name_or_path in {ADAPTER_FILE}"
    raise ModelError(what, where=str(folder / ADAPTER_FILE), fix=fix)


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / ADAPTER_FILE
    if not path.is_file():
        return None
    refuse_pointer(path, ModelError)
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{ADAPTER_FILE} cannot be read ({error})", where=str(path), fix="copy it again") from error
    return value if isinstance(value, dict) else {}
