"""Edits written back in the forms that data come in: one lazy table, one file each.

Where the manifest came from a source of the same form, that source is read again and only what was edited changes;
otherwise the form is made from the manifest.  Nothing is overwritten, and every export is whole or not there.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.text_files import EXCEL
from influence_cli.errors import UsageError, nearest
from influence_cli.exports.protocol import ExportJob, Prepared


@dataclass(frozen=True)
class FormInfo:
    """A form: the function that prepares it, the suffixes of its files, and whether it is a folder."""

    target: str
    suffixes: tuple[str, ...] = ()
    named_by_suffix: bool = True  # False: only where it is asked for by name
    holds_images: bool = False  # False: rows name them by their path

    @property
    def folder(self) -> bool:
        """Whether the form is a folder."""
        return not self.suffixes


FORMS: dict[str, FormInfo] = {
    "folder": FormInfo("influence_cli.exports.folder:prepare", holds_images=True),
    "csv": FormInfo("influence_cli.exports.csv_table:prepare", (".csv", ".tsv")),
    "jsonl": FormInfo("influence_cli.exports.json_lines:prepare", (".jsonl", ".ndjson")),
    "huggingface": FormInfo("influence_cli.exports.huggingface:prepare", holds_images=True),
    "label-studio": FormInfo("influence_cli.exports.label_studio:prepare", (".json",)),
    "npz": FormInfo("influence_cli.exports.npz:prepare", (".npz",), holds_images=True),
    "json": FormInfo("influence_cli.exports.json_lines:prepare_list", (".json",)),
    "fiftyone": FormInfo("influence_cli.exports.fiftyone:prepare"),
    "spotlight": FormInfo("influence_cli.exports.spotlight:prepare", (".parquet",), named_by_suffix=False),
}


def choose_form(asked: str | None, origin: Origin | None, place: str) -> str:
    """The form that was asked for, or the source's, or what the suffix of ``place`` says.

    Raises:
        UsageError: an unknown form, none that can be told, or a suffix that says another.
    """
    every = f"pass --export-as {'|'.join(FORMS)}"
    suffix = Path(place).suffix.lower()
    by_suffix = next((name for name, form in FORMS.items() if suffix in form.suffixes and form.named_by_suffix), None)
    if asked is not None and asked not in FORMS:
        raise UsageError(f"--export-as {asked!r} is unknown", fix=nearest(asked, list(FORMS)))
    known = origin.form if origin is not None and origin.form in FORMS else None
    fits = known is not None and suffix in FORMS[known].suffixes
    if asked is None and known is not None and by_suffix is not None and not fits:
        raise UsageError(f"the manifest was made from {known}, and {place!r} is named as {by_suffix}", fix=every)
    if suffix in EXCEL and asked is None:
        fix = f"export a table of text: --export {Path(place).with_suffix('.csv')} --export-as csv"
        raise UsageError(f"cannot export to {place!r}: Excel is read, and not written", fix=fix)
    form = asked or known or by_suffix
    if form is None:
        what = "the manifest does not say what it was made from" if origin is None else "Parquet is what -o writes"
        raise UsageError(f"cannot tell the form of --export {place}: {what}", fix=every)
    if not FORMS[form].folder and suffix not in FORMS[form].suffixes:
        raise UsageError(f"cannot export {form} to {place!r}", fix=f"name it {' or '.join(FORMS[form].suffixes)}")
    return form


def prepare(form: str, job: ExportJob) -> Prepared:
    """Check that the form can be written, without writing anything.  Raises InfluenceError: it cannot."""
    module, function = FORMS[form].target.split(":")
    return getattr(importlib.import_module(module), function)(job)
