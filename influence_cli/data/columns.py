"""Every column of every table that a command writes, and what it holds.

``<objective>``, ``<method>``, ``<rule>``, ``<column>`` and ``<k>`` stand for the names and numbers of a run.  The help
of the commands and the guide say what stands here.
"""

from __future__ import annotations

import re

Columns = dict[str, str]

_ID: Columns = {"id": "the row's id in the manifest"}
_KEY: Columns = {"row_key": "name of the row's payload and label: it changes when one of them does"}
_LABEL: Columns = {"label": "the row's class, number (regression), or labels with ; between (multi-label)"}
_ROW: Columns = {**_ID, **_KEY, **_LABEL}

GRADS: Columns = {
    **_ID,
    **_KEY,
    "payload_key": "name of the row's payload alone: what is stored is found by it",
    **_LABEL,
    "loss": "the row's loss at the checkpoint, where a model was run",
}
SCORE: Columns = {
    **_ROW,
    "score": "what rows are ranked by: the first method's first objective, or what --combine makes; positive: it helps",
    "effect": "score / n, of methods that estimate it: by how much Phi rises when the row is taken out",
    "score_<objective>": "the score under an objective, of the only method",
    "score_<method>": "the score of a method that knows no objective",
    "score_<method>_<objective>": "the score under an objective, where there are several methods",
    "score_<rule>": "--combine: one score of several objectives; it is also score",
    "score_<column>_<k>": "--per-member: the score at one member, from 0",
    "score_std": "standard deviation of score over the members",
    "agreement": "share of members with the sign that most have",
    "best_label": "the label with which the row would score highest; it may be its own",
    "best_label_gain": "by how much the row would score higher with best_label; 0 where that is its own",
    "loss": "the row's loss at the checkpoint",
    "margin": "logit of the row's label less the highest other one: negative where the model says another",
    "prediction": "task regression or ordinal: the number that the model predicts",
    "doubted_label": "task multi-label: number of the label whose signed logit is least: what the model doubts most",
    "doubted_probability": "the model's probability of what the row says of doubted_label",
    "model_label": "the label that the model gives the row: its most probable class",
    "model_probability": "the model's probability of model_label",
    "other_label": "the most probable class but the row's own: what relabelling by the model proposes",
    "other_probability": "the model's probability of other_label; of both where score is out of fold, that model's",
    "knn_label": "--method knn: the label that weighs most among the row's neighbours",
    "knn_nearest": "--method knn: ids of the three nearest neighbours, nearest first",
    "outlier_nearest": "--method outlier: the same",
    "canary": "the wrong label that the checkpoint was trained on (retrain --canaries); null in other rows",
}
PER_TARGET: Columns = {
    "target_id": "id of the target row",
    "target_row_key": "name of the target row's payload and label",
    "target_label": "number of the target row's class",
    "rank": "1 for the most helpful, or most harmful, train row of this target row",
    "side": "helpful or harmful",
    **_ROW,
    "score": "how far the train row helps this target row alone; positive: it helps",
    "standard_error": "--rows sketch: at most the standard error of score",
}
TOKENS: Columns = {
    **_ID,
    **_KEY,
    "side": "helpful, harmful or, of a row that was asked for by its id and has score 0, neither",
    "rank": "1 for the most helpful, or most harmful, row",
    "row_score": "the score of the whole row",
    "position": "number of the token in its row, from 0",
    "token": "the characters that the token stands for, the whole character of a part of one, or its name where none",
    "start": "the first of these characters in the row's text, from 0",
    "end": "the one after the last of them: start where there is none",
    "loss": "the token's loss in nats, given the tokens before it; null at the first, which has none",
    "score": "the token's part of row_score: the parts of a row sum to it; null where the token has none",
    "score_<objective>": "the same under an objective, of the only method",
    "score_<method>_<objective>": "the same, where there are several methods",
    "decomposition": "loss: the part of the token's own loss; position: what enters the gradient where it stands",
}
EDITS: Columns = {
    **_ID,
    **_KEY,
    "action": "trim, relabel or reweight",
    "label_was": "number of the row's class before the edit",
    "label": "number of the row's class after it",
    "weight_was": "weight before the edit",
    "weight": "weight after it; 0 for a row that is taken out",
    "score": "what the row was edited for",
    "reason": "why, in words, with the names of classes",
}
BINS: Columns = {
    **_ROW,
    "score": "what the row was put into its bin by",
    "low": "lower end of the 95% interval: of the score (members), or of the probability that the label is wrong",
    "high": "its upper end",
    "bin": "act (it is edited), review, abstain or keep",
    "reason": "why, in words",
    "review_value": "what a review is expected to gain over leaving the row alone; null for a row to act on",
    "review": "--review-budget: the row's place among those whose review is worth most, from 1; null for the others",
}
FLAGGED: Columns = {
    **_ROW,
    "score": "the row's score; null where it has none",
    "p_value": "--false-flag, --fdr: share of calibration rows (and the row) that score as low",
    "effect": "--threshold: by how much Phi rises when the row is taken out",
    "proposed_label": "best_label, or else the model's label where it is the more probable; null where it is the own",
    "proposed_probability": "the model's probability of proposed_label, where it is the model's",
    "file": "what the row stands in: what the manifest was made from, or its image; null where nothing says",
    "line": "the line of the file that the row begins in, from 1: a CSV's or JSON's that has not changed since",
    "image": "the path of the row's image, where it is a file",
    "reason": "why a row cannot be judged; null for one that is flagged for its score",
}
BASELINE: Columns = {
    **_ID,
    **_KEY,
    "line": "the number of the line, from 1 on: one that is missing is named",
    "checksum": "digest of the line's other values: a line that was damaged is refused",
    "lines": "in the last line: how many rows there are",
    "digest": "in the last line: a digest of all ids and row keys",
}
ADDED: Columns = {
    "weight": "the row's weight, after a reweight",
    "influence_proposal": "after a relabel: the label that the row would be given, relabelled or not",
    "influence_quoted": "CSV: the columns of the row that got a quote, so that no spreadsheet runs them",
}

TABLES: dict[str, Columns] = {  # by what writes them
    "`grads -o`": GRADS,
    "`score -o`": SCORE,
    "`score --per-target -o`": PER_TARGET,
    "`score --tokens -o`": TOKENS,
    "`curate --edits`": EDITS,
    "`curate --bins`": BINS,
    "`curate --check`": FLAGGED,
    "`curate --write-baseline`": BASELINE,
    "`curate -o` and `--export`, beside the manifest's own": ADDED,
}
OF_COMMAND: dict[str, dict[str, Columns]] = {  # what the help of a command tells
    "grads": {"Columns of the table": GRADS},
    "score": {"Columns of the table": SCORE, "Columns of --per-target": PER_TARGET, "Columns of --tokens": TOKENS},
    "curate": {"Columns of --edits": EDITS, "Columns of --bins": BINS, "Columns of --check": FLAGGED},
}


def pattern_of(columns: Columns) -> re.Pattern[str]:
    """What the names of columns look like, with a name or a number for every placeholder.

    >>> pattern = pattern_of({"loss": "", "score_<objective>": ""})
    >>> [bool(pattern.fullmatch(name)) for name in ("loss", "score_utility", "score_", "losses")]
    [True, True, False, False]
    """
    return re.compile("|".join(re.sub(r"<\w+>", ".+", re.escape(name)) for name in columns))
