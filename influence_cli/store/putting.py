"""Files put at addresses (see ``remote``): whole or not there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from influence_cli.errors import UsageError
from influence_cli.store.remote import FIX, Address, copied, parsed, refusal, tried


def check_putting(place: str, named: str | None = None) -> bool:
    """Whether a file is at an address that is to be written; messages call it ``named``, where that is another.

    Raises:
        UsageError: it is a folder, or nothing can be put there.
    """
    from pyarrow.fs import FileType

    address = parsed(place)
    if address.scheme == "hf":
        what = "nothing is written to hf:// addresses"
        raise UsageError(what, where=place, fix="write a file here, and upload it: huggingface-cli upload")
    try:
        info = tried(lambda: address.system.get_file_info(address.path), first=True)
        bucket = tried(lambda: address.system.get_file_info(address.path.partition("/")[0]))
    except Exception as error:
        raise refusal("cannot look for it", parsed(named or place), error) from error
    if bucket.type == FileType.NotFound:
        raise UsageError("there is no such bucket", where=named or place, fix=FIX[address.scheme])
    if place.endswith("/") or info.type == FileType.Directory:
        raise UsageError(f"cannot write {place!r}: it names a folder", fix="give a file name")
    return info.type == FileType.File and info.size > 0


def check_folder(place: str) -> None:
    """Refuse an address below which no files can be written.

    Raises:
        UsageError: it is one, or there is no such bucket.
    """
    check_putting(f"{place}/file", place)


def put_copy(source: Path, place: str) -> None:
    """Write a file to an address, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    address = parsed(place)
    try:
        tried(lambda: _put(source, address))
    except Exception as error:
        raise refusal("cannot write it", address, error) from error


def put_new(source: Path, place: str) -> None:
    """Write a file, or all files of a folder, to an address where nothing is: all of them or none.

    Raises:
        UsageError: they cannot be written; what was put before is taken away again.
    """
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    done = list[str]()
    try:
        for file in files:
            done.append(place if file == source else f"{place}/{file.relative_to(source).as_posix()}")
            put_copy(file, done[-1])
    except BaseException:
        for name in done:
            with contextlib.suppress(Exception):  # that it could not be written is what is told
                delete(name)
        raise


def delete(place: str) -> None:
    """Take a file at an address away.

    Raises:
        UsageError: it cannot be.
    """
    address = parsed(place)
    try:
        tried(lambda: address.system.delete_file(address.path))
    except Exception as error:
        raise refusal("cannot take it away", address, error) from error


def put(source: Path, place: str) -> None:
    """Write a file to an address, whole or not at all, and keep the copy at hand.

    Raises:
        UsageError: it cannot be written; says where the file is kept.
    """
    address = parsed(place)
    try:
        tried(lambda: _put(source, address))
    except Exception as error:
        kept = Path(tempfile.mkdtemp(prefix="influence-unwritten-")) / source.name
        shutil.copyfile(source, kept)
        told = refusal("cannot write it", address, error)
        raise UsageError(told.what, where=place, fix=f"{told.fix}; what was to be written is {kept}") from error
    copied(address, source)


def _put(source: Path, address: Address) -> None:
    """One write of the whole file: a stream that is left early would be closed, and what it holds become an object."""
    import pyarrow as pa

    size = source.stat().st_size
    with pa.memory_map(str(source)) as mapped:
        data = mapped.read_buffer() if size else pa.py_buffer(b"")
        stream = address.system.open_output_stream(address.path)
        stream.write(data)
        stream.close()
    found = address.system.get_file_info(address.path).size
    if found != size:
        raise OSError(f"{found} of {size} bytes have arrived")
