"""Where in a folder the folders of classes are, and which splits they are of.

    ROOT/CLASS     ROOT/SPLIT/CLASS     ROOT/SPLIT/ANY/CLASS     ROOT/CLASS/SPLIT     ROOT/ANY/... of these

A folder is one of a split where its name says so (train, val2017, seg_test) and its images are in folders of its own.
What can be taken in two ways is refused; what is taken in another way than ROOT/CLASS or ROOT/SPLIT/CLASS is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from influence_cli.data.folders import Folder
from influence_cli.data.sources.other_files import few, is_any_image
from influence_cli.data.sources.protocol import LeftOut
from influence_cli.data.splits import SPLIT_NAMES, split_of
from influence_cli.errors import ManifestError

_WORD_ENDS = re.compile(r"(set|sets|data|images|imgs)$")  # trainset, testimages
_MORE_NAMES = {"trainval": "train", "evaluation": "test"}


@dataclass(frozen=True, eq=False)
class ClassFolder:
    """A folder whose images are all of one class, and of one split where the layout says which."""

    folder: Folder
    label: str
    split: str | None


@dataclass(frozen=True, eq=False)
class Layout:
    """The class folders, the folders beside them that hold no image, and what to say of how they were found."""

    classes: list[ClassFolder]
    left_out: list[LeftOut]
    notes: list[str]


def split_in(name: str) -> str | None:
    """The split that a folder's name speaks of (train_data, TestSet, val2017); None where it is none, or two."""
    if split_of(name) is not None:
        return split_of(name)
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [word if word in _MORE_NAMES else _WORD_ENDS.sub("", word) for word in words]
    found = {(_MORE_NAMES | SPLIT_NAMES).get(word) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def layout_of(root: Folder) -> Layout:
    """The class folders of an image folder.

    Raises:
        ManifestError: folders of splits stand beside other folders that hold images.
    """
    splits = _splits(root)
    if splits:
        return _in_splits(root, splits)
    only = _with_images(root)
    if len(only) == 1 and not _own_images(root) and not _own_images(only[0]):  # ROOT/images/CLASS, ROOT/data/train/...
        inner = layout_of(only[0])
        if len({part.label for part in inner.classes}) > 1 or any(part.split for part in inner.classes):
            note = f"all images are in the folder {_shown(only[0], root)}: it is taken as the image folder"
            return Layout(inner.classes, [*_beside(root, only), *inner.left_out], [note, *inner.notes])
    return _split_inside(root) or _plain(root)


def _plain(root: Folder) -> Layout:
    """Every folder is a class."""
    notes, held = list[str](), _with_images(root)
    named = [folder.name for folder in root.folders if split_in(folder.name) is not None]
    if named:
        notes.append(f"folders named like splits are taken as classes: {few(named)}")
    inside = {tuple(folder.name for folder in _with_images(part)) for part in held}
    if len(held) > 1 and len(inside) == 1 and len(inside.copy().pop()) > 1 and not any(map(_own_images, held)):
        what = f"the folders {few([f.name for f in held])} are taken as the classes"
        notes.append(f"{what}; all have the same folders in them ({few(inside.pop())}), which are not")
    return Layout([ClassFolder(folder, folder.name, None) for folder in root.folders], [], notes)


def _splits(root: Folder) -> dict[Folder, str]:
    """The folders of splits, by folder; none where the folders are classes.

    Raises:
        ManifestError: some hold images and are no splits.
    """
    exact = {folder: split for folder in root.folders if (split := split_of(folder.name)) is not None}
    if exact and len(exact) == len(root.folders):
        return exact
    named = {f: split for f in root.folders if (split := split_in(f.name)) is not None and _has_inner_images(f)}
    sure = any(folder in exact for folder in named) or len(set(named.values())) > 1
    same = {split for folder, split in named.items() if folder in exact}
    named = {f: split for f, split in named.items() if f in exact or split not in same}  # train beside train_masks
    others = [f for f in _with_images(root) if f not in named and (split_in(f.name) is None or _has_inner_images(f))]
    if sure and others:
        what = f"folders of splits ({few([f.name for f in named])}) stand beside others that hold images"
        fix = f"move {others[0].name} out of the folder, or into one of its splits; or rename what is no split"
        raise ManifestError(f"{what} ({few([f.name for f in others])})", where=str(root.path), fix=fix)
    return named if sure or (len(named) == 1 and not others) else {}


def _in_splits(root: Folder, splits: dict[Folder, str]) -> Layout:
    """The class folders of every split."""
    parents = _class_parents(splits)
    notes = [f"{_shown(parent, root)} is taken as split {split}" for parent, split in parents if _is_told(parent, root)]
    for split in sorted(set(splits.values())):
        same = [folder.name for folder, meant in splits.items() if meant == split]
        notes += [f"folders of one split, {split}: {few(same)}"] if len(same) > 1 else []
    found = [ClassFolder(folder, folder.name, split) for parent, split in parents for folder in parent.folders]
    inner = [part for folder, (parent, _) in zip(splits, parents, strict=True) for part in _between(folder, parent)]
    return Layout(found, [*_beside(root, list(splits)), *inner], notes)


def _is_told(parent: Folder, root: Folder) -> bool:
    """Whether a folder of a split is called otherwise, or stands elsewhere, than people may take for granted."""
    return parent.path.parent != root.path or split_of(parent.name) is None


def _class_parents(splits: dict[Folder, str]) -> list[tuple[Folder, str]]:
    """Where each split has its class folders: SPLIT, or SPLIT/ANY where all that a split has is in there."""
    parents = list(splits.items())
    while True:
        held = [_with_images(parent) for parent, _ in parents]
        single = len({f.name for group in held for f in group}) == 1
        inner = {f.name for group in held for part in group for f in _with_images(part)}
        moved = [
            (group[0], split)
            if len(group) == 1
            and not _own_images(parent)
            and not _own_images(group[0])
            and (split_in(group[0].name) == split or (single and len(inner) > 1))
            else (parent, split)
            for (parent, split), group in zip(parents, held, strict=True)
        ]
        if all(new[0] is old[0] for new, old in zip(moved, parents, strict=True)):
            return parents
        parents = moved


def _split_inside(root: Folder) -> Layout | None:
    """Classes that are each divided into folders of splits: ROOT/CLASS/SPLIT; None where they are not.

    Raises:
        ManifestError: only some classes are, or a class has more than its splits.
    """
    held = _with_images(root)
    parts = {folder: [f for f in _with_images(folder) if split_of(f.name) is not None] for folder in held}
    splits = {split_of(f.name) for group in parts.values() for f in group}
    if len(splits) < 2 or len(held) < 2:  # of one folder, its images are in no class
        return None
    for folder, group in parts.items():
        if len(group) < len(_with_images(folder)) or _own_images(folder):
            known = next(f for group in parts.values() for f in group)
            what = f"{folder.name} has images outside of its folders of splits, where {_shown(known, root)} is one"
            fix = "lay it out as ROOT/train/CLASS and ROOT/test/CLASS, or rename what is no split"
            raise ManifestError(what, where=str(folder.path), fix=fix)
    found = [ClassFolder(f, folder.name, split_of(f.name)) for folder, group in parts.items() for f in group]
    empty = [ClassFolder(folder, folder.name, None) for folder in root.folders if folder not in parts]
    note = f"every class has its own folders of splits, such as {_shown(found[0].folder, root)}"
    return Layout([*found, *empty], [], [note])


def _beside(root: Folder, taken: Sequence[Folder]) -> list[LeftOut]:
    """The folders beside those that are taken, which hold no image, or none in a folder of a class."""
    return [
        LeftOut(f"folder {_shown(folder, root)}", "it holds no image")
        for folder in root.folders
        if folder not in taken and not _holds(folder)
    ]


def _between(top: Folder, parent: Folder) -> list[LeftOut]:
    """The folders without images beside those on the way from a split's folder to its classes."""
    found, at = list[LeftOut](), top
    while at is not parent:
        inner = next(f for f in at.folders if parent.path == f.path or f.path in parent.path.parents)
        found += [
            LeftOut(f"folder {top.name}/{_shown(f, top)}", "it holds no image") for f in at.folders if f is not inner
        ]
        at = inner
    return found


def _own_images(folder: Folder) -> bool:
    return any(is_any_image(file) for file in folder.files)


def _holds(folder: Folder) -> bool:
    return any(is_any_image(file) for file in folder.everything())


def _with_images(folder: Folder) -> list[Folder]:
    return [inner for inner in folder.folders if _holds(inner)]


def _has_inner_images(folder: Folder) -> bool:
    return bool(_with_images(folder))


def _shown(folder: Folder, root: Folder) -> str:
    return folder.path.relative_to(root.path).as_posix()
