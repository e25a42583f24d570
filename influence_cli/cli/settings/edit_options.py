"""The settings of edits: what is done to rows, by which scores, under which budget and constraints."""

from __future__ import annotations

from influence_cli.cli.settings.setting import CURATE, EVALUATE, RETRAIN, SCORE, Setting
from influence_cli.cli.settings.setting import setting as _s

EDIT_SETTINGS: tuple[Setting, ...] = (
    _s("action", str, "trim", "trim, relabel or reweight (retrain: several, with commas).", (CURATE, RETRAIN)),
    _s(
        "budget",
        str,
        None,
        "Most rows to touch: 5% or 200 (retrain: 1%,2%) [default: 5%].",
        (CURATE, EVALUATE, RETRAIN),
    ),
    _s(
        "by",
        list,
        ["score"],
        "Score column to act on; several: curate combines them, retrain compares them.",
        (CURATE, RETRAIN),
        metavar="COLUMN",
    ),
    _s(
        "combine",
        str,
        None,
        "Several into one: ranksum (default where there are several), zsum, minrank, lexi or linear.",
        (SCORE, CURATE, RETRAIN),
        metavar="RULE",
    ),
    _s("maximise", str, None, "Trim the rows that gain most of this objective ...", (CURATE,), metavar="OBJECTIVE"),
    _s("subject_to", list, [], "... and lose nothing of this one.", (CURATE,), metavar="'OBJECTIVE>=0'"),
    _s(
        "edits",
        str,
        None,
        "Write the decisions alone to this table.",
        (CURATE,),
        path=True,
        metavar="PATH",
    ),
    _s(
        "undo",
        bool,
        False,
        "Take edits back: SCORES is a table of edits, --manifest the curated manifest.",
        (CURATE,),
        stored=False,
    ),
    _s(
        "scores",
        str,
        None,
        "Score table: an arm for every column (--by), --action and --budget.",
        (RETRAIN,),
        path=True,
        metavar="TABLE",
    ),
    _s("rounds", int, 1, "Trim in so many rounds, scoring by --method in between.", (RETRAIN,), least=1),
    _s("attack", str, None, "Attack test rows: linear, pgd, fgsm, none [default: linear models].", (RETRAIN,)),
)
