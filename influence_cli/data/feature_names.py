"""What the features of a manifest are called, where it was made from a table with named columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from influence_cli.data.manifest import Manifest
from influence_cli.data.request import COLUMNS_KEY
from influence_cli.data.sources.features import CATEGORY, Feature
from influence_cli.data.tables import read_schema


def features_of(manifest: Manifest) -> list[Feature]:
    """The columns that became its features; none where it does not say."""
    metadata = (read_schema(manifest.files[0]).metadata or {}) if manifest.files else {}
    try:
        return [Feature.from_dict(value) for value in json.loads(metadata[COLUMNS_KEY])["features"]]
    except (KeyError, ValueError, TypeError):
        return []


def names_of(manifest: Manifest, width: int) -> list[str] | None:
    """The names of ``width`` features; None where the manifest does not say."""
    names = [name for feature in features_of(manifest) for name in feature.names]
    return names if len(names) == width else None


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
