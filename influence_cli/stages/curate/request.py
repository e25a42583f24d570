"""What ``curate`` is asked to do: with which scores, under which budget, when the gate trips, and where edits go."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from influence_cli.options import CURATE, EVALUATE, PATH, RETRAIN, SCORE, option
from influence_cli.settings import Options

AUTO = "auto"  # --by: the column that finds canaries best


@dataclass(frozen=True)
class CurateRequest:
    """What to do with a score table."""

    scores: Any  # a path, "-", or a table in memory
    action: str = option("trim", "trim, relabel or reweight (retrain: several, with commas).", (CURATE, RETRAIN))
    budget: str | None = option(
        None,
        "Most rows to touch: 5%, 200, or auto (curate): the estimated wrong labels; retrain: 1%,2% [default: 5%].",
        (CURATE, EVALUATE, RETRAIN),
    )
    manifest: Any = None  # default: where the provenance says
    label: str | None = None
    by: tuple[str, ...] = option(
        ("score",),
        "Score column to act on; several: curate combines them, retrain compares them; auto: canaries choose (curate).",
        (CURATE, RETRAIN),
        metavar="COLUMN",
    )
    combine: str | None = option(
        None,
        "Several into one: ranksum (default where there are several), zsum, minrank, lexi or linear.",
        (SCORE, CURATE, RETRAIN),
        metavar="RULE",
    )
    maximise: str | None = option(  # in place of ``by``
        None, "Trim the rows that gain most of this objective ...", (CURATE,), metavar="OBJECTIVE"
    )
    subject_to: tuple[str, ...] = option((), "... and lose nothing of this one.", (CURATE,), metavar="'OBJECTIVE>=0'")
    decisions: str | None = option(
        None, "Apply what was decided of rows: a file that the page of --report saved, or a Label Studio export.",
        (CURATE,), **PATH, stored=False, after="edits",
    )  # fmt: skip
    target_recall: str | None = option(
        None,
        "Cut where so large a share of the wrong labels is found, as canaries say (retrain --canaries).",
        (CURATE,),
        metavar="90%",
        after="budget",
    )
    max_false: str | None = option(
        None, "Cut where at most this share of the rows cut is fine, as canaries say.", (CURATE,), metavar="10%"
    )
    bins: str | None = option(
        None,
        "Edit only rows that are sure to be harmful; write every row's bin here: act, review, abstain or keep.",
        (CURATE,),
        **PATH,
        after="subject_to",
    )
    review_budget: str | None = option(
        None, "--bins: mark so many rows whose review is worth most.", (CURATE,), metavar="200"
    )
    options: Options = field(default_factory=dict)
    skip_bad: bool = False
    known: Any = None  # keys of payloads that a store remembers: ``StoredFileKeys``
    cut: Any = None  # a ``CanaryCut``: what canaries say of the column, once they are asked

    @property
    def asks_canaries(self) -> bool:
        """Whether what is asked for needs canaries, whatever the table holds."""
        return self.target_recall is not None or self.max_false is not None or self.by == (AUTO,)


@dataclass(frozen=True)
class GateRequest:
    """When the gate trips."""

    max_flagged: str | None = option(  # None: 0, or no limit where slices have limits
        None, "Flagged new rows that are still accepted: 3% or 10 [default: 0].", (CURATE,)
    )
    max_flagged_per: tuple[str, ...] = option(
        (), "The same for every value of a manifest column, such as source=2%.", (CURATE,), metavar="COLUMN=LIMIT"
    )
    false_flag: str = option("1%", "Probability that a clean new row is flagged.", (CURATE,))
    fdr: str | None = option(
        None,
        "In its place: the share of flagged rows that may be clean (Benjamini-Hochberg).",
        (CURATE,),
        metavar="10%",
    )
    threshold: float | None = option(
        None, "Flag new rows whose effect is below minus this, in the objective's unit.", (CURATE,)
    )
    baseline: str | None = option(None, "Accepted rows, by row key (JSONL).", (CURATE,), **PATH)
    against: Any = option(
        None,
        "Rows of this manifest are accepted as they are: only others are judged.",
        (CURATE,),
        "--against",
        name="accepted_manifest",
        path=True,
        metavar="MANIFEST",
        stored=False,
    )


@dataclass(frozen=True)
class ExportRequest:
    """Where the edited rows go, and in which form."""

    path: str = option(
        MISSING, "Write the rows back in the form that they came in.", (CURATE,), name="export", **PATH, stored=False
    )
    form: str | None = option(
        None,
        "folder, csv, jsonl, json, huggingface, npz, label-studio, fiftyone or spotlight [default: as they came].",
        (CURATE,),
        name="export_as",
        metavar="FORM",
    )
    link: str = option("symbolic", "Images of an exported folder: symbolic, hard or copy.", (CURATE,))
    url_prefix: str | None = option(None, "label-studio: what goes before image paths.", (CURATE,), metavar="URL")
