"""The input of a new model of images: channels and size from all rows, whichever stands first.

Grey where all images are, else three channels.  The size is the most common one; of several that are equally common,
the one in the middle by area.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.errors import ManifestError
from influence_cli.events import Listener
from influence_cli.store.keys import digest_of_sorted, fingerprint

if TYPE_CHECKING:
    from influence_cli.data.manifest import Manifest
    from influence_cli.store import Store

MUCH = 4  # times that a side is resized


@dataclass(frozen=True)
class ImageInput:
    """What all images of a manifest come to; sizes are (height, width)."""

    height: int
    width: int
    grey: int  # images of one channel
    colour: int
    sizes: int  # how many different ones there are
    of_size: int  # images that have the size
    smallest: tuple[int, int]  # by area
    largest: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (3 if self.colour else 1), self.height, self.width

    def say(self, listener: Listener, resized: bool) -> None:
        """Tell of grey images among others, and of sizes that differ where images are ``resized`` to the usual one."""
        if self.grey and self.colour:
            listener.note(f"grey images: {self.grey:,}, in colour: {self.colour:,}; the model takes 3 channels")
        if self.sizes == 1 or not resized:
            return
        many = self.of_size > (self.grey + self.colour) / self.sizes
        why = f"the most common one ({self.of_size:,} images)" if many else "the one in the middle"
        text = f"images have {self.sizes:,} sizes, from {size_text(self.smallest)} to {size_text(self.largest)}"
        text += f": all are resized to {size_text((self.height, self.width))}, {why}; --input-size N gives another"
        much = max(self._times(self.smallest), self._times(self.largest)) >= MUCH
        (listener.warn if much else listener.note)(text)

    def _times(self, size: tuple[int, int]) -> float:
        """How many times a side of an image becomes longer or shorter, whichever is more."""
        sides = zip(size, (self.height, self.width), strict=True)
        return max(max(a, b) / max(1, min(a, b)) for a, b in sides)


@functools.cache
def installed(package: str) -> str:
    """The version of a package, read from the disk once."""
    return importlib.metadata.version(package)


def image_input(manifest: Manifest, skip_bad: bool, store: Store | None) -> ImageInput:
    """The input that a manifest's images have; remembered in the store, so that they are opened once.

    Raises:
        ManifestError: an image does not open (and bad rows are not skipped), or none decodes.
    """
    rows, pillow = digest_of_sorted(manifest.all_rows().payload_keys), installed("pillow")
    key = fingerprint("image-input", 1, rows=rows, skip_bad=skip_bad, pillow=pillow)
    note = store.read_model_note(key) if store else None
    if note is not None:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in note.items()}
        return ImageInput(**values)
    found = _summary(_shapes(manifest, skip_bad))
    if store:
        store.write_model_note(key, asdict(found))
    return found


def _shapes(manifest: Manifest, skip_bad: bool) -> Counter[tuple[int, ...]]:
    """How many images have which channels, height and width; with bad rows skipped, of those that decode."""
    kind, counts = manifest.payload_kind, Counter[tuple[int, ...]]()
    for row, payload in manifest.payloads(manifest.all_rows().index):
        try:
            counts[kind.shape(payload, whole=skip_bad)] += 1
        except Exception as error:
            if skip_bad:
                continue  # it is listed where the rows are decoded
            what, fix = (
                f"the image cannot be decoded ({error})",
                f"{getattr(error, 'fix', kind.repair)}, or pass --skip-bad",
            )
            raise ManifestError(what, where=manifest.place(row, kind.column), fix=fix) from error
    if not counts:
        raise ManifestError("no image can be decoded", where=manifest.source, fix="give a manifest of images")
    return counts


def _summary(shapes: Counter[tuple[int, ...]]) -> ImageInput:
    grey, sizes = 0, Counter[tuple[int, int]]()
    for (channels, height, width), number in shapes.items():
        grey += number if channels == 1 else 0
        sizes[height, width] += number
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    usual = [size for size in by_area if sizes[size] == max(sizes.values())]
    height, width = usual[(len(usual) - 1) // 2]
    colour = shapes.total() - grey
    return ImageInput(height, width, grey, colour, len(sizes), sizes[height, width], by_area[0], by_area[-1])


def size_text(size: Sequence[int]) -> str:
    """A size (height, width) as people write it: width before height."""
    return f"{size[1]} x {size[0]}"
