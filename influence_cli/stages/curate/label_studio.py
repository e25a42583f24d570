"""What people chose in Label Studio, from its export in JSON: a list of tasks as ``exports.label_studio`` makes them.

A task names its row in ``meta``.  The annotation that a task came with, the label that the row had, is no decision
until somebody submits it; a cancelled or empty annotation is none either.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from influence_cli.data.tables import KEY_TEXT
from influence_cli.errors import UsageError

DROP = "drop"  # a choice by which a row is taken out, where no class is called so
AGAIN = "export from Label Studio as JSON, of tasks that `curate --export-as label-studio` made"


class Task:
    """A task of an export: the row that it is about, and what was chosen."""

    def __init__(self, number: int, value: Any, where: str) -> None:
        """Raises UsageError: it is no task, names no row, or cannot be understood."""
        self.where = f"{where}, task {number}"
        if not isinstance(value, dict) or not isinstance(value.get("annotations"), list):
            raise UsageError(
                "no task with its annotations", where=self.where, fix=f"{AGAIN} (JSON-MIN leaves them out)"
            )
        meta = value.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        name, key, self.was = (meta.get(part) for part in ("id", "row_key", "label_was"))
        if not isinstance(name, str) or not isinstance(key, str) or not KEY_TEXT.fullmatch(key):
            raise UsageError("its meta names no row by id and row_key", where=self.where, fix=AGAIN)
        self.id, self.row_key = name, key
        self.where += f", row id={self.id}"
        self.left_out: Counter[str] = Counter()
        found = {choice for one in value["annotations"] if (choice := self._choice(one)) is not None}
        if len(found) > 1:
            what = f"people chose differently: {', '.join(sorted(found))}"
            raise UsageError(what, where=self.where, fix="settle it in Label Studio, and export again")
        self.choice: str | None = found.pop() if found else None

    def _choice(self, annotation: Any) -> str | None:
        """What one annotation chose; None where it is no decision."""
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise UsageError("an annotation without a list of results", where=self.where, fix=AGAIN)
        if annotation.get("was_cancelled"):
            self.left_out["cancelled"] += 1
            return None
        results = [r for r in annotation["result"] if isinstance(r, dict) and r.get("type") == "choices"]
        chosen = [choice for r in results for choice in (r.get("value") or {}).get("choices", [])]
        if not chosen:
            self.left_out["empty"] += 1
            return None
        if len(set(chosen)) > 1:
            what = f"one annotation chose several labels: {', '.join(map(str, chosen))}"
            raise UsageError(what, where=self.where, fix="choose one, and export again")
        ours = all(str(r.get("id", "")).startswith("was-") for r in results)
        if ours and chosen[0] == self.was and not annotation.get("lead_time"):
            return None  # as the task came, and nobody spent time on it
        return str(chosen[0])


def read_tasks(value: list[Any], where: str) -> tuple[list[Task], list[str]]:
    """The tasks of an export, and what was left out of it in words.

    Raises:
        UsageError: a task cannot be understood, or two choices contradict each other.
    """
    tasks = [Task(number, one, where) for number, one in enumerate(value, 1)]
    left_out = sum((task.left_out for task in tasks), Counter[str]())
    notes = [f"{count:,} {what} annotations are no decisions" for what, count in left_out.items()]
    return tasks, notes
