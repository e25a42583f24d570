"""Every setting once: flag, type, default, help, and where it applies.  Flags, environment and TOML come from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MANIFEST, METHODS, CACHE = "manifest", "methods", "cache"
GRADS, SCORE, CURATE, RETRAIN, EVALUATE = "grads", "score", "curate", "retrain", "evaluate"
RUNS = (GRADS, SCORE)
TRAINS = (RETRAIN, EVALUATE)
MODEL = (*RUNS, *TRAINS)
RUNS_AND_EVALUATE = (*RUNS, EVALUATE)
STAGES = (GRADS, SCORE, CURATE, RETRAIN, EVALUATE)
WRITING = (MANIFEST, *STAGES)
EVERY = (*WRITING, METHODS, CACHE)


@dataclass(frozen=True)
class Setting:
    """One setting; ``kind`` is str, int, float, bool or list (of strings, repeatable)."""

    name: str
    kind: type
    default: Any
    help: str
    commands: tuple[str, ...]
    flags: tuple[str, ...] = ()
    path: bool = False  # relative paths in a TOML file count from that file
    metavar: str | None = None
    stored: bool = True  # False: a flag only, never read from TOML or the environment
    least: float | None = None  # the smallest value that makes sense


def _s(name: str, kind: type, default: Any, help: str, commands: tuple[str, ...], *flags: str, **more: Any) -> Setting:
    return Setting(name, kind, default, help, commands, flags or (f"--{name.replace('_', '-')}",), **more)


SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        _s(
            "manifest",
            str,
            None,
            "Manifest with the payload.",
            (SCORE, CURATE, EVALUATE),
            path=True,
            metavar="PATH",
        ),
        _s(
            "target",
            str,
            None,
            "Rows the objective is measured on [default: rows with split val].",
            (*RUNS, EVALUATE),
            path=True,
            metavar="PATH",
        ),
        _s(
            "fit_rows",
            str,
            None,
            "Pin the rows that curvature is fitted on: train rows of this manifest [default: the manifest's own].",
            RUNS,
            path=True,
            metavar="PATH",
        ),
        _s(
            "checkpoint",
            str,
            None,
            "Run folder of retrain, .safetensors, or .pt.",
            RUNS_AND_EVALUATE,
            path=True,
            metavar="PATH",
        ),
        _s("model", str, None, "timm name, linear, mlp:128,128 or python:PKG.MOD:FACTORY.", MODEL),
        _s("method", list, ["ip"], "Scoring method; see influence methods.", RUNS),
        _s("objective", list, ["utility"], "What the scores are about.", RUNS),
        _s(
            "set",
            list,
            [],
            "Option of a method, objective or action.",
            (GRADS, SCORE, CURATE),
            metavar="NAME.KEY=VALUE",
        ),
        _s("params", str, "all", "Parameters to take gradients in: all, linear, last or a glob.", RUNS),
        _s("loss", str, "cross-entropy", "Row loss.", RUNS),
        _s("precision", str, "fp32", "fp32 or fp64.", RUNS),
        _s("label", str, "label", "Label column.", WRITING, metavar="COLUMN"),
        _s("id", str, None, "Id column [default: row numbers].", (MANIFEST,), metavar="COLUMN", stored=False),
        _s("image", str, None, "Column with images: bytes or paths.", (MANIFEST,), metavar="COLUMN", stored=False),
        _s("features", list, [], "Feature column [default: all numbers].", (MANIFEST,), metavar="COLUMN", stored=False),
        _s("split", str, "80/10/10", "Shares where there are no splits.", (MANIFEST,), metavar="A/B/C", stored=False),
        _s("embed", bool, False, "Copy images into the manifest, not their paths.", (MANIFEST,), stored=False),
        _s("skip_bad", bool, False, "List rows that cannot be used and go on.", (*WRITING, CACHE), stored=False),
        _s("input_size", int, None, "Height and width of the model's input.", MODEL, least=1),
        _s("mean", str, None, "Mean of the pixels, in [0, 1].", (GRADS, SCORE, RETRAIN), metavar="X[,X,X]"),
        _s("std", str, None, "Standard deviation of the pixels.", (GRADS, SCORE, RETRAIN), metavar="X[,X,X]"),
        _s("interpolation", str, None, "nearest, bilinear, bicubic or lanczos.", (GRADS, SCORE, RETRAIN)),
        _s(
            "crop",
            float,
            None,
            "Cut the middle of images of size/X (timm's crop_pct).",
            (GRADS, SCORE, RETRAIN),
        ),
        _s("num_classes", int, None, "Number of classes.", MODEL, least=2),
        _s("allow_overlap", bool, False, "Accept that over 1 % of the target rows are train rows.", RUNS),
        _s("seed", int, 0, "Seed of every random draw.", WRITING, least=0),
        _s("per_member", bool, False, "Also each member's scores.", (SCORE,)),
        _s(
            "store",
            str,
            ".influence",
            "Where results are remembered.",
            (*RUNS_AND_EVALUATE, CACHE),
            path=True,
            metavar="PATH",
        ),
        _s("keep", list, [], "gc: drop rows of no such manifest.", (CACHE,), metavar="MANIFEST", stored=False),
        _s("no_store", bool, False, "Use a temporary store and throw it away.", RUNS_AND_EVALUATE),
        _s("device", str, "auto", "auto, cpu, cuda, cuda:1, mps (speed only).", MODEL),
        _s("engine", str, "auto", "auto, forward, layerwise or double-reverse (speed only).", RUNS),
        _s(
            "batch_size",
            int,
            None,
            "Rows a batch (scoring: speed only; training: part of the recipe).",
            MODEL,
            least=1,
        ),
        _s("workers", int, 2, "Threads that decode (speed only).", RUNS_AND_EVALUATE, least=1),
        _s("action", str, "trim", "trim, relabel or reweight.", (CURATE,)),
        _s("budget", str, None, "Most rows to touch: 5% or 200 [default: 5%].", (CURATE, EVALUATE)),
        _s("by", str, "score", "Score column to act on.", (CURATE,), metavar="COLUMN"),
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
            "export",
            str,
            None,
            "Write the rows back in the form that they came in.",
            (CURATE,),
            path=True,
            metavar="PATH",
            stored=False,
        ),
        _s(
            "export_as",
            str,
            None,
            "folder, csv, jsonl, huggingface, label-studio or npz [default: as they came].",
            (CURATE,),
            metavar="FORM",
        ),
        _s("link", str, "symbolic", "Images of an exported folder: symbolic, hard or copy.", (CURATE,)),
        _s("url_prefix", str, None, "label-studio: what goes before image paths.", (CURATE,), metavar="URL"),
        _s("check", bool, False, "Be a gate: decide, write nothing, exit 0 or 1.", (CURATE,), stored=False),
        _s("max_flagged", str, "0", "Flagged new rows that are still accepted: 3% or 10.", (CURATE,)),
        _s("false_flag", str, "1%", "Probability that a clean new row is flagged.", (CURATE,)),
        _s(
            "threshold",
            float,
            None,
            "Flag new rows whose effect is below minus this, in the objective's unit.",
            (CURATE,),
        ),
        _s("baseline", str, None, "Accepted rows, by row key (JSONL).", (CURATE,), path=True, metavar="PATH"),
        _s(
            "write_baseline",
            str,
            None,
            "Accept the rows as they are: write their keys.",
            (CURATE,),
            path=True,
            metavar="PATH",
        ),
        _s(
            "against",
            str,
            None,
            "Manifest before curation; adds arms: no edit and random controls.",
            (RETRAIN,),
            path=True,
            metavar="PATH",
        ),
        _s("arm", list, [], "One more curated manifest to compare.", (RETRAIN,), metavar="NAME=PATH"),
        _s(
            "test",
            str,
            None,
            "Rows to test on [default: rows with split test].",
            TRAINS,
            path=True,
            metavar="PATH",
        ),
        _s("init", str, None, "Checkpoint to start from.", TRAINS, path=True, metavar="PATH"),
        _s("pretrained", bool, False, "Start from timm's pretrained weights (downloads).", TRAINS),
        _s("epochs", int, 20, "Passes over the train rows.", TRAINS, least=1),
        _s("lr", float, None, "Peak learning rate [default: sgd 0.05, adamw 0.001].", TRAINS),
        _s("optimizer", str, "sgd", "sgd (momentum 0.9), adamw, or lbfgs: linear to its optimum.", TRAINS),
        _s("momentum", float, 0.9, "Momentum of sgd.", TRAINS, least=0),
        _s("weight_decay", float, 5e-4, "Weight decay.", TRAINS, least=0),
        _s("schedule", str, "cosine", "cosine, constant or step.", TRAINS),
        _s("augment", str, "none", "none, shift or flip-shift.", TRAINS),
        _s("seeds", int, 1, "Number of seeds for every arm.", TRAINS, least=1),
        _s("keep_checkpoints", int, 0, "Checkpoints to keep of the first arm and seed.", (RETRAIN,), least=0),
        _s(
            "calibration",
            str,
            None,
            "Share of train rows left out of training, for the gate.",
            (RETRAIN,),
            metavar="5%",
        ),
        _s("canaries", str, None, "Share of train rows trained on with a wrong label.", (RETRAIN,), metavar="5%"),
        _s("canaries_from", str, None, "Draw them as this model errs.", (RETRAIN,), path=True, metavar="CHECKPOINT"),
        _s("canary_noise", str, None, "confusion (with --canaries-from) or uniform.", (RETRAIN,)),
        _s(
            "require_improvement",
            bool,
            False,
            "Exit 1 unless curated beats no edit and every control.",
            (RETRAIN,),
            stored=False,
        ),
        _s("lds", int, None, "Retrain on this many random subsets: LDS.", (EVALUATE,), least=3, stored=False),
        _s("subset_share", str, "50%", "Share of the train rows in a subset.", (EVALUATE,), metavar="50%"),
        _s("removal", str, None, "Retrain without the lowest rows.", (EVALUATE,), metavar="5%,10%", stored=False),
        _s("loo", int, None, "Retrain without each of this many rows.", (EVALUATE,), least=4, stored=False),
        _s("brittleness", int, None, "Target rows to flip by retraining.", (EVALUATE,), least=1, stored=False),
        _s(
            "convention",
            str,
            None,
            "Divisor of --loo: loo (kept; lbfgs only) or renorm-loo (of the rows left) [default: loo where it can be].",
            (EVALUATE,),
        ),
        _s("max_minutes", float, None, "Start no training after this; run again to go on.", (EVALUATE,), least=0),
        _s("clean_label", str, "clean_label", "Column with the true labels.", (EVALUATE,), metavar="COLUMN"),
        _s("known_bad", str, None, "Ids that are known to be wrong.", (EVALUATE,), path=True, metavar="FILE"),
        _s("reference", str, None, "Compare columns with this one [default: the best].", (EVALUATE,), metavar="COLUMN"),
        _s("draws", int, 1000, "Bootstrap draws.", (EVALUATE,), least=20),
        _s("other_scores", str, None, "Compare with this table alone.", (EVALUATE,), "--against", stored=False),
        _s("stability", bool, False, "How far the tables, of several seeds, agree.", (EVALUATE,), stored=False),
        _s(
            "sentinel",
            str,
            None,
            "Score this share at --checkpoint: is a recompute needed?",
            (EVALUATE,),
            stored=False,
            metavar="1%",
        ),
        _s("report", str, None, "Write a self-contained HTML page.", (EVALUATE,), stored=False, metavar="FILE"),
        _s("plot", str, None, "Write the figures as one PNG.", (EVALUATE,), stored=False, metavar="FILE"),
        _s(
            "output",
            str,
            None,
            "Write the result here (- for standard output).",
            WRITING,
            "-o",
            "--output",
            path=True,
            stored=False,
            metavar="PATH",
        ),
        _s("format", str, "auto", "auto, table, json, jsonl, csv or github.", EVERY, stored=False),
        _s("json", bool, False, "Short for --format json.", EVERY, stored=False),
        _s(
            "dry_run",
            bool,
            False,
            "Say what would be done, and do nothing.",
            (*STAGES,),
            "-n",
            "--dry-run",
            stored=False,
        ),
        _s(
            "config",
            str,
            None,
            "Settings file in place of the nearest influence.toml.",
            WRITING,
            stored=False,
            metavar="PATH",
        ),
        _s("isolated", bool, False, "Read no settings file.", WRITING, stored=False),
        _s("show_settings", bool, False, "Print every setting and where it comes from.", WRITING, stored=False),
        _s("quiet", bool, False, "Say nothing but errors.", EVERY, "-q", "--quiet", stored=False),
        _s("verbose", bool, False, "Say more.", EVERY, "-v", "--verbose", stored=False),
        _s("debug", bool, False, "Show tracebacks.", EVERY, stored=False),
        _s("color", str, "auto", "auto, always or never.", EVERY, stored=False),
    )
}


def settings_of(command: str) -> list[Setting]:
    """The settings of a command, in order."""
    return [s for s in SETTINGS.values() if command in s.commands]
