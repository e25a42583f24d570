"""Where a manifest came from, kept in its schema metadata, so that edits can be written back in the source's own form.

The locator counts from the manifest's folder, as its payload paths do.  The digest is of the source's content, so that
row k of the source is still the row that the manifest was made from.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from influence_cli.data.request import Columns
from influence_cli.data.sources.huggingface import dataset_files
from influence_cli.data.sources.parquet import source_files
from influence_cli.data.sources.protocol import Source
from influence_cli.errors import ManifestError
from influence_cli.store.files import file_digest
from influence_cli.store.keys import canonical_json, fingerprint, parse_json
from influence_cli.store.remote import is_remote, local

ORIGIN_KEY = b"influence.source"
LATER = ("task", "weight", "group", "like", "categories", "encoding", "delimiter", "sheet")  # columns that came later
FORMS = {
    "image folder": "folder", "csv": "csv", "tsv": "csv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json",
    "npz": "npz",
    "Hugging Face dataset": "huggingface", "Parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A source as the manifest remembers it."""

    form: str  # folder, csv, jsonl, json, npz, huggingface or parquet
    locator: str  # relative to the manifest's folder
    columns: Columns
    splits: bool  # whether the source itself says which split a row is of
    digest: str | None  # None for image folders, whose files the payload keys verify

    def path(self, folder: Path) -> Path:
        """The source as seen from here; ``folder`` is the manifest's."""
        return local(self.locator) if is_remote(self.locator) else Path(os.path.relpath(folder / self.locator))

    def columns_in(self, folder: Path) -> Columns:
        """Which columns to use; the manifest that they were read like, as seen from here."""
        like = self.columns.like
        return self.columns if like is None else dataclasses.replace(self.columns, like=os.path.relpath(folder / like))

    def verified(self, folder: Path) -> Path:
        """The source, whose content is what the manifest was made from.

        Raises:
            ManifestError: it is gone, or has changed.
        """
        path = self.path(folder)
        if not path.exists():
            fix = "put it back, or pick another form with --export-as"
            raise ManifestError("the source of the manifest is not there any more", where=str(path), fix=fix)
        if self.digest is not None and content_digest(path, self.form) != self.digest:
            what = "the source has changed since the manifest was made from it"
            raise ManifestError(what, where=str(path), fix="run `influence manifest` and `influence score` again")
        return path


def origin_metadata(source: Source, path: str, columns: Columns, splits: bool, folder: Path) -> dict[bytes, bytes]:
    """Schema metadata that say where a manifest in ``folder`` came from; none for a source of no known form."""
    form = FORMS.get(source.kind)
    if form is None:
        return {}
    if columns.like is not None:
        columns = dataclasses.replace(columns, like=_relative(columns.like, folder))
    origin = Origin(form, _relative(path, folder), columns, splits, content_digest(local(path), form))
    return {ORIGIN_KEY: canonical_json(dataclasses.asdict(origin)).encode()}


def read_origin(schema: pa.Schema) -> Origin | None:
    """Where a manifest came from, or None where it does not say."""
    try:
        value = parse_json((schema.metadata or {})[ORIGIN_KEY])
        columns = value["columns"]
        lists = {name: tuple(columns.get(name, ())) for name in ("text", "features", "keep", "drop")}
        later = {name: columns[name] for name in LATER if name in columns}
        asked = Columns(columns["label"], columns["id"], columns["image"], **lists, **later)
        return Origin(value["form"], value["locator"], asked, bool(value["splits"]), value["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def moved_origin(schema: pa.Schema, old: Path, new: Path) -> pa.Schema:
    """The schema of a copy of the manifest in folder ``new``: the locator counts from there."""
    origin = read_origin(schema)
    if origin is None or old.resolve() == new.resolve():
        return schema
    if is_remote(origin.locator):
        return schema
    there = dataclasses.replace(origin, locator=_relative(old / origin.locator, new))
    return schema.with_metadata({**schema.metadata, ORIGIN_KEY: canonical_json(dataclasses.asdict(there)).encode()})


def _relative(path: str | Path, folder: Path) -> str:
    return path if isinstance(path, str) and is_remote(path) else Path(os.path.relpath(path, folder)).as_posix()


def content_digest(path: Path, form: str) -> str | None:
    """Digest of everything that a source's rows are read from; None for an image folder."""
    if form == "folder":
        return None
    if path.is_file():
        return file_digest(path)
    files = source_files(path) if form == "parquet" else dataset_files(path)
    named = [[file.relative_to(path).as_posix(), file_digest(file)] for file in files]
    return fingerprint("source", 1, files=named)
