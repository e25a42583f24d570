"""Image folders as people have them: which folders are classes and splits, and every file left out is said."""

from __future__ import annotations

import io
import os
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from influence_cli.data.ingest import Ingested, make_manifest
from influence_cli.data.request import IngestRequest
from influence_cli.data.sources.class_folders import split_in
from influence_cli.errors import ManifestError
from tests.cases import call_cli


def picture(seed: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format=form)
    return out.getvalue()


def tree(root: Path, *folders: str, images: int = 2) -> Path:
    """A folder with so many images in each of its folders, all different."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for k in range(images):
            (root / folder / f"{k}.png").write_bytes(picture(zlib.crc32(f"{folder}/{k}".encode())))
    return root


def read(root: Path) -> Ingested:
    return make_manifest(IngestRequest(str(root), str(root.parent / f"{root.name}.out" / "m.parquet")))


def found(made: Ingested) -> dict[tuple[str, str], int]:
    """How many rows each class has in each split, what of train was drawn as val counted as train."""
    m = made.manifest
    assert m.classes is not None
    names = [m.classes[k] for k in m.labels.tolist()]
    own: list[str] = ["train" if s == "val" else s for s in m.splits.tolist()]
    return Counter(zip(own, names, strict=True))


FOUR = {("train", "cat"): 2, ("train", "dog"): 2, ("test", "cat"): 2, ("test", "dog"): 2}
LAYOUTS = {
    "plain": "{split}/{name}",
    "data": "{split}_data/{name}",
    "set": "{split}-set/{name}",
    "year": "{split}2017/{name}",
    "ing": "{split}ing/{name}",
    "capitals": "{Split}Images/{name}",
    "numbered": "01_{split}/{name}",
    "twice": "seg_{split}/seg_{split}/{name}",
    "images inside": "{split}/images/{name}",
    "images outside": "images/{split}/{name}",
    "inside a single folder": "archive/data/{split}/{name}",
    "class first": "{name}/{split}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_found_in_all_usual_layouts(tmp_path: Path, layout: str) -> None:
    places = [
        LAYOUTS[layout].format(split=split, Split=split.capitalize(), name=name)
        for split in ("train", "test")
        for name in ("cat", "dog")
    ]
    made = read(tree(tmp_path / "f", *places))
    assert (made.manifest.classes, found(made)) == (("cat", "dog"), FOUR)
    assert layout in ("plain", "ing") or any("taken as" in note or "folders of splits" in note for note in made.notes)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".git/objects", "__MACOSX/train/cat", "@eaDir", "lost+found"])
@pytest.mark.parametrize("at", ["", "train/", "train/cat/"])
def test_hidden_and_system_folders_are_left_out_at_every_level(tmp_path: Path, at: str, hidden: str) -> None:
    root = tree(tmp_path / "f", "train/cat", "train/dog", "test/cat", "test/dog")
    tree(root, at + hidden)
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    made = read(root)
    assert (made.manifest.classes, found(made)) == (("cat", "dog"), FOUR)
    notes = "\n".join(made.notes)
    assert f"left out: folder {hidden.split('/')[0]}: hidden" in notes
    assert "left out: 2 files .DS_Store, Thumbs.db: hidden" in notes


@pytest.mark.parametrize("other", ["unlabeled", "unlabeled/x", "extra/cat"])
@pytest.mark.parametrize("splits", [("train", "val"), ("train_data", "test_data"), ("train",)])
def test_splits_beside_other_folders_of_images_are_refused(tmp_path: Path, splits: tuple[str, ...], other: str) -> None:
    root = tree(tmp_path / "f", *(f"{s}/{c}" for s in splits for c in ("cat", "dog")), other)
    with pytest.raises(ManifestError, match="stand beside others that hold images") as refused:
        read(root)
    assert other.split("/")[0] in refused.value.fix
    ran = call_cli("manifest", root, "-o", tmp_path / "m.parquet", cwd=tmp_path)
    assert ran.code == 2


@pytest.mark.parametrize("more", ["train_masks/cat", "train_extra/x"])
def test_a_second_folder_of_a_split_is_refused_where_its_name_is_not_plain(tmp_path: Path, more: str) -> None:
    with pytest.raises(ManifestError, match=rf"beside others that hold images \({more.split('/')[0]}\)"):
        read(tree(tmp_path / "f", "train/cat", "train/dog", "test/cat", "test/dog", more))


def test_several_folders_of_one_split_are_read_together_and_said(tmp_path: Path) -> None:
    made = read(tree(tmp_path / "f", "train_1/cat", "train_2/cat", "train_2/dog", "test_1/cat"))
    assert found(made) == {("train", "cat"): 4, ("train", "dog"): 2, ("test", "cat"): 2}
    assert "folders of one split, train: train_1, train_2" in made.notes
    apart = read(tree(tmp_path / "g", "train/cat", "train/dog", "test/x", "test/y"))
    assert "the classes of split test are in no other split: x, y" in apart.notes


def test_folders_without_images_beside_splits_are_left_out_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "train/cat", "train/dog", "test/cat", "test/dog")
    (root / "annotations").mkdir()
    (root / "annotations" / "a.xml").write_text("<a/>")
    made = read(root)
    assert (made.manifest.classes, found(made)) == (("cat", "dog"), FOUR)
    assert "left out: folder annotations: it holds no image" in made.notes
    assert "left out: 1 file .xml: no image (annotations/a.xml)" in made.notes


def test_a_class_that_only_some_classes_divide_into_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="images outside of its folders of splits"):
        read(tree(tmp_path / "f", "cat/train", "cat/test", "dog"))
    with pytest.raises(ManifestError, match=r"stand beside others that hold images \(ground_truth\)"):
        read(tree(tmp_path / "g", "bottle/train/good", "bottle/test/broken", "bottle/ground_truth/broken"))


def test_classes_that_are_named_like_splits_stay_classes_and_it_is_said(tmp_path: Path) -> None:
    made = read(tree(tmp_path / "f", "train", "bus", "car"))
    assert made.manifest.classes == ("bus", "car", "train")
    assert any("named like splits are taken as classes: train" in note for note in made.notes)


def test_one_more_level_is_read_or_said(tmp_path: Path) -> None:
    assert read(tree(tmp_path / "f", "images/cat", "images/dog")).manifest.classes == ("cat", "dog")
    one = read(tree(tmp_path / "one", "cat"))
    assert any("all images are of one class, cat" in note for note in one.notes)
    unnamed = read(tree(tmp_path / "yolo", "images/train", "images/val"))
    assert any("all images are of one class, images" in note for note in unnamed.notes)
    two = read(tree(tmp_path / "two", "art/cat", "art/dog", "photo/cat", "photo/dog"))
    assert two.manifest.classes == ("art", "photo")
    assert any("all have the same folders in them (cat, dog)" in note for note in two.notes)


def test_every_suffix_that_is_read_is_taken(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "cat", "dog", images=1)
    forms = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.JPG": "JPEG", "d.tif": "TIFF", "e.jp2": "JPEG2000", "f.PBM": "PPM"}
    for k, (name, form) in enumerate(forms.items()):
        (root / "cat" / name).write_bytes(picture(100 + k, form))
    assert sorted(read(root).manifest.ids) == sorted(["cat/0.png", "dog/0.png", *(f"cat/{name}" for name in forms)])


def test_files_that_are_left_out_are_counted_by_suffix_with_the_reason(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "cat", "dog")
    for name in ("a.heic", "b.HEIC", "c.avif", "d.svg", "e.cr2", "notes.txt", "more.zip", "film.mp4", "x.npy"):
        (root / "cat" / name).write_bytes(b"x")
    (root / "cat" / "unnamed").write_bytes(picture(1))
    (root / "loose.png").write_bytes(picture(2))
    (root / "bird").mkdir()
    made = read(root)
    said = [note.removeprefix("left out: ") for note in made.notes if note.startswith("left out: ")]
    assert [note.split(":")[0] for note in said] == [
        "1 file without a suffix", "1 file .avif", "1 file .cr2", "2 files .heic", "1 file .mp4", "1 file .npy",
        "1 file .png", "1 file .svg", "1 file .txt", "1 file .zip",
    ]  # fmt: skip
    assert "convert it, as with `magick mogrify -format png *.heic` (cat/a.heic, ...)" in said[3]
    assert "give it the suffix of its format (cat/unnamed)" in said[0]
    assert "it is in no class folder (loose.png)" in said[6]
    assert "no image in the folders of these classes: bird" in made.notes
    assert made.manifest.classes == ("bird", "cat", "dog")
    ran = call_cli("manifest", root, "-o", tmp_path / "m.parquet", cwd=tmp_path)
    assert "left out: 2 files .heic" in ran.err


def test_many_rare_suffixes_are_counted_together(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "cat", "dog")
    for k in range(30):
        (root / "cat" / f"part.{k:03d}").write_bytes(b"x")
    (root / "cat" / "more.000").write_bytes(b"x")
    said = [note for note in read(root).notes if note.startswith("left out: ")]
    assert said[0] == "left out: 2 files .000: no image (cat/more.000, ...)"
    assert said[-1] == "left out: 20 files of other suffixes: no image (cat/part.010, ...)"
    assert len(said) == 11


def test_images_of_a_split_that_are_in_no_class_are_counted(tmp_path: Path) -> None:
    made = read(tree(tmp_path / "f", "train/cat", "train/dog", "test"))
    assert len(made.manifest) == 4
    assert "left out: 2 files .png: it is in no class folder (test/0.png, ...)" in made.notes


def test_a_folder_without_a_readable_image_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "f" / "cat").mkdir(parents=True)
    (tmp_path / "f" / "cat" / "a.heic").write_bytes(b"x")
    (tmp_path / "f" / "labels.csv").write_text("file,label\n")
    with pytest.raises(ManifestError, match=r"1 file \.heic: an image format that is not read") as refused:
        read(tmp_path / "f")
    assert "or give the .csv file where it names the images" in refused.value.fix


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "cat", "dog")
    tree(tmp_path / "else", "x", images=3)
    os.symlink(tmp_path / "else" / "x", root / "cat" / "more")
    os.symlink(tmp_path / "else", root / "bird")
    os.symlink(root, root / "dog" / "loop")
    os.symlink("itself", root / "dog" / "itself")
    made = read(root)
    assert Counter(i.split("/")[0] for i in made.manifest.ids) == {"cat": 5, "dog": 2, "bird": 3}
    assert "2 folders behind links: read, as if they stood there (bird, cat/more)" in made.notes
    assert "left out: 1 file without a suffix: no image (dog/itself)" in made.notes
    assert "left out: folder dog/loop: a link to a folder that it stands in itself" in made.notes
    assert made.elsewhere  # so that what reads the manifest has to be told that it may


def test_rows_stand_in_the_order_of_their_paths(tmp_path: Path) -> None:
    ids = read(tree(tmp_path / "f", "b", "a/x", "a", "a-b")).manifest.ids
    assert ids == ["a/0.png", "a/1.png", "a/x/0.png", "a/x/1.png", "a-b/0.png", "a-b/1.png", "b/0.png", "b/1.png"]


def test_images_that_no_metadata_names_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "train_data", "test_data", images=3)
    for part in ("train_data", "test_data"):
        (root / part / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    made = read(root)
    assert found(made) == {("train", "cat"): 1, ("train", "dog"): 1, ("test", "cat"): 1, ("test", "dog"): 1}
    assert "left out: 2 files .png: no line of the metadata names it (test_data/2.png, ...)" in made.notes


NAMES = {
    "train": "train", "Training": "train", "train-set": "train", "TrainData": "train", "trainset": "train",
    "seg_train": "train", "val2017": "val", "Validation Set": "val", "dev": "val", "test1": "test", "x_testing": "test",
    "trainval": "train", "train_val": None, "cat": None, "strain": None, "latest": None, "contest": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_split_that_a_name_speaks_of(name: str) -> None:
    assert split_in(name) == NAMES[name]


def test_a_name_that_is_no_text_is_named_and_classes_that_look_alike_too(tmp_path: Path) -> None:
    for k, place in enumerate(("train/cat", "train/dog", "val/dog", "test/Cat", "test/dog")):
        (tmp_path / "f" / place).mkdir(parents=True)
        (tmp_path / "f" / place / "0.png").write_bytes(picture(k))
    made = read(tmp_path / "f")
    assert "no train row is of these classes, which val or test rows have: Cat" in made.notes
    assert "classes of nearly one name are different classes: 'Cat' and 'cat'" in made.notes
    os.rename(os.fsencode(tmp_path / "f/train/cat/0.png"), os.fsencode(tmp_path / "f/train/cat") + b"/caf\xe9.png")
    with pytest.raises(ManifestError, match="no text in UTF-8"):
        read(tmp_path / "f")
