"""Which files of a folder are images that are read, and why the others are not: every one is counted, by suffix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from influence_cli.data.earlier import MANIFESTS, kind_of
from influence_cli.data.folders import Passed
from influence_cli.data.sources.protocol import LeftOut

EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c",
}  # fmt: skip
UNREAD_IMAGES = {
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".svg", ".svgz", ".eps", ".ps", ".ai", ".pdf", ".psd", ".xcf",
    ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw",
    ".ico", ".icns", ".cur", ".tga", ".exr", ".hdr", ".pfm", ".pam", ".fits", ".fit", ".dcm", ".dicom", ".nii", ".dds",
    ".pcx", ".sgi", ".ras", ".dib", ".jls", ".xpm", ".xbm", ".emf", ".wmf", ".qoi",
}  # fmt: skip
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"}
ARRAYS = {".npy", ".npz", ".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".pt", ".tfrecord", ".arrow"}
TEXTS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".md", ".yaml", ".yml", ".log", ".py", ".ipynb"}
MOST = 10  # suffixes that are counted one by one of those that are nothing known
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")

_NO_IMAGE, _MANY_SUFFIXES = "no image", "of other suffixes"


def is_read(file: Path) -> bool:
    """Whether a file's name says that it is an image of a format that is read."""
    return file.suffix.lower() in EXTENSIONS


def is_any_image(file: Path) -> bool:
    """Whether a file's name says that it is an image, be it read or not."""
    return is_read(file) or file.suffix.lower() in UNREAD_IMAGES


def counted(number: int, what: str) -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def files_left_out(files: Iterable[Path], root: Path, why_image: str, why: str | None = None) -> list[LeftOut]:
    """How many files of each suffix are in no row, and why.

    ``why_image`` says it of images that could be read, and ``why``, where it is given, of all other files.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for file in files:
        suffix = file.suffix.lower()
        reason = why_image if is_read(file) else _of_ours(file, suffix) or why or _reason(file, suffix)
        found.setdefault((suffix, reason), []).append(file)
    rare = sorted((key for key in found if key[1] == _NO_IMAGE), key=lambda key: -len(found[key]))[MOST:]
    if len(rare) > 1:
        found[_MANY_SUFFIXES, _NO_IMAGE] = [file for key in rare for file in found.pop(key)]
    parts: list[LeftOut] = []
    for (suffix, reason), group in sorted(found.items()):
        first = min(group).relative_to(root).as_posix()
        what = f"{counted(len(group), 'file')} {suffix or 'without a suffix'}"
        parts.append(LeftOut(what, f"{reason} ({first}{', ...' if len(group) > 1 else ''})"))
    return parts


def _of_ours(file: Path, suffix: str) -> str | None:
    """What a Parquet file of ours is; None of any other file."""
    kind = kind_of(file) if suffix == ".parquet" else None
    if kind is None:
        return None
    alone = ": give it alone, by its name, where it is what is meant" if kind in MANIFESTS else ""
    return f"a {kind} that influence has written, and no part of the source{alone}"


def _reason(file: Path, suffix: str) -> str:
    """Why a file that is no image by its suffix, or none that is read, is in no row."""
    if suffix in UNREAD_IMAGES:
        return f"an image format that is not read: convert it, as with `magick mogrify -format png *{suffix}`"
    if suffix in ARCHIVES:
        return "an archive: unpack it where it holds images"
    if suffix in VIDEOS:
        return "a video: save the frames that are wanted as images"
    if suffix in ARRAYS:
        return "arrays, not an image: save each image as a PNG, or give an .npz alone"
    if suffix not in TEXTS and _is_image(file):
        return "an image by its content: give it the suffix of its format"
    return _NO_IMAGE


def _is_image(file: Path) -> bool:
    """Whether a regular file begins as an image of a format that is read."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as handle:
            start = handle.read(12)
    except OSError:
        return False
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def passed_by(passed: Passed, root: Path) -> list[LeftOut]:
    """What a walk passed over: hidden names and links that lead around in a circle."""
    why, parts = "hidden, or a system's own", list[LeftOut]()
    for name, number in sorted(passed.folders.items()):
        parts.append(LeftOut(f"folder {name}" if number == 1 else f"{number:,} folders {name}", why))
    if passed.files:
        parts.append(LeftOut(f"{counted(passed.files.total(), 'file')} {few(sorted(passed.files))}", why))
    parts += [LeftOut(f"folder {path.relative_to(root).as_posix()}", "a store of influence") for path in passed.stores]
    loops = [path.relative_to(root).as_posix() for path in passed.loops]
    return parts + [LeftOut(f"folder {path}", "a link to a folder that it stands in itself") for path in loops]


def folders_behind_links(passed: Passed, root: Path) -> list[str]:
    """A note of the folders that were read by following links; none where there are none."""
    links = [path.relative_to(root).as_posix() for path in passed.links]
    return (
        [f"{counted(len(links), 'folder')} behind links: read, as if they stood there ({few(links)})"] if links else []
    )


def few(names: Iterable[str], most: int = 5) -> str:
    """The first names of many, for messages."""
    known = list(names)
    return ", ".join(known[:most]) + (", ..." if len(known) > most else "")
