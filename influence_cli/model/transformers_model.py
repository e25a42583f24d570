"""Classifiers of transformers as plain modules: called with a dict of tensors, they return logits [n, C].

Two hooks make the call and take the logits out, so that parameters keep the names that they have in the files.
Attention is the eager one, which has forward-mode derivatives, and the cache of keys and values is off.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.errors import ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.text_input import has_classifier, require_transformers, spec_values

if TYPE_CHECKING:
    from torch import Tensor, nn

    from influence_cli.model.checkpoints import Checkpoint
    from influence_cli.model.spec import ModelSpec

EAGER = "eager"
SHOWN = 4


class ByName:
    """Before a module's forward: a dict of tensors becomes its named arguments."""

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with which the forward is called."""
        (inputs,) = args
        return (), {**inputs, **kwargs}


class Logits:
    """After a module's forward: the logits alone."""

    def __call__(self, model: nn.Module, args: Any, out: Any) -> Tensor:
        """Logits [n, C]."""
        return out.logits


def configuration(spec: ModelSpec) -> Any:
    """Transformers' configuration of a spec.  Raises ModelError: this version of transformers does not know it."""
    transformers = require_transformers()
    assert spec.text is not None
    values = json.loads(spec.text.config)
    kind = values.pop("model_type")
    try:
        config = transformers.AutoConfig.for_model(kind, **values, num_labels=spec.num_classes)
    except Exception as error:
        what = f"transformers {transformers.__version__} does not build {spec.name} ({_short(error)})"
        raise ModelError(what, fix="install the version that the model needs, or give another model") from error
    if spec.classes and len(spec.classes) == spec.num_classes:
        config.id2label = dict(enumerate(spec.classes))
        config.label2id = {name: k for k, name in enumerate(spec.classes)}
    config.use_cache = False
    config.pad_token_id = spec.text.padding
    config.problem_type = "single_label_classification"
    return config


def build(spec: ModelSpec, start: str | None = None, listener: Listener = SILENT) -> nn.Module:
    """A classifier for a spec: with the weights of folder ``start``, and a new head where these have none.

    Raises:
        ModelError: transformers has no classifier of this architecture, or the weights do not fit.
    """
    transformers = require_transformers()
    config = configuration(spec)
    classifier = transformers.AutoModelForSequenceClassification
    try:
        if start is None:
            model = classifier.from_config(config, attn_implementation=EAGER)
        else:
            model = _started(classifier, config, start, listener)
    except (ValueError, TypeError, OSError, RuntimeError, KeyError, ImportError) as error:
        where = "" if start is None else start
        what = f"transformers cannot build a classifier of {spec.name} ({_short(error)})"
        raise ModelError(what, where=where, fix="give another model, or python:PKG.MOD:FACTORY") from error
    return with_plain_call(model)


def with_plain_call(model: nn.Module) -> nn.Module:
    """The module, which is called with a dict of tensors and returns logits."""
    model.register_forward_pre_hook(ByName(), with_kwargs=True)
    model.register_forward_hook(Logits())
    return model.float()


def load_start(spec: ModelSpec, checkpoint: Checkpoint, listener: Listener = SILENT) -> nn.Module:
    """The model that a training begins with: a checkpoint's weights, under a new head where it has another or none.

    Raises:
        ModelError: the weights do not fit.
    """
    from influence_cli.model.build import load_model

    if spec.text is not None and Path(checkpoint.locator).is_dir():
        folder = Path(checkpoint.locator)
        values = spec_values(folder)
        if values is not None and not (has_classifier(folder) and values["num_classes"] == spec.num_classes):
            return build(spec, checkpoint.locator, listener)
    return load_model(spec, checkpoint)


def _started(classifier: Any, config: Any, start: str, listener: Listener) -> nn.Module:
    model, found = classifier.from_pretrained(
        start, config=config, attn_implementation=EAGER, local_files_only=True, trust_remote_code=False,
        output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    new = sorted({*found["missing_keys"], *(str(entry[0]) for entry in found["mismatched_keys"])})
    if new:
        more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
        listener.note(f"drawn anew, as {start} has none that fit: {', '.join(new[:SHOWN])}{more}")
    total = len(model.state_dict())
    if len(new) > total / 2:
        what = f"{len(new)} of the {total} weights of the model are not in the folder, such as {new[0]}"
        raise ModelError(what, where=start, fix="give the folder of this architecture")
    return model


def under_new_names(weights: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Weights of old files as today's modules name them, without the numbers of positions, which are no weights."""
    found = dict[str, Any]()
    for name, value in weights.items():
        today = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        if name not in expected and name.endswith((".position_ids", ".token_type_ids")):
            continue
        found[today if name not in expected and today in expected else name] = value
    return found


def write_files(spec: ModelSpec, folder: Path) -> None:
    """Write ``config.json`` and the tokenizer beside a checkpoint, so that transformers loads the folder too."""
    from influence_cli.store.files import write_bytes

    assert spec.text is not None
    config = configuration(spec)
    architecture = type_of_classifier(config)
    config.architectures = [architecture] if architecture else None
    write_bytes(folder / "config.json", config.to_json_string(use_diff=True).encode())
    spec.text.copy_files(folder)


def type_of_classifier(config: Any) -> str | None:
    """The name of the class of transformers that classifies texts by such a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as names

    return names.get(config.model_type)


def _short(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:200]
