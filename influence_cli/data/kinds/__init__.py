"""The kinds of payload: to add one, write its class in a file here and add it to the table."""

from __future__ import annotations

from collections.abc import Iterable

from influence_cli.data.kinds.features import Features
from influence_cli.data.kinds.image import Image, ImagePath
from influence_cli.data.kinds.own_input import DatasetRow, TaskInput
from influence_cli.data.kinds.protocol import Kind
from influence_cli.data.kinds.text import Text, TextPair

# of a manifest that has the columns of several, the first is taken
_ALL = (Image(), ImagePath(), Features(), Text(), TextPair(), TaskInput(), DatasetRow())
KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
PAYLOADS = frozenset(column for kind in KINDS.values() for column in kind.columns)  # of any of them


def kind_in(columns: Iterable[str]) -> Kind | None:
    """The kind whose columns are all there, or None."""
    there = set(columns)
    return next((kind for kind in KINDS.values() if kind.columns and there.issuperset(kind.columns)), None)


def same_input(name: str, kind: Kind) -> bool:
    """Whether a model that calls its input so takes rows of a kind."""
    return name == kind.input_name


def is_input(name: object) -> bool:
    """Whether a model can call its input so."""
    return any(kind.name == kind.input_name == name for kind in KINDS.values())
