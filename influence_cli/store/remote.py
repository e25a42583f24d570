"""Files at addresses: ``s3://BUCKET/KEY``, ``gs://BUCKET/KEY`` and ``hf://datasets/OWNER/NAME/FILE``.

What is read is fetched once a command into a temporary folder, part by part, so that a connection that drops costs the
part in hand: whole, or of tables as far as they are read (``parts``).  What is written is made here and put whole.  An
object of S3 appears when its last part has arrived, and not at all where one has not.  Addresses hold no credentials:
those come from where the services' own libraries look for them, which is the environment.  An address of a folder
stands for all files below it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from influence_cli.errors import UsageError, disk_full

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")

SCHEMES = ("s3", "gs", "hf")
SECRETS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "GOOGLE_APPLICATION_CREDENTIALS",
)
PART, TRIES = 1 << 23, 5  # bytes that are asked for at once; how often, or a file is put, before it is given up
PAUSE = 0.2  # seconds before the second try; twice as long before each further one
GOOGLE_TRIES = 20.0  # seconds for which Google's library goes on trying by itself, each time that it is asked
HOPELESS = re.compile(  # in errors of a first look that another would meet too; the libraries have tried by themselves
    r"Could not (resolve host|connect to server|create a OAuth2 access token)|ACCESS_DENIED|NO_SUCH_BUCKET|"
    r"INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|UNAUTHENTICATED"
)
SETTLED = 2.0  # seconds after which an object of the same size and time is the same: times have whole seconds
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
FIX = {
    "s3": "check the address, AWS_REGION or AWS_ENDPOINT_URL, and the credentials in the environment",
    "gs": "check the address and the credentials in the environment (GOOGLE_APPLICATION_CREDENTIALS)",
    "hf": "check the address, HF_ENDPOINT and HF_TOKEN in the environment, and that HF_HUB_OFFLINE is not set",
}


def is_remote(place: Any) -> bool:
    """Whether a place is an address and no path.

    >>> is_remote("s3://bucket/train.parquet"), is_remote("train.parquet"), is_remote(3)
    (True, False, False)
    """
    return isinstance(place, str) and _ADDRESS.match(place) is not None


@dataclass(frozen=True)
class Address:
    """An address in its parts, and the file system that it is in."""

    place: str
    scheme: str
    path: str  # within the file system

    @property
    def system(self) -> FileSystem:
        """The file system that it is in."""
        return _file_system(self.scheme, self.path.partition("/")[0])


def parsed(place: str) -> Address:
    """The parts of an address.

    Raises:
        UsageError: it is of another service, is incomplete, or holds credentials; these are not repeated.
    """
    scheme = place.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UsageError(
            f"addresses of {scheme}:// are not known", fix=f"give a path, or one of {', '.join(SCHEMES)}://"
        )
    parts = urlsplit(place)
    if "@" in parts.netloc or ":" in parts.netloc or parts.query:
        what = f"a {scheme}:// address with credentials, a port or a query in it"
        fix = "give BUCKET and KEY alone; credentials and AWS_ENDPOINT_URL belong into the environment"
        raise UsageError(what, fix=fix)
    path = place.partition("://")[2].strip("/")
    least = {"s3": 2, "gs": 2, "hf": 3}[scheme]
    if len(path.split("/")) < least or (scheme == "hf" and not path.startswith("datasets/")):
        form = "hf://datasets/OWNER/NAME/FILE" if scheme == "hf" else f"{scheme}://BUCKET/KEY"
        raise UsageError(f"{place!r} is no whole address", fix=f"write {form}")
    return Address(place, scheme, path)


@functools.cache
def _file_system(scheme: str, bucket: str) -> FileSystem:
    from pyarrow import fs

    if scheme == "gs":
        limit = timedelta(seconds=GOOGLE_TRIES)  # by itself a quarter of an hour
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")  # as Google's own libraries read it
        if not emulator:
            return fs.GcsFileSystem(retry_time_limit=limit)
        parts = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
        there: dict[str, Any] = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        return fs.GcsFileSystem(anonymous=True, retry_time_limit=limit, **there)
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem(skip_instance_cache=True)))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    retry: Any = fs.AwsStandardS3RetryStrategy(max_attempts=TRIES)
    how: dict[str, Any] = {"retry_strategy": retry, "background_writes": False}  # which hold copies of what they write
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        how |= {"endpoint_override": parts.netloc, "scheme": parts.scheme, "region": region or "us-east-1"}
    else:
        how |= {"region": region or fs.resolve_s3_region(bucket)}
    return fs.S3FileSystem(**how)


def without_secrets(text: str) -> str:
    """A text in which no credential of the environment stands."""
    for name in SECRETS:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, "***")
    return text


def refusal(what: str, address: Address, error: BaseException) -> UsageError:
    """An error of a service, without the credentials that may stand in it."""
    why = without_secrets(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    return UsageError(f"{what} ({why})", where=address.place, fix=FIX[address.scheme])


def tried(work: Callable[[], T], first: bool = False) -> T:
    """What the work gives; where it fails, again after a while, a few times.

    A first look at an address is given up at once where nothing speaks for another.
    """
    pause = PAUSE
    for left in reversed(range(TRIES)):
        try:
            return work()
        except Exception as error:
            if left == 0 or isinstance(error, FileNotFoundError | UsageError) or disk_full(error):
                raise
            if first and HOPELESS.search(str(error)):
                raise
            time.sleep(pause)
            pause *= 2
    raise AssertionError


def refuse_address(place: Any, what: str) -> None:
    """Refuse an address in place of a folder.  Raises UsageError: it is one."""
    if is_remote(place):
        parsed(str(place))
        raise UsageError(f"{what} is a folder on this machine, and no address", where=place, fix="give a path")


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Object:
    """A file at an address: its place in the file system, and by what it is known to be the same."""

    path: str
    size: int
    modified: float | None

    @staticmethod
    def of(info: FileInfo) -> Object:
        """What a file system says of it."""
        return Object(info.path, info.size, None if info.mtime is None else info.mtime.timestamp())


Take = Callable[[Address, Object, Path], None]


@dataclass
class _Copy:
    """What was fetched of an address, and when it was asked for."""

    objects: tuple[Object, ...]
    root: Path
    at: float

    def current(self, objects: tuple[Object, ...]) -> bool:
        """Whether it is still the same, as far as sizes and times tell."""
        return objects == self.objects and all(o.modified is None or self.at - o.modified > SETTLED for o in objects)


_copies: dict[tuple[str, str], _Copy] = {}  # by address and way
_places: dict[str, str] = {}  # local roots, and the addresses that they are copies of


@functools.cache
def folder_of_copies() -> Path:
    """A folder for copies, removed at exit."""
    folder = Path(tempfile.mkdtemp(prefix="influence-fetched-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fetched(place: str, take: Take | None = None) -> Path:
    """A copy on this machine of the file, or of all files below the folder, at an address.

    ``take`` brings a file here, or what stands in its place; without it they are fetched whole.

    Raises:
        UsageError: there is nothing, or it cannot be read.
    """
    address, asked = parsed(place), time.time()
    try:
        objects, folder = tried(lambda: _listed(address), first=True)
    except Exception as error:
        raise refusal("cannot look for it", address, error) from error
    if not objects:
        raise UsageError("no such file or folder", where=place, fix=FIX[address.scheme])
    take = take or fetch
    known = _copies.get((place, take.__name__))
    if known is not None and known.current(objects):
        return known.root
    root = _root(address, take.__name__)
    for item in objects:
        target = root / item.path[len(address.path) :].strip("/") if folder else root
        try:
            take(address, item, target)
        except Exception as error:
            if disk_full(error):
                raise
            raise refusal("cannot read all of it", address, error) from error
    _copies[place, take.__name__] = _Copy(objects, root, asked)
    return root


def _root(address: Address, taken: str = "fetch") -> Path:
    """Where a copy is kept: the same place for the same address and way, under the name that it has there."""
    named = hashlib.blake2b(f"{taken} {address.place}".encode(), digest_size=8).hexdigest()
    root = folder_of_copies() / named / address.path.rpartition("/")[2]
    root.parent.mkdir(exist_ok=True)
    _places[str(root)] = address.place
    return root


def _listed(address: Address) -> tuple[tuple[Object, ...], bool]:
    """The files at an address, by name, and whether it is a folder."""
    from pyarrow.fs import FileSelector, FileType

    info = address.system.get_file_info(address.path)
    if info.type == FileType.File:
        return (Object.of(info),), False
    if info.type == FileType.NotFound:
        return (), False
    found = address.system.get_file_info(FileSelector(address.path, recursive=True))
    return tuple(sorted((Object.of(i) for i in found if i.type == FileType.File), key=lambda o: o.path)), True


def refuse_outside(address: Address, target: Path) -> None:
    """Refuse (UsageError) a name that leads out of the folder of copies."""
    if not target.resolve().is_relative_to(folder_of_copies().resolve()):
        raise UsageError("a name at the address leads out of its folder", where=address.place, fix="rename it")


def fetch(address: Address, item: Object, target: Path) -> None:
    """Copy a file part by part; it gets its name when it is whole."""
    refuse_outside(address, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with open(temporary, "wb") as sink:
        for start in range(0, item.size, PART):
            size = min(PART, item.size - start)
            sink.write(tried(functools.partial(part_of, address, item, start, size)))
    os.replace(temporary, target)


def part_of(address: Address, item: Object, start: int, size: int) -> bytes:
    """Some bytes of a file.  Raises OSError: they have not all arrived."""
    with address.system.open_input_file(item.path) as source:
        found = source.read_at(size, start)
    if len(found) != size:
        raise OSError(f"{len(found)} of {size} bytes have arrived")
    return found


def names_below(place: str) -> dict[str, int]:
    """The files below an address of a folder, by their path from there: bytes.

    Raises:
        UsageError: it cannot be read.
    """
    address = parsed(place)
    try:
        objects, _ = tried(lambda: _listed(address))
    except Exception as error:
        raise refusal("cannot look for it", address, error) from error
    return {item.path[len(address.path) :].strip("/"): item.size for item in objects}


def copy_here(place: str, size: int, target: Path) -> None:
    """Fetch a file of so many bytes to a path.

    Raises:
        UsageError: it cannot be read.
    """
    address = parsed(place)
    try:
        fetch(address, Object(address.path, size, None), target)
    except Exception as error:
        if disk_full(error):
            raise
        raise refusal("cannot read all of it", address, error) from error


def copied(address: Address, source: Path) -> None:
    """Take a file, which was put at an address, as the copy of what is there, until that is looked at again."""
    shutil.copyfile(source, _root(address))
    _copies.pop((address.place, fetch.__name__), None)


def local(place: str) -> Path:
    """A place on this machine: a path, or the copy of what is at an address."""
    return fetched(place) if is_remote(place) else Path(place)


def call(root: Path, place: str) -> None:
    """Have a folder here called by the address that it is the copy of."""
    _places[str(root)] = place


def called(path: Path | str) -> str:
    """What a file is called in messages: by its address, where it is the copy of one."""
    text = str(path)
    for root, place in _places.items():
        if text == root:
            return place
        if text.startswith(root + os.sep):
            return f"{place.rstrip('/')}/{text[len(root) + 1 :]}"
    return text
