"""Models of transformers as plain modules: called with tensors by name, or pixels, classifiers return logits [n, C].

Two hooks make the call and take the logits out, so that parameters keep the names that they have in the files.
Attention is the eager one, which has forward-mode derivatives, and the cache of keys and values is off.  Language
models return losses (``causal_lm``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.data.kinds.text import CHANGE
from influence_cli.errors import ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.hf_folder import CONFIG_FILE, IMAGES_FILE
from influence_cli.model.lora import apart, with_adapters
from influence_cli.model.text_input import require_transformers, short
from influence_cli.model.weights import read_weights, refuse_not_finite
from influence_cli.store.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from influence_cli.model.checkpoints import Checkpoint
    from influence_cli.model.spec import ModelSpec

EAGER = "eager"
SHOWN = 4


class AddedOnce:
    """After an embedding's forward: its output with a change added; it is called once, with every token of the rows."""

    def __init__(self) -> None:
        self.change: Tensor | None = None  # [b, T, d], not added yet
        self.hook: Any = None

    def __call__(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        """The changed embeddings [b, T, d]."""
        if self.change is None or self.change.shape != out.shape:
            raise _embedded_otherwise("its embedding is called twice, or with something else than the tokens of rows")
        added, self.change = out + self.change, None
        return added

    def wait(self, model: Any, change: Tensor | None) -> None:
        """The next call of the model is with this change, and with none of a call that broke off."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None
        self.change = change
        if change is not None:
            self.hook = model.get_input_embeddings().register_forward_hook(self)

    def check(self) -> None:
        """Raises ModelError: the model was called without its embedding."""
        if self.change is not None:
            raise _embedded_otherwise("its embedding is not called for the tokens of rows")


def _embedded_otherwise(why: str) -> ModelError:
    fix = "leave the objective robustness, or --attack, out"
    return ModelError(f"embeddings of this model cannot be changed: {why}", fix=fix)


class ByName:
    """Before a module's forward: a dict of tensors becomes its named arguments, and a tensor its pixels.

    What is to be added to embeddings waits for them.
    """

    def __init__(self, added: AddedOnce) -> None:
        self.added = added

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with which the forward is called; a call that has them by name already stays as it is."""
        if not args:
            return args, kwargs
        (inputs,) = args
        named = dict(inputs) if isinstance(inputs, dict) else {"pixel_values": inputs}
        self.added.wait(model, named.pop(CHANGE, None))
        return (), {**named, **kwargs}


class Logits:
    """After a module's forward: the logits alone."""

    def __init__(self, added: AddedOnce) -> None:
        self.added = added

    def __call__(self, model: nn.Module, args: Any, out: Any) -> Tensor:
        """Logits [n, C]."""
        self.added.check()
        self.added.wait(model, None)
        return out.logits


_PROBLEMS = {None: "single_label_classification", "binary": "multi_label_classification"}  # by a spec's loss


def configuration(spec: ModelSpec) -> Any:
    """Transformers' configuration of a spec.  Raises ModelError: this version of transformers does not know it."""
    transformers = require_transformers()
    assert spec.network is not None
    values = json.loads(spec.network)
    kind = values.pop("model_type")
    try:
        classes = {} if spec.is_language else {"num_labels": spec.num_classes}
        config = transformers.AutoConfig.for_model(kind, **values, **classes)
    except Exception as error:
        what = f"transformers {transformers.__version__} does not build {spec.name} ({short(error)})"
        raise ModelError(what, fix="install the version that the model needs, or give another model") from error
    if spec.classes and len(spec.classes) == spec.num_classes:
        config.id2label = dict(enumerate(spec.classes))
        config.label2id = {name: k for k, name in enumerate(spec.classes)}
    config.use_cache = False
    if spec.text is not None:
        config.pad_token_id = spec.text.padding
    if not spec.is_language:
        config.problem_type = _PROBLEMS.get(spec.loss, "regression")
    return config


def build(spec: ModelSpec) -> nn.Module:
    """An untrained model for a spec.

    Raises:
        ModelError: transformers has no classifier, or no language model, of this architecture.
    """
    made = _made(spec, "", lambda kind, config: kind.from_config(config, attn_implementation=EAGER))
    return with_plain_call(made, spec)


def _made(spec: ModelSpec, where: str, make: Callable[[Any, Any], Any]) -> Any:
    """What ``make`` gives for the class of models and the configuration; its errors are ours."""
    transformers = require_transformers()
    config = configuration(spec)
    kind = getattr(transformers, f"AutoModelFor{_purpose(spec)}")
    try:
        return make(kind, config)
    except (ValueError, TypeError, OSError, RuntimeError, KeyError, ImportError, AssertionError, IndexError) as error:
        made = "language model" if spec.is_language else "classifier"
        what = f"transformers cannot build a {made} of {spec.name} ({short(error)})"
        raise ModelError(what, where=where, fix="give another model, or python:PKG.MOD:FACTORY") from error


def _purpose(spec: ModelSpec) -> str:
    """What transformers calls models that do what this one does."""
    if spec.is_language:
        return "CausalLM"
    return "ImageClassification" if spec.text is None else "SequenceClassification"


def with_plain_call(model: nn.Module, spec: ModelSpec | None = None) -> nn.Module:
    """The module, which is called with a dict of tensors and returns logits, or what a language model returns."""
    if spec is not None and spec.is_language:
        from influence_cli.model.causal_lm import with_losses

        return with_losses(model, spec)
    added = AddedOnce()
    model.register_forward_pre_hook(ByName(added), with_kwargs=True)
    model.register_forward_hook(Logits(added))
    return model.float()


def load(spec: ModelSpec, checkpoint: Checkpoint) -> nn.Module:
    """The model with a checkpoint's weights, in evaluation mode.

    Raises:
        ModelError: the weights do not fit, or are not finite.
    """
    model, new, strange = _loaded(spec, checkpoint)
    if new or strange:
        lines = [f"{name} expected but missing" for name in new] + [f"{n} found but not expected" for n in strange]
        shown = "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
        fix = "give the folder that the weights are from, with its config.json"
        raise ModelError(f"the checkpoint does not fit {spec.name}: {shown}", where=checkpoint.locator, fix=fix)
    return model


def load_start(spec: ModelSpec, checkpoint: Checkpoint, listener: Listener = SILENT) -> nn.Module:
    """The model that a training begins with: a checkpoint's weights, under a new head where it has another or none.

    Raises:
        ModelError: the weights do not fit.
    """
    model, new, _ = _loaded(spec, checkpoint)
    total = len(model.state_dict())
    if len(new) > total / 2:
        what = f"{len(new)} of the {total} weights of {spec.name} are not in the checkpoint, such as {new[0]}"
        raise ModelError(what, where=checkpoint.locator, fix="give the folder of this architecture")
    if new:
        more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
        listener.note(f"drawn anew, as {checkpoint.locator} has none that fit: {', '.join(new[:SHOWN])}{more}")
    return model


def _loaded(spec: ModelSpec, checkpoint: Checkpoint) -> tuple[nn.Module, list[str], list[str]]:
    """The classifier, the weights that were drawn anew, and those of the checkpoint that it has no place for.

    Transformers itself takes the weights in: names in files are not always those of modules.
    """
    weights, of_adapters = apart(read_weights(checkpoint), spec.adapter is not None)

    def make(kind: Any, config: Any) -> Any:
        named = getattr(require_transformers(), type_of_model(spec, config) or "", kind)
        return named.from_pretrained(
            None, config=config, state_dict=dict(weights), attn_implementation=EAGER, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip

    model, found = _made(spec, checkpoint.locator, make)
    new = {*found["missing_keys"], *(str(entry[0]) for entry in found["mismatched_keys"])} - of_adapters.keys()
    if spec.adapter is not None:
        with_adapters(model, of_adapters, json.loads(spec.adapter), checkpoint.locator)
    refuse_not_finite(model, dict(model.named_parameters()), checkpoint)
    return with_plain_call(model.eval(), spec), sorted(new), sorted(map(str, found["unexpected_keys"]))


def write_files(spec: ModelSpec, folder: Path, start: str | None) -> None:
    """Write what transformers wants beside a checkpoint, so that it loads the folder too.

    ``start`` is the folder that the training began with, whose image processor goes along.
    """
    config = configuration(spec)
    architecture = type_of_model(spec, config)
    config.architectures = [architecture] if architecture else None
    values = json.loads(config.to_json_string(use_diff=True))
    values |= {"id2label": config.id2label, "label2id": config.label2id}  # BART's own default is three classes
    write_bytes(folder / CONFIG_FILE, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
    if spec.text is not None:
        spec.text.copy_files(folder)
    elif start is not None and (Path(start) / IMAGES_FILE).is_file():
        write_bytes(folder / IMAGES_FILE, (Path(start) / IMAGES_FILE).read_bytes())


def type_of_model(spec: ModelSpec, config: Any) -> str | None:
    """The name of the class of transformers that classifies, or predicts tokens, by such a configuration."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    kind = {"CausalLM": "CAUSAL_LM", "ImageClassification": "IMAGE_CLASSIFICATION"}.get(
        _purpose(spec), "SEQUENCE_CLASSIFICATION"
    )
    found = getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES").get(config.model_type)
    return found[0] if isinstance(found, tuple | list) else found
