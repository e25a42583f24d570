"""The model and checkpoint of a run: from what the checkpoint carries, or from flags."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from influence_cli.errors import ModelError, UsageError
from influence_cli.model.checkpoints import Checkpoint, find_model
from influence_cli.model.hf_folder import HF, architectures, folder_of, has_classifier, read_config
from influence_cli.model.losses import named_loss
from influence_cli.model.new_spec import as_text, for_each_channel, new_spec
from influence_cli.model.spec import ModelSpec, code_named_by_data, is_own
from influence_cli.stages.run.class_map import with_class_order, with_outputs

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store


def with_own_code(spec: ModelSpec, inputs: Inputs, where: str) -> ModelSpec:
    """The spec that a checkpoint carries, with the user's own code where its architecture is that.

    Raises:
        UsageError: the checkpoint names code that this run does not.
    """
    if not is_own(spec.name) or spec.task is not None:
        return spec
    from influence_cli.model.task import checked_task, own_code

    if inputs.task is not None:
        return replace(spec, task=checked_task(inputs.task))
    if inputs.model != spec.name:
        raise code_named_by_data(spec.name, where)
    return replace(spec, task=own_code(spec.name)[0])


def with_cut_texts(spec: ModelSpec, inputs: Inputs) -> ModelSpec:
    """The spec that a checkpoint carries, with leave to cut texts where --max-length gives it."""
    if spec.text is None or inputs.max_length is None:
        return spec
    text = replace(spec.text, asked=True)
    if text.texts is None and inputs.max_length <= text.longest:  # nobody says how long it was trained on
        text = replace(text, max_length=inputs.max_length)
    return replace(spec, text=text, shape=(text.max_length,))


def refuse_no_head(spec: ModelSpec, inputs: Inputs) -> None:
    """Refuse an encoder of texts that classifies nothing (ModelError)."""
    folder = None if spec.text is None or spec.is_language else spec.text.folder
    if folder is not None and not has_classifier(folder):
        named = ", ".join(architectures(folder)) or "no architectures named"
        what = f"the folder has no classifier on its encoder ({named})"
        fix = f"train one: influence retrain {inputs.manifest} --model {HF}{folder} -o RUN"
        raise ModelError(what, where=str(folder), fix=fix)


def known_again(spec: ModelSpec, inputs: Inputs, where: str, manifest: Manifest, store: Store) -> ModelSpec:
    """The spec that a checkpoint carries, for training: the user's own code is known by what it does now."""
    if not is_own(spec.name):
        return spec
    from influence_cli.stages.run.own_model import known_untrained

    return known_untrained(with_own_code(spec, inputs, where), manifest, store)


def resolve_model(inputs: Inputs, manifest: Manifest, store: Store, precision: str) -> tuple[ModelSpec, Checkpoint]:
    """The model and checkpoint of a scoring run.

    Raises:
        UsageError: no checkpoint, no architecture, or a flag that contradicts the checkpoint.
        ModelError: the checkpoint cannot be used.
    """
    own = inputs.task is not None or is_own(inputs.model)
    checkpoint, carried = (
        (None, None) if inputs.checkpoint is None else find_model(inputs.checkpoint, own, not manifest.labelled)
    )
    if carried is not None:
        spec = with_cut_texts(ModelSpec.from_dict(carried), inputs)
        refuse_no_head(spec, inputs)
        refuse_contradictions(inputs, spec, inputs.checkpoint or "")
        spec = with_class_order(spec, inputs, manifest, inputs.checkpoint or "", carried=True)
        if is_own(spec.name):
            from influence_cli.stages.run.own_model import known_by_outputs

            spec = with_own_code(spec, inputs, inputs.checkpoint or "")
            spec = known_by_outputs(replace(spec, code=None), required(checkpoint), manifest, store, precision)
        return spec, required(checkpoint)
    if own:
        from influence_cli.stages.run.own_model import resolve_task

        return resolve_task(inputs, manifest, store, checkpoint, precision)
    found = required(checkpoint)
    if inputs.model is None:
        raise UsageError(
            "the checkpoint does not say its architecture", where=inputs.checkpoint or "", fix="pass --model NAME"
        )
    spec = new_spec(with_outputs(inputs), manifest, store)
    return with_class_order(spec, inputs, manifest, inputs.checkpoint or ""), found


def required(checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint.

    Raises:
        UsageError: there is none.
    """
    if checkpoint is None:
        raise UsageError("no checkpoint", fix="pass --checkpoint PATH (a run folder of `retrain`, .safetensors or .pt)")
    return checkpoint


def refuse_contradictions(inputs: Inputs, spec: ModelSpec, where: str) -> None:
    """Refuse flags that say otherwise than the checkpoint at ``where`` does (UsageError)."""
    image = spec.payload_kind.pixels
    for flag, asked, there in (
        ("--model", _untagged(inputs.model, spec.name), spec.name),
        ("--num-classes", inputs.num_classes, spec.num_classes),
        ("--input-size", inputs.input_size, spec.shape[-1] if image else None),
        ("--mean", for_each_channel(inputs.mean, spec), spec.mean if image else None),
        ("--std", for_each_channel(inputs.std, spec), spec.std if image else None),
        ("--interpolation", inputs.interpolation, spec.interpolation if image else None),
        ("--crop", inputs.crop, spec.crop if image else None),
        ("--max-length", inputs.max_length, spec.text.max_length if spec.text is not None else None),
        ("--loss", _loss_called(inputs.loss), spec.loss or "cross-entropy"),
    ):
        if asked is not None and asked != there:
            raise UsageError(
                f"{flag} {as_text(asked)} contradicts the checkpoint, which was trained with {as_text(there)}",
                where=where,
                fix=f"leave {flag} out",
            )


def _loss_called(asked: str | None) -> str | None:
    """The name of a loss as specs have it."""
    return None if asked is None else named_loss(asked).name(1)


def _untagged(asked: str | None, there: str) -> str | None:
    """A model's name; without timm's tag of pretrained weights, or as its architecture's, where that is there."""
    if asked is not None and asked.startswith(HF) and there.startswith(HF):
        return f"{HF}{(read_config(folder_of(asked)) or {}).get('model_type')}"
    return there if asked is not None and asked.split(".")[0] == there else asked
