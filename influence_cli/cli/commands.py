"""One function a command: settings in, a stage called, its result shown.  Stages are imported inside."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli import show
from influence_cli.cli.config import Settings
from influence_cli.cli.data_commands import cache, manifest, methods
from influence_cli.cli.evaluate_command import evaluate
from influence_cli.cli.inputs import require_source, said_of_scores
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.canaries import CanaryRequest
    from influence_cli.curate import CurateRequest, ScoreTable
    from influence_cli.job import Job

TABLE_FORMATS = ("auto", "table", "json", "jsonl", "csv")


def grads(settings: Settings) -> int | None:
    """Fill the store: directions, logits and tangents of the rows it has not seen."""
    from influence_cli.grads import fill, grads_table
    from influence_cli.tables import provenance

    job = _job(settings)
    if settings["dry_run"]:
        return show.plan(settings, job)
    if job.model is None:
        raise UsageError("these methods need no model, so there is nothing to compute", fix="ask for another --method")
    rows = fill(job)
    table = grads_table(job)
    filled = f"{rows:,} rows run through the model; the store is complete for {len(job.train):,} train rows"
    show.run_summary(job, provenance(table.schema), filled)
    show.table(settings, table, sort_by="loss", descending=True)
    return None


def score(settings: Settings) -> int | None:
    """One score per train row, positive where the row helps; runs what is missing of grads."""
    from influence_cli.score import score as score_stage
    from influence_cli.tables import provenance

    job = _job(settings)
    if settings["dry_run"]:
        return show.plan(settings, job)
    table = score_stage(job, settings["per_member"])
    scored = f"{len(job.train):,} train rows scored by {', '.join(job.methods)}; positive: the row helps"
    show.run_summary(job, provenance(table.schema), scored)
    show.table(settings, table, sort_by="score")
    return None


def _job(settings: Settings) -> Job:
    from influence_cli.job import open_job
    from influence_cli.settings import GradSpec, Inputs, Runtime
    from influence_cli.tables import check_output

    show.check_format(settings, TABLE_FORMATS)
    if settings["output"] and not settings["dry_run"]:
        check_output(settings["output"])
    manifest, origin = _manifest(settings)
    inputs = Inputs(
        manifest,
        target=settings["target"],
        checkpoint=settings["checkpoint"],
        model=settings["model"],
        label=settings["label"],
        input_size=settings["input_size"],
        num_classes=settings["num_classes"],
        allow_overlap=settings["allow_overlap"],
    )
    spec = GradSpec(
        tuple(settings["method"]),
        tuple(settings["objective"]),
        settings.options,
        settings["params"],
        settings["loss"],
        settings["precision"],
        settings["seed"],
    )
    runtime = Runtime(
        None if settings["no_store"] else settings["store"],
        settings["device"],
        settings["batch_size"],
        settings["workers"],
    )
    job = open_job(inputs, spec, runtime, show.terminal(), remember=not settings["dry_run"])
    _check_origin(settings, job, origin)
    return job


def _manifest(settings: Settings) -> tuple[str, dict[str, Any] | None]:
    """The manifest with the payload, and the provenance of the table that stood in its place, if any."""
    from influence_cli.cli.carried import carried_settings

    if settings.source is None:
        raise UsageError("no manifest", fix="name a Parquet manifest, or set manifest in influence.toml")
    carried = carried_settings(settings.source) if settings.command == "score" else None
    if carried is None:
        return settings.source, None
    if settings["manifest"] in (None, "-"):
        raise UsageError("the table does not say where its manifest is", fix="pass --manifest PATH")
    return settings["manifest"], carried["origin"]


def _check_origin(settings: Settings, job: Job, origin: dict[str, Any] | None) -> None:
    """Stop where the table on the way in was made from other content than what is found now."""
    if origin is None:
        return
    found = {
        "manifest": job.manifest.fingerprint,
        "target": job.target_fingerprint,
        "checkpoint": None if job.checkpoint is None else job.checkpoint.digest,
    }
    for name, now in found.items():
        then = (origin.get(name) or {}).get("fingerprint")
        if then is not None and now is not None and then != now and not settings.explicit(name):
            raise UsageError(
                f"the {name} has changed since the stage before",
                where=str(settings[name] if name in settings.values else settings.source),
                fix=f"run `influence grads` again, or pass --{name} to say that you mean it",
            )


def curate(settings: Settings) -> int | None:
    """Trim, relabel or reweight train rows under a budget; or be a gate with --check."""
    from influence_cli.curate import CurateRequest, read_scores
    from influence_cli.curate import curate as curate_stage

    gate = settings["check"] or settings["threshold"] is not None or settings["write_baseline"]
    show.check_format(settings, (*TABLE_FORMATS, *(["github"] if settings["check"] else [])))
    _check_outputs(settings, bool(gate))
    source = require_source(settings, "a score table")
    manifest, label = said_of_scores(settings)
    request = CurateRequest(
        scores=source,
        action=settings["action"],
        budget=settings["budget"],
        manifest=manifest,
        label=label,
        by=settings["by"],
        options=settings.options,
    )
    if gate:
        return _gate(settings, request, read_scores(request))
    curated = curate_stage(request)
    show.curate_summary(settings, curated)
    if settings["dry_run"]:
        return None
    _write_curation(settings, curated)
    return None


def _check_outputs(settings: Settings, gate: bool) -> None:
    """Refuse outputs that contradict each other, or that cannot be written, before any work.

    Raises:
        UsageError: they do, or one cannot.
    """
    from influence_cli.tables import check_output

    output, edits = settings["output"], settings["edits"]
    if gate and (output or edits):
        raise UsageError("a gate decides and writes nothing", fix="leave -o and --edits out, or --check")
    if output == edits and output is not None:
        raise UsageError(f"-o and --edits are both {output!r}", fix="give each a place of its own")
    for path, suffixes in ((output, (".parquet",)), (edits, (".parquet", ".csv", ".jsonl"))):
        if path and not settings["dry_run"]:
            check_output(path, suffixes)


def _write_curation(settings: Settings, curated: Any) -> None:
    from influence_cli.curate import write_curated
    from influence_cli.tables import write_table

    if settings["edits"]:
        write_table(curated.table(), settings["edits"])
    if settings["output"]:
        rows = write_curated(curated, settings["output"])
        show.terminal().note(f"{rows:,} train rows written to {settings['output']}")
        if sys.stderr.isatty() and settings["output"] != "-":
            locator = curated.scores.manifest.source
            show.terminal().note(
                f"next: influence retrain {settings['output']} --against {locator} --model NAME --seeds 3 -o RUN"
            )
    elif not settings["edits"]:
        show.table(settings, curated.table(), sort_by=None)


def _gate(settings: Settings, request: CurateRequest, scores: ScoreTable) -> int | None:
    from influence_cli.gate import GateRequest, check, write_baseline

    if settings["write_baseline"] and settings["dry_run"]:
        show.terminal().note(f"{len(scores.train):,} rows would be accepted in {settings['write_baseline']}")
    elif settings["write_baseline"]:
        rows = write_baseline(scores, settings["write_baseline"])
        show.terminal().note(f"{rows:,} rows accepted in {settings['write_baseline']}")
    if settings["write_baseline"] and not settings["check"]:
        return None
    verdict = check(
        scores,
        GateRequest(settings["max_flagged"], settings["false_flag"], settings["threshold"], settings["baseline"]),
    )
    show.verdict(settings, verdict, scores.manifest.source)
    return 1 if verdict.tripped else 0


def retrain(settings: Settings) -> int | None:
    """Train on a manifest; with --against also without the edits, and with random edits of the same size."""
    from influence_cli.curate import parse_share
    from influence_cli.manifest import open_manifest
    from influence_cli.model.training import Recipe
    from influence_cli.retrain import RetrainRequest, improved
    from influence_cli.retrain import retrain as retrain_stage
    from influence_cli.settings import Inputs

    show.check_format(settings, ("auto", "table", "json"))
    if settings["output"] is None:
        raise UsageError("no run folder", fix="pass -o RUN")
    arms = tuple(_named_arm(text) for text in settings["arm"])
    request = RetrainRequest(
        Inputs(
            require_source(settings, "a manifest"),
            model=settings["model"],
            label=settings["label"],
            input_size=settings["input_size"],
            num_classes=settings["num_classes"],
        ),
        settings["output"],
        seeds=settings["seeds"],
        seed=settings["seed"],
        against=settings["against"],
        arms=arms,
        test=settings["test"],
        init=settings["init"],
        pretrained=settings["pretrained"],
        keep_checkpoints=settings["keep_checkpoints"],
        calibration=parse_share(settings["calibration"], "--calibration") if settings["calibration"] else 0.0,
        canaries=_canaries(settings),
        device=settings["device"],
    )
    recipe = Recipe(
        epochs=settings["epochs"],
        lr=settings["lr"],
        batch_size=settings["batch_size"] or Recipe.batch_size,
        optimizer=settings["optimizer"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        schedule=settings["schedule"],
        augment=settings["augment"],
    )
    if settings["dry_run"]:
        for path in (request.inputs.manifest, request.against, *(p for _, p in arms)):
            if path is not None:
                open_manifest(path, request.inputs.label)
        return show.retrain_plan(settings, request, recipe)
    metrics = retrain_stage(request, recipe, show.terminal())
    show.retrain_summary(settings, metrics)
    if settings["require_improvement"] and not improved(metrics):
        show.terminal().warn("curated does not beat no edit and every control by the paired interval")
        return 1
    return None


def _canaries(settings: Settings) -> CanaryRequest | None:
    from influence_cli.canaries import CanaryRequest
    from influence_cli.curate import parse_share

    if settings["canaries"] is None:
        for name in ("canaries_from", "canary_noise"):
            if settings.explicit(name):
                raise UsageError(f"--{name.replace('_', '-')} needs canaries", fix="pass --canaries 5%")
        return None
    share = parse_share(settings["canaries"], "--canaries")
    return CanaryRequest(share, settings["canary_noise"], settings["canaries_from"])


def _named_arm(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"--arm {text!r} cannot be read", fix="write --arm loss=loss-trimmed.parquet")
    return name, path


_MANIFEST = ("MANIFEST", "Parquet manifest, folder of Parquet files, or - for standard input.")
_SCORES = ("SCORES", "Score table, or - for standard input.")


_DATA = ("SOURCE", "Image folder, .csv, .jsonl, .npz, .parquet, or a saved Hugging Face dataset.")
COMMANDS = (
    ("manifest", _DATA, manifest),
    ("grads", _MANIFEST, grads),
    ("score", _MANIFEST, score),
    ("curate", _SCORES, curate),
    ("retrain", _MANIFEST, retrain),
    ("evaluate", ("SCORES...", "Score tables of the same rows, or - for standard input."), evaluate),
    ("methods", ("NAME", "A method."), methods),
    ("cache", ("ACTION", "ls, verify, gc or key."), cache),
)
