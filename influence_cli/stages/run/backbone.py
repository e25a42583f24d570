"""The model whose penultimate features rows are compared by, where ``--features`` names another than the one scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from influence_cli.data.kinds import same_input
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.checkpoints import Checkpoint, find_checkpoint, find_model
from influence_cli.model.hf_folder import HF, folder_of, has_classifier, is_network, read_config
from influence_cli.model.losses import loss_in_spec
from influence_cli.model.new_spec import new_spec, outputs_of
from influence_cli.model.spec import ENCODER, ModelSpec, is_own, is_plain
from influence_cli.stages.run.resolve import with_cut_texts
from influence_cli.stages.run.usable_rows import usable, usable_train_rows

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store

MAPS = 5  # of the last maps of a network of images that are its features
OUTPUTS = 2  # of a model whose last layer is not looked at: the same for every data set, so that its name is too


@dataclass(frozen=True)
class Backbone:
    """A frozen model, and the weights of all but its last layer; ``headless``: these may be of another last layer.

    ``smaller``: further heights and widths at which features of images are taken.
    """

    model: ModelSpec
    checkpoint: Checkpoint
    headless: bool
    smaller: tuple[int, ...] = ()

    @property
    def maps(self) -> int:
        """How many of its last maps are looked at; a model of ours has none."""
        return MAPS if self.model.payload_kind.pixels and not is_plain(self.model.name) else 0


def resolve_backbone(inputs: Inputs, manifest: Manifest, store: Store) -> Backbone | None:
    """The model that ``--features`` names; None where the model that is scored has the features.

    Raises:
        UsageError: it takes other payloads than the manifest has, has no weights here, or is code.
        ModelError: its weights cannot be used.
    """
    named = inputs.features
    if named is None:
        return None
    if is_own(named):
        what = "--features takes no code, since nothing says when what it gives has changed"
        raise UsageError(what, fix="pass it as --model with --checkpoint, and leave --features out")
    file = inputs.features_checkpoint
    found = _carried(inputs, named) if file is None else _named(inputs, named, file, manifest, store)
    _refuse_other_payloads(named, found.model, manifest)
    if inputs.features_size is None:
        return found
    return replace(found, model=_of_sizes(found.model, inputs.features_size), smaller=inputs.features_size[1:])


def _carried(inputs: Inputs, named: str) -> Backbone:
    """A checkpoint that says its model: a run folder, a folder of transformers or of the hub."""
    if not named.startswith(HF) and not Path(named).exists():
        what = f"--features {named} is no file or folder here, and a name alone has no weights: none are downloaded"
        raise UsageError(what, fix=f"pass --features {named} --features-checkpoint FILE, or --features FOLDER")
    if named.startswith(HF):
        folder_of(named)  # which says how to have one that is not here
    checkpoint, carried = find_model(named)
    if carried is None:
        what = "the weights do not say of which model they are"
        raise UsageError(what, where=named, fix=f"pass --features NAME --features-checkpoint {named}")
    spec = ModelSpec.from_dict(carried)
    if is_own(spec.name):
        raise UsageError("--features takes no model that is code", where=named, fix="name another model")
    spec = with_cut_texts(spec, inputs)
    folder = Path(named.removeprefix(HF)).expanduser()
    if spec.network is not None and is_network(read_config(folder)) and not has_classifier(folder):
        encoder = replace(as_encoder(spec), name=ENCODER + spec.name.removeprefix(HF))
        return Backbone(encoder, checkpoint, headless=True)
    return Backbone(spec, checkpoint, headless=False)


def _named(inputs: Inputs, named: str, file: str, manifest: Manifest, store: Store) -> Backbone:
    """An architecture by its name, and a file of its weights."""
    if named.startswith(HF) or Path(named).exists():
        what = f"--features {named} has weights of its own, and --features-checkpoint names others"
        raise UsageError(what, fix="leave one of the two out")
    if not manifest.payload_kind.pixels:
        what = f"--features {named} takes images, and the rows have {manifest.payload_kind.column}"
        raise UsageError(what, where=manifest.source, fix="pass --features hf:FOLDER, an encoder of such rows")
    if not Path(file).exists():
        raise ModelError("no such checkpoint", where=file, fix="pass --features-checkpoint FILE")
    about = replace(inputs, model=named, checkpoint=file, input_size=(inputs.features_size or (None,))[0],
                    class_map=None, loss=None, num_classes=None, mean=None, std=None, interpolation=None,
                    crop=None)  # fmt: skip
    spec = replace(new_spec(about, manifest, store), crop=None)  # whole pictures, whether or not a size was asked for
    return Backbone(as_encoder(spec), find_checkpoint(file)[0], headless=True)


def as_encoder(spec: ModelSpec) -> ModelSpec:
    """The spec of a model whose last layer is not looked at, whatever the labels are."""
    return replace(spec, num_classes=OUTPUTS, classes=None, loss=None, order=None, one_logit=None)


def _of_sizes(spec: ModelSpec, sizes: tuple[int, ...]) -> ModelSpec:
    """The spec with input of the largest size that was asked for, to which images are stretched."""
    size = sizes[0]
    if sizes == spec.shape[1:2] == spec.shape[2:]:
        return spec
    if not spec.payload_kind.pixels:
        raise UsageError("--features-size is about images", fix="leave it out")
    if is_plain(spec.name):
        what = f"{spec.name} takes images of one size alone, {spec.shape[1]} x {spec.shape[2]}"
        raise UsageError(what, fix="leave --features-size out")
    return replace(spec, shape=(spec.shape[0], size, size), crop=None)


def _refuse_other_payloads(named: str, spec: ModelSpec, manifest: Manifest) -> None:
    """Refuse a model of texts for images, and the like (UsageError)."""
    if not same_input(spec.kind, manifest.payload_kind):
        what = f"--features {named} takes {spec.kind}, and the rows have {manifest.payload_kind.column}"
        raise UsageError(what, where=manifest.source, fix="name a model of such rows, or leave --features out")


def for_features(
    backbone: Backbone, inputs: Inputs, manifest: Manifest, store: Store
) -> tuple[ModelSpec, Manifest]:  # fmt: skip
    """Where no model is scored: a spec that takes the rows with their labels, and the manifest less what it cannot use.

    Raises:
        ManifestError: a label has no class (and bad rows are not skipped), or no training row is left.
    """
    outputs, loss = outputs_of(inputs, manifest), loss_in_spec(inputs.loss, manifest.label_kind, own=False)
    spec = replace(backbone.model, num_classes=outputs, classes=manifest.classes, loss=loss, order=None)
    manifest = usable(manifest.rows("train"), spec, inputs, store)
    usable_train_rows(manifest)
    return spec, manifest
