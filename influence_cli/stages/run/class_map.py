"""``--class-map``: which class of the manifest each output of a checkpoint is, where the two orders differ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from influence_cli.model.class_order import in_order_of, names_of_outputs, read_class_map
from influence_cli.model.spec import ModelSpec

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.settings import Inputs


def named_classes(inputs: Inputs, manifest: Manifest) -> Inputs:
    """The inputs with the names that --class-map gives in place of where they are, for provenance.

    Raises:
        UsageError: they cannot be read.
    """
    given = inputs.class_map
    return inputs if given is None else replace(inputs, class_map=read_class_map(given, manifest.classes))


def with_outputs(inputs: Inputs) -> Inputs:
    """The inputs with as many classes as --class-map names, where no flag says their number."""
    names = inputs.class_map
    if isinstance(names, tuple) and inputs.num_classes is None:
        return replace(inputs, num_classes=len(names))
    return inputs


def with_class_order(
    spec: ModelSpec, inputs: Inputs, manifest: Manifest, where: str, carried: bool = False
) -> ModelSpec:
    """The spec of a checkpoint with its outputs in the order of the manifest's classes, where --class-map names them.

    ``carried``: the checkpoint says its spec itself, and with it the names of its classes.

    Raises:
        UsageError: the names contradict the checkpoint.
        ManifestError: a class of the manifest is none of them.
    """
    names = names_of_outputs(inputs.class_map, spec.classes if carried else None, spec.num_classes or None, where)
    return spec if names is None else in_order_of(spec, names, manifest.classes, manifest.source)
