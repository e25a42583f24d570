"""The order of a command's options in its help: those that are used most, then the others by purpose."""

from __future__ import annotations

from influence_cli.cli.settings.requests import options_of
from influence_cli.options import Option

MOST_USED = "Options used most"
OTHER = "Other options"

COMMON: dict[str, tuple[str, ...]] = {  # by command: what most runs of it name
    "manifest": ("output", "label", "task", "id", "image", "text", "features", "split"),
    "grads": ("checkpoint", "model", "target", "method", "objective", "output", "dry_run"),
    "score": ("checkpoint", "model", "target", "method", "objective", "set", "per_target", "output", "dry_run"),
    "curate": ("action", "budget", "by", "output", "edits", "report", "decisions", "manifest", "dry_run"),
    "retrain": (
        *("model", "output", "epochs", "lr", "seeds", "against", "scores", "action", "budget", "test", "report"),
        "dry_run",
    ),
    "evaluate": ("budget", "clean_label", "known_bad", "other_scores", "manifest", "report", "output"),
}
PURPOSES: dict[str, tuple[str, ...]] = {
    "Rows and columns": (
        *(
            "manifest",
            "target",
            "overlap",
            "allow_overlap",
            "fit_rows",
            "label",
            "task",
            "group",
            "id",
            "image",
            "text",
        ),
        *(
            "features",
            "weight",
            "keep_column",
            "drop_column",
            "like",
            "categories",
            "split",
            "embed",
            "skip_bad",
            "allow_outside",
            "encoding",
            "delimiter",
            "sheet",
        ),
    ),
    "Model": (
        "model",
        "checkpoint",
        "features_model",
        "features_checkpoint",
        "features_size",
        "class_map",
        "num_classes",
        "input_size",
        "max_length",
        "mean",
        "std",
        "interpolation",
        "crop",
    ),
    "Scores": (
        *("method", "objective", "set", "params", "loss", "precision", "relative", "combine", "rows", "sketch_dim"),
        *("per_member", "per_target", "explain", "tokens", "decomposition", "row_id", "top"),
    ),
    "Edits": (
        *("action", "budget", "by", "target_recall", "max_false", "bins", "review_budget", "maximise", "subject_to"),
        *("edits", "decisions", "undo"),
    ),
    "Gate": (
        *("check", "max_flagged", "max_flagged_per", "false_flag", "fdr", "threshold", "baseline"),
        *("accepted_manifest", "write_baseline"),
    ),
    "Export": ("export", "export_as", "link", "url_prefix"),
    "Truth and comparison": (
        *("clean_label", "known_bad", "reference", "draws", "stability", "other_scores", "sentinel", "duplicates"),
    ),
    "Evaluating by retraining": (*("lds", "subset_share", "removal", "loo", "convention", "brittleness"),),
    "Training": (
        *("epochs", "lr", "optimizer", "momentum", "weight_decay", "schedule", "augment", "amp", "init", "pretrained"),
        *("raw_features", "test", "keep_checkpoints", "record", "folds", "keep_fold_models", "calibration"),
    ),
    "What is compared": ("seeds", "against", "arm", "scores", "rounds", "attack", "flips", "require_improvement"),
    "Canaries": ("canaries", "canaries_from", "canary_noise"),
    "Store, seed and speed": (
        *("store", "no_store", "keep", "seed", "device", "batch_size", "workers", "engine", "rows_limit"),
        *("max_minutes", "max_disk"),
    ),
    "Result": ("output", "report", "reasons", "plot", "log", "format", "json", "dry_run"),
    OTHER: (),
    "Settings and messages": ("config", "isolated", "show_settings", "quiet", "verbose", "debug", "color"),
}


def grouped_options(command: str) -> list[tuple[str, list[Option]]]:
    """The options of a command under headings, each once; one that is new here stands under ``OTHER``."""
    left = {o.name: o for o in options_of(command)}
    made: list[tuple[str, list[Option]]] = []
    placed = {name for names in PURPOSES.values() for name in names}
    headings = {MOST_USED: COMMON.get(command, ()), **PURPOSES, OTHER: tuple(n for n in left if n not in placed)}
    for heading, names in headings.items():
        found = [left.pop(name) for name in names if name in left]
        if found:
            made.append((heading, found))
    return made
