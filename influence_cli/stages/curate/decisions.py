"""(3) what people decided of rows -> edits of exactly those rows: from the review page, or from Label Studio.

A row is named by its id and its row key.  "keep" changes nothing, "drop" takes the row out, "relabel" gives it the
label that was chosen; a row without a decision stays as it is.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_cli.actions.protocol import Edits
from influence_cli.data.classes import class_called, class_name
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.tables import KEY_TEXT
from influence_cli.errors import UsageError, nearest
from influence_cli.report.review.rows import DROP, KEEP, RELABEL
from influence_cli.stages.curate.label_studio import DROP as DROP_CHOICE
from influence_cli.stages.curate.label_studio import read_tasks
from influence_cli.stages.curate.score_table import ScoreTable

EACH = (KEEP, DROP, RELABEL)
DECIDED = "decided"  # what such edits are called; each row has an action of its own
ACTIONS = {DROP: "trim", RELABEL: "relabel"}
SAVE = "give the file that the review page saves, or a Label Studio export in JSON"


@dataclass(frozen=True)
class Decision:
    """What was decided of one row: ``label`` is the class of a relabel."""

    id: str
    row_key: str
    decision: str
    label: int | None
    where: str


def decided_edits(path: str, scores: ScoreTable) -> Edits:
    """The edits that a file of decisions says.

    Raises:
        UsageError: the file cannot be read, names a row that is not there or has changed, or contradicts itself.
    """
    decisions, notes = _read(path, scores)
    place = {name: i for i, name in enumerate(scores.train.ids)}
    labels, weights = scores.scored.labels.copy(), scores.scored.weights.copy()
    n, counts, idle = len(scores.train), Counter[str](), 0
    reason, actions, seen = [""] * n, [""] * n, dict[str, Decision]()
    for found in decisions:
        before = seen.setdefault(found.id, found)
        if (before.decision, before.label) != (found.decision, found.label):
            what = f"two decisions of one row: {before.decision} and {found.decision}"
            raise UsageError(what, where=found.where, fix="leave one of them in the file")
        if before is not found:
            continue
        i = _place(found, place, scores)
        counts[found.decision] += 1
        if found.decision == DROP and weights[i] == 0:
            idle += 1
        elif found.decision == DROP:
            weights[i], reason[i] = 0.0, "decided: drop"
        elif found.decision == RELABEL and found.label != labels[i]:
            labels[i], reason[i] = found.label, f"decided: {class_called(scores.manifest.classes, found.label or 0)}"
        actions[i] = ACTIONS.get(found.decision, "") if reason[i] else ""
    said = ", ".join(f"{counts[name]:,} {name}" for name in EACH if counts[name]) or "no decision"
    notes.insert(0, f"decisions: {said}; the other {n - len(seen):,} train rows are left alone")
    if idle:
        notes.append(f"{idle:,} rows to be dropped have weight 0 already, and stay")
    return Edits(DECIDED, labels, weights, reason, notes, actions=actions)


def _place(found: Decision, place: dict[str, int], scores: ScoreTable) -> int:
    """The train row that a decision is about.  Raises UsageError: it is not there, or was changed since."""
    i = place.get(found.id)
    if i is None:
        fix = "give the scores of the rows that were decided on"
        raise UsageError(f"row id={found.id} is no train row of {scores.manifest.source}", where=found.where, fix=fix)
    if scores.train.row_keys[i].tobytes().hex() != found.row_key.lower():
        what = f"row id={found.id} has changed since it was decided on: its content or its label is another"
        raise UsageError(what, where=found.where, fix="score again, make the page again with --report, and decide anew")
    return i


def _read(path: str, scores: ScoreTable) -> tuple[list[Decision], list[str]]:
    """The decisions of a file, of either form, and what is to be said of it."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the decisions ({error.strerror})", where=path, fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the decisions are no JSON ({error})", where=path, fix=SAVE) from error
    if isinstance(value, list):
        return _of_tasks(value, path, scores)
    if not isinstance(value, dict) or not isinstance(value.get("decisions"), list):
        raise UsageError("no list of decisions", where=path, fix=SAVE)
    decisions = [_decision(k, entry, path, scores) for k, entry in enumerate(value["decisions"], 1)]
    _check_whole(value, decisions, path)
    return decisions, _made_of_another(value, scores)


def _check_whole(value: dict[str, Any], decisions: list[Decision], path: str) -> None:
    """Refuse (UsageError) a file that lacks decisions which the page saved, or has others."""
    rows, undecided = value.get("rows"), value.get("undecided")
    fix = "save them from the page again; if you have edited the file, take {} out of it"
    if type(rows) is int and type(undecided) is int and rows - undecided != len(decisions):
        what = f"{rows - undecided:,} decisions were saved, and {len(decisions):,} are in the file"
        raise UsageError(what, where=path, fix=fix.format("rows, undecided and checksum"))
    if "checksum" in value and value["checksum"] != _checksum(decisions):
        what = "the decisions are not those that were saved: the checksum differs"
        raise UsageError(what, where=path, fix=fix.format("checksum"))


def _checksum(decisions: list[Decision]) -> str:
    """CRC-32 of decisions, as the page has it: a browser has no better one for a page of a file."""
    lines = ["\0".join((d.id, d.row_key, d.decision, "" if d.label is None else str(d.label))) for d in decisions]
    return f"{zlib.crc32(chr(10).join(lines).encode(errors='replace')):08x}"


def _made_of_another(value: dict[str, Any], scores: ScoreTable) -> list[str]:
    """What to know where the page was made of another manifest: each row is known by its id and row key."""
    manifest, own = value.get("manifest"), scores.manifest.fingerprint
    if not isinstance(manifest, str) or manifest in ("", own):
        return []
    return [
        f"decided on a page of another manifest ({manifest[:12]}, and this one is {own[:12]}): the rows that were "
        "decided on are here by their ids, with the same content and labels"
    ]


def _decision(number: int, entry: Any, path: str, scores: ScoreTable) -> Decision:
    """One decision of the review page, checked."""
    where = f"{path}, decision {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise UsageError("a decision without the id of its row", where=where, fix=SAVE)
    where += f", row id={entry['id']}"
    if not KEY_TEXT.fullmatch(str(entry.get("row_key"))):
        raise UsageError("a decision without the row key of its row", where=where, fix=SAVE)
    decision, label = entry.get("decision"), entry.get("label")
    if decision not in EACH:
        raise UsageError(f"unknown decision {decision!r}", where=where, fix=nearest(str(decision), list(EACH)))
    if decision != RELABEL:
        return Decision(entry["id"], entry["row_key"], decision, None, where)
    names = _class_names(scores, where)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(names):
        raise UsageError(f"label {label!r} is no class", where=where, fix=f"give a number from 0 to {len(names) - 1}")
    named = entry.get("label_name", names[label])
    if named != names[label]:
        what = f"label {label} is called {named!r} there, and {names[label]!r} in {scores.manifest.source}"
        raise UsageError(what, where=where, fix="make the page again with --report, and decide anew")
    return Decision(entry["id"], entry["row_key"], RELABEL, label, where)


def _class_names(scores: ScoreTable, where: str) -> list[str]:
    """What the classes are called.  Raises UsageError: labels are no classes, so that none can be given."""
    manifest = scores.manifest
    if manifest.label_kind.holds != CLASSES:
        what = f"relabel gives rows another class, and the labels are {manifest.label_kind.called}"
        raise UsageError(what, where=where, fix="keep or drop such rows")
    count = len(manifest.classes) if manifest.classes else int(scores.train.labels.max()) + 1
    return [class_name(manifest.classes, c) for c in range(count)]


def _of_tasks(value: list[Any], path: str, scores: ScoreTable) -> tuple[list[Decision], list[str]]:
    """The decisions of a Label Studio export: the row's own label keeps it, another one relabels it."""
    tasks, notes = read_tasks(value, path)
    made: list[Decision] = []
    for task in tasks:
        if task.choice is None:
            continue
        names = _class_names(scores, task.where)
        if task.choice in names:
            label = names.index(task.choice)
            decision = KEEP if task.choice == task.was else RELABEL
            made.append(Decision(task.id, task.row_key, decision, label if decision == RELABEL else None, task.where))
        elif task.choice == DROP_CHOICE:
            made.append(Decision(task.id, task.row_key, DROP, None, task.where))
        else:
            raise UsageError(f"{task.choice!r} is no class", where=task.where, fix=nearest(task.choice, [*names, DROP]))
    return made, notes
