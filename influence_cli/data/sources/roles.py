"""What each column of a table is taken for: label, id, payload, weight, group, split; or why it is left out.

Names decide first, then what stands in the columns over all rows.  Everything is said, and kept in the manifest.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from influence_cli.data.classes import CLEAN
from influence_cli.data.kinds import KINDS, PAYLOADS, kind_in
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.label_kinds import DEFAULT, NOTHING, TASKS
from influence_cli.data.plain_types import is_list
from influence_cli.data.request import Columns
from influence_cli.data.sources.features import Feature, Judged, judge, summary
from influence_cli.data.sources.label_columns import label_columns
from influence_cli.data.sources.protocol import ID_NAMES, IMAGE_NAMES, KEPT, LABEL_NAMES, LeftOut, pick
from influence_cli.data.sources.survey import PLAIN, Survey
from influence_cli.data.sources.text_columns import free_texts, text_columns
from influence_cli.errors import ManifestError, shell_word

ROW_NUMBERS = "none"  # as --id: rows are numbered
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+(_level_\d+)?|\s*")  # pandas' index, and no name at all
_COUNTERS = ("index", "level_0", "rownames", "row", "rownum", "row_number", "rownumber", "#", "no", "no.", "nr", "idx")
_WEIGHTS = ("sample_weight", "sample_weights", "instance_weight", "row_weight", "sampleweight")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # of snake_case and CamelCase
_IDENTIFIERS = ("id", "ids", "uid", "uuid", "guid", "uri", "url", "hash", "md5", "sha1", "sha256")
_LIKE_SPLITS = re.compile(r"(?i)\s*(train|trn|val|vld|test|tst|dev|eval|hold|calib|fold|unlab|unsup)")
SHOWN = 10  # columns of labels that are named
_SURE_LABELS = ("label", "labels")
_NO_COLUMNS = PAYLOADS - {name for kind in KINDS.values() if kind.ragged for name in kind.columns}  # to be kept


@dataclass(frozen=True)
class Roles:
    """Which column is what; features have recipes."""

    label: str  # "" where rows have none
    names: bool = False  # labels are names, also where their text is a number
    labels: tuple[str, ...] = ()  # the columns of several labels a row, where they are more than one
    task: str = DEFAULT
    id: str | None = None
    image: str | None = None
    text: tuple[str, ...] = ()  # a column of texts, or the two of pairs
    own: tuple[str, ...] = ()  # a payload that is stored as a manifest stores it
    features: tuple[Feature, ...] = ()
    weight: str | None = None
    group: str | None = None
    split: str | None = None
    clean: str | None = None
    kept: tuple[str, ...] = ()  # other columns that the manifest gets
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def said(self) -> Iterator[str]:
        """What was taken, in sentences."""
        task = "" if self.task == DEFAULT else f" (task {self.task})"
        named = ", ".join(self.labels[:SHOWN]) + ", ..." * (len(self.labels) > SHOWN)
        many = f"labels: {len(self.labels)} columns, {named}"
        yield (many if self.labels else f"label: column {self.label}" if self.label else "label: none") + task
        yield "id: rows are numbered" if self.id is None else f"id: column {self.id}"
        if self.image is not None:
            yield f"image: column {self.image}"
        elif self.text:
            yield (
                f"text: column {self.text[0]}" if len(self.text) == 1 else f"texts: pairs of {' and '.join(self.text)}"
            )
        elif self.own:
            yield f"payload: column {' and '.join(self.own)}, as a manifest has it"
        else:
            yield from summary(self.features)
        for role, name in (("weight", self.weight), ("split", self.split), ("true labels", self.clean)):
            if name is not None:
                yield f"{role}: column {name}"
        if self.group is not None:
            more = "" if self.group == "group" else f" (later: --group {self.group})"
            yield f"group: column {self.group}, which is no feature{more}"
        if self.kept:
            yield f"kept beside them: {', '.join(self.kept)}"
        yield from self.notes

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest's metadata."""
        single = ("label", "id", "image", "weight", "group", "split", "clean")
        values: dict[str, Any] = {name: getattr(self, name) for name in single}
        values |= {"own": list(self.own), "kept": list(self.kept), "names": self.names, "text": list(self.text)}
        values |= {} if self.task == DEFAULT else {"task": self.task, "labels": list(self.labels)}
        return values | {"features": [f.as_dict() for f in self.features]}


@dataclass(frozen=True)
class Seen:
    """A table's columns: their types, and what was found in them where that was looked at."""

    types: Mapping[str, pa.DataType]  # in order
    surveys: Mapping[str, Survey]
    as_text: bool  # a file of text, in which all is text
    marks: str  # what decimal and thousands marks its numbers may have, see ``Survey.form``
    where: str
    rows: int = 0

    def form(self, name: str) -> tuple[str, str] | None:
        """How a column of text writes numbers; None where it is none, or holds texts."""
        return self.surveys[name].form(self.marks) if name in self.surveys else None


def needs_survey(types: Mapping[str, pa.DataType], columns: Columns) -> bool:
    """Whether values have to be looked at: not where the payload is stored as such."""
    if columns.features or columns.text or columns.like is not None:
        return True
    images = [n for n in types if n == columns.image or (columns.image is None and n.lower() in IMAGE_NAMES)]
    return not _own(types) and not any(_is_image(types[n]) for n in images)


def _own(types: Mapping[str, pa.DataType]) -> tuple[str, ...]:
    """The columns of a payload that is stored as a manifest stores it, by names and types; images have a role."""
    kind = kind_in(types)
    if kind is None or kind.pixels or kind.ragged:
        return ()
    fits = all(kind.holds(types[name]) or is_list(types[name]) for name in kind.columns)
    return kind.columns if fits else ()


def decide(seen: Seen, columns: Columns) -> Roles:
    """The role of every column.

    Raises:
        ManifestError: a name that was asked for is not there, there is no label column, or nothing for a payload.
    """
    names, where, task = list(seen.types), seen.where, columns.task or DEFAULT
    bare = TASKS[task].holds == NOTHING
    if bare and columns.label is not None:
        what = f"--label names labels, and rows of task {task} have none"
        raise ManifestError(what, where=where, fix="leave --label out")
    labels = () if bare else label_columns(names, columns, where)
    label, rivals = (labels[0], []) if labels else ("", []) if bare else _label(names, columns, seen)
    for one in labels or (label,):
        check_asked(names, columns, one, where)
    identity = None
    if columns.id != ROW_NUMBERS or ROW_NUMBERS in names:
        identity = pick([n for n in names if n != label and n not in labels], columns.id, ID_NAMES, "id", where)
    image = _image(names, columns, seen)
    own = () if columns.features or columns.text or image is not None else _own(seen.types)
    text = () if own or image is not None else text_columns(seen.types, seen.surveys, columns, label, where)
    free = [n for n in names if n != label and n not in labels and n not in columns.features]
    usual = {role: _there(role, free) for role in ("group", "split", "weight", CLEAN)}
    notes: tuple[str, ...] = ()
    if usual["split"] is not None and not _says_splits(usual["split"], seen):
        notes = (f"column {usual['split']} says no splits (train, val, test), and is a column like others",)
        usual["split"] = None
    special: dict[str, Any] = {
        "id": identity, "group": columns.group or usual["group"], "split": usual["split"],
        "weight": columns.weight or (usual["weight"] if own or text or image is not None else None),
        "clean": None if bare else usual[CLEAN],
    }  # fmt: skip
    check_kept(special, columns, where)
    taken = {label, *labels, image, *own, *text, *(n for n in special.values() if n is not None)}
    rest = [n for n in names if n not in taken or n in columns.features]
    start = Roles(
        label,
        task == DEFAULT and _are_names(label, seen),
        labels if len(labels) > 1 else (),
        task,
        image=image,
        text=text,
        own=own,
        kept=columns.keep,
        notes=notes,
        **special,
    )
    if own or text or image is not None:
        payload = "image" if image is not None else "text" if text else "payload"
        reason = f"not needed beside the {payload}; --keep-column keeps it"
        return _with(start, (), [LeftOut(f"column {n}", reason) for n in rest if n not in columns.keep], rivals)
    return _of_features(start, rest, rivals, columns, seen)


def _of_features(start: Roles, rest: list[str], rivals: list[str], columns: Columns, seen: Seen) -> Roles:
    """Roles of a table whose payload is numbers and categories."""
    features: list[Feature] = []
    left_out: list[LeftOut] = []
    notes: list[str] = []
    texts = free_texts({n: seen.surveys[n] for n in rest}, seen.types, columns)
    for name in columns.features or rest:
        asked = name in columns.features
        judged = Judged(None, _no_feature(name, rivals, seen)) if not asked else None
        if judged is None or not judged.reason:
            judged = judge(seen.surveys[name], columns.categories, seen.marks, asked)
        notes += judged.notes
        if judged.feature is not None:
            features.append(judged.feature)
        elif asked:
            fix = "name other columns with --features"
            raise ManifestError(
                f"column {name} is no feature: {judged.reason}", where=f"{seen.where}, column {name}", fix=fix
            )
        elif name not in columns.keep:
            more = f"; --text {name} is for models that read it" if name in texts else ""
            left_out.append(LeftOut(f"column {name}", judged.reason + more))
    if columns.features:
        away = [n for n in rest if n not in columns.features and n not in columns.keep]
        left_out += [LeftOut(f"column {n}", "not named with --features") for n in away]
    if not features:
        reasons = "; ".join(f"{entry.what}: {entry.reason}" for entry in left_out[:5])
        fix = f"name it with --image, --text or --features; there are: {', '.join(seen.types)}"
        for name in texts[:1]:
            fix = f"pass --text {name} where a model is to read column {name}"
        what = "no payload: neither an image column nor numeric features"
        raise ManifestError(f"{what} ({reasons})" if reasons else what, where=seen.where, fix=fix)
    if columns.label is not None:
        notes += _called_label(features, start.label)
    weight = next((f.column for f in features if f.column.lower() == "weight"), None)
    if start.weight is None and weight is not None:
        notes.append(f"column {weight} is a feature; pass --weight {weight} where rows are weighted by it")
    return _with(start, tuple(features), left_out, rivals, notes)


def _with(start: Roles, features: tuple[Feature, ...], left_out: Sequence[LeftOut], rivals: Sequence[str],
          notes: Sequence[str] = ()) -> Roles:  # fmt: skip
    also = [
        f"column {name} could be the label too: pass --label {name} if it is, or --label {start.label} to say that "
        f"{start.label} is" for name in rivals
    ]  # fmt: skip
    return replace(start, features=features, left_out=tuple(left_out), notes=(*start.notes, *also, *notes))


def _says_splits(name: str, seen: Seen) -> bool:
    """Whether a column of that name says splits: some text is called like one, or what it holds was not looked at."""
    survey = seen.surveys.get(name)
    return survey is None or any(_LIKE_SPLITS.match(value) for value in survey.values)


def _called_label(features: Sequence[Feature], label: str) -> Iterator[str]:
    """A sentence for each feature whose name says that it is a label, beside one of another name."""
    for name in (f.column for f in features if f.column.strip().lower() in LABEL_NAMES):
        yield (
            f"column {name} is a feature, though it is called as labels are; its values are not those of {label}; "
            f"--drop-column {shell_word(name)} leaves it out"
        )


def _there(role: str, names: Iterable[str]) -> str | None:
    """The column that is called like a role, in small or capital letters."""
    return next((name for name in names if name.lower() == role), None)


def check_asked(names: Sequence[str], columns: Columns, label: str, where: str) -> None:
    """Refuse names that are not there, and the label in another role.  Raises ManifestError: there is one."""
    asked = {"--weight": (columns.weight,), "--group": (columns.group,), "--features": columns.features}
    asked |= {"--keep-column": columns.keep, "--id": (columns.id if columns.id != ROW_NUMBERS else None,)}
    for flag, found in asked.items():
        for name in (n for n in found if n is not None):
            pick(list(names), name, (), flag.strip("-"), where)
            if name == label:
                what, fix = f"{flag} {name} is the label column", f"name another column with {flag}, or with --label"
                raise ManifestError(what, where=f"{where}, column {name}", fix=fix)


def check_kept(special: Mapping[str, str | None], columns: Columns, where: str) -> None:
    """Refuse to keep a column under a name that a manifest has for something else."""
    for name in (*columns.keep, *((columns.group,) if columns.group else ())):
        taken = {"id": "id", "label": None, "split": "split", "weight": "weight", CLEAN: "clean"}
        if name in _NO_COLUMNS or (name in taken and special.get(taken[name] or "") != name):
            what = f"a manifest's column {name} holds something else, so that one of that name cannot be kept"
            raise ManifestError(what, where=f"{where}, column {name}", fix="rename it in the source")


def _label(names: list[str], columns: Columns, seen: Seen) -> tuple[str, list[str]]:
    """The label column, and others that could be it; of several usual names one of text comes first."""
    if columns.label is not None and (asked := pick(names, columns.label, (), "label", seen.where)) is not None:
        return asked, []
    usual = [name for u in LABEL_NAMES for name in names if name.lower() == u]
    sure = [name for name in usual if name.lower() in _SURE_LABELS]
    if sure:
        return sure[0], [n for n in usual if n != sure[0] and n.lower() != "y"]  # beside a label, y is a coordinate
    if not usual:
        fix = f"name it with --label; there are: {', '.join(names)}"
        if all(name in seen.surveys and seen.form(name) is None and seen.surveys[name].texts for name in names):
            fix += "; texts without labels, for a language model, take --task language"
        if any(re.fullmatch(r"[+-]?\d+(\.\d*)?", name.strip()) for name in names):
            fix += " (is the first line a row? then write the names of the columns before it)"
        raise ManifestError("no label column", where=seen.where, fix=fix)
    texts = [name for name in usual if name in seen.surveys and seen.form(name) is None and seen.surveys[name].texts]
    first = (texts or usual)[0]
    return first, [n for n in usual if n != first]


def _are_names(label: str, seen: Seen) -> bool:
    """Whether labels are names: text, in a file of text but for plain numbers (007, true and dates are names)."""
    survey, kind = seen.surveys.get(label), seen.types[label]
    if pa.types.is_boolean(kind) or pa.types.is_binary(kind):
        return True
    if not seen.as_text or survey is None:
        return is_text(kind)
    return survey.texts > 0 and survey.form() != (PLAIN, "")


def _image(names: list[str], columns: Columns, seen: Seen) -> str | None:
    """The column of images: asked for, or of a usual name with bytes or with what look like paths of images."""
    if columns.features or columns.text:
        return None
    if columns.image is not None:
        return pick(names, columns.image, (), "image", seen.where)
    for usual in IMAGE_NAMES:
        for name in names:
            if name.lower() == usual and (_is_image(seen.types[name]) or _are_paths(name, seen)):
                return name
    return None


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)


def _are_paths(name: str, seen: Seen) -> bool:
    """Whether text looks like paths of images; where no other column could be a feature, any text does."""
    if not is_text(seen.types[name]):
        return False
    survey = seen.surveys.get(name)
    if survey is None:
        return True
    guesses = [(mimetypes.guess_type(value)[0] or "").startswith("image/") for value in survey.values]
    others = [s for n, s in seen.surveys.items() if n != name and n.lower() not in (*LABEL_NAMES, *ID_NAMES, *KEPT)]
    return any(guesses) or not any(s.numbers or s.booleans or s.lists for s in others)


def _no_feature(name: str, rivals: Sequence[str], seen: Seen) -> str:
    """Why a column is no feature by its name; nothing where it may be one."""
    if _INDEX.fullmatch(name):
        return "pandas' index, or a column without a name"
    if name in rivals:
        return f"it could be the label; --label {name} takes it as that, --features as a feature"
    lowered = name.strip().lower()
    words = [w.lower() for w in _WORDS.findall(name)]
    if lowered in ID_NAMES or (words and words[-1] in _IDENTIFIERS):
        return f"an identifier; --id {name} takes it as that, --features as a feature"
    survey = seen.surveys[name]
    if lowered in _COUNTERS and survey.whole and not survey.odd_numbers:
        return "it numbers the rows; --features takes it as a feature"
    if lowered in _WEIGHTS:
        return f"a weight of rows; --weight {name} takes it as that, --features as a feature"
    return ""
