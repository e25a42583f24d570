"""What the features of a manifest are called, where it was made from a table with named columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from influence_cli.data.manifest import Manifest
from influence_cli.data.request import COLUMNS_KEY
from influence_cli.data.sources.features import CATEGORY, Feature
from influence_cli.data.tables import read_schema
from influence_cli.errors import ManifestError
from influence_cli.store.keys import parse_json

SHOWN = 5  # names in a message


def features_of(manifest: Manifest) -> list[Feature]:
    """The columns that became its features; none where it does not say."""
    metadata = (read_schema(manifest.files[0]).metadata or {}) if manifest.files else {}
    try:
        return [Feature.from_dict(value) for value in parse_json(metadata[COLUMNS_KEY])["features"]]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


def names_of(manifest: Manifest, width: int) -> list[str] | None:
    """The names of ``width`` features; None where the manifest does not say."""
    names = [name for feature in features_of(manifest) for name in feature.names]
    return names if len(names) == width else None


def identity_of(manifest: Manifest) -> tuple[str, ...] | None:
    """What each feature is, in order: its name, and what its numbers count from; None where it does not say."""
    named = [
        name + (f" (counted from {feature.origin:.15g})" if feature.origin else "")
        for feature in features_of(manifest)
        for name in feature.names
    ]
    return tuple(named) or None


def check_features(manifest: Manifest, trained: Sequence[str] | None, whose: str) -> None:
    """Refuse a manifest whose features are not those of ``whose``, in their order; without names nothing is known.

    Raises:
        ManifestError: names the features that differ.
    """
    own = None if trained is None else identity_of(manifest)
    if own is None or trained is None or own == tuple(trained):
        return
    lacking, strange = ([n for n in some if n not in others] for some, others in ((trained, own), (own, trained)))
    parts = [f"{word} {_some(names)}" for word, names in (("it lacks", lacking), ("it has", strange)) if names]
    if not parts:
        k = next(k for k, (here, there) in enumerate(zip(own, trained, strict=False)) if here != there)
        parts = [f"in another order: feature {k} is {own[k]} where {trained[k]} is meant"]
    counts = f"{len(own)} where there are {len(trained)}; " if len(own) != len(trained) else ""
    what = f"its features are not those of {whose}: {counts}{'; '.join(parts)}"
    fix = (
        "make it again with the categories and columns that the model was trained on: influence manifest TABLE --like "
    )
    raise ManifestError(what, where=manifest.source, fix=fix + "MANIFEST, the one that it was trained on")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def in_words(features: Sequence[Feature], values: Any) -> str:
    """A row's features as the table had them: ``age=39; job=clerk``."""
    parts: list[str] = []
    at = 0
    for feature in features:
        own = values[at : at + len(feature.names)]
        at += len(own)
        if feature.kind == CATEGORY:
            parts += [name for name, value in zip(feature.names, own, strict=True) if value > 0.5]
        else:
            parts += [f"{n}={float(v) + feature.origin:g}" for n, v in zip(feature.names, own, strict=True)]
    return "; ".join(parts)
