"""What a file holds by its first bytes, where it is called otherwise: a CSV named .parquet is not damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

from influence_cli.errors import ManifestError
from influence_cli.store.files import DamagedFile
from influence_cli.store.zips import damage_told

TEXTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
GROUPS = ((".parquet",), (".xlsx", ".xlsm"), (".xls",), (".npz",), (".npy",), TEXTS)
HEAD = 4096
_CALLED = {
    ".parquet": "Parquet", ".xlsx": "an Excel workbook", ".xls": "an Excel workbook of the old kind",
    ".npz": "arrays of NumPy", ".npy": "one array of NumPy", ".csv": "text", ".json": "JSON", ".jsonl": "lines of JSON",
}  # fmt: skip


def refuse_wrong_suffix(path: Path) -> None:
    """Refuse a file that is called after another form than it has.

    Raises:
        ManifestError: it is; names both forms.
    """
    suffix, holds = path.suffix.lower(), suffix_of_content(path)
    group = next((some for some in GROUPS if suffix in some), None)
    if group is None or holds is None or holds in group:
        return
    what = f"it is called {suffix}, and holds {_CALLED[holds]}"
    raise ManifestError(what, where=str(path), fix=f"rename it to {path.with_suffix(holds).name}")


def suffix_of_content(path: Path) -> str | None:
    """The suffix that belongs to what a file holds; None where that cannot be told."""
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD)
            handle.seek(0, 2)
            handle.seek(-min(4, handle.tell()), 2)
            tail = handle.read()
        if head.startswith(b"PAR1"):
            return ".parquet" if tail == b"PAR1" else None  # cut off: that is said by whoever reads it
        if head.startswith(b"\x93NUMPY"):
            return ".npy"
        if head.startswith(b"\xd0\xcf\x11\xe0"):
            return ".xls"
        if head.startswith(b"PK\x03\x04"):
            with damage_told(), zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return ".xlsx" if any(n.startswith("xl/") for n in names) else ".npz" if _are_arrays(names) else None
    except (OSError, DamagedFile):
        return None
    return _of_text(head)


def _are_arrays(names: list[str]) -> bool:
    return bool(names) and all(name.endswith(".npy") for name in names)


def _of_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode("utf-8-sig")  # cut within a letter
    begins = text.lstrip()[:1]
    if "\0" in text or not begins:
        return None
    if begins in "{[":
        return ".jsonl" if begins == "{" else ".json"
    first = text.splitlines()[0]
    return ".csv" if any(mark in first for mark in ",;\t|") else None
