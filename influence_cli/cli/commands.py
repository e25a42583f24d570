"""One function a command: settings in, a stage called, its result shown.  Stages are imported inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli import show
from influence_cli.cli.config import Settings
from influence_cli.cli.curate_command import TABLE_FORMATS, curate
from influence_cli.cli.data_commands import cache, manifest, methods
from influence_cli.cli.evaluate_command import evaluate
from influence_cli.cli.inputs import inputs_of, require_source
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.stages.canaries import CanaryRequest
    from influence_cli.stages.job import Job


def grads(settings: Settings) -> int | None:
    """Fill the store: directions, logits and tangents of the rows it has not seen."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.grads import fill, grads_table

    job = _job(settings)
    if settings["dry_run"]:
        return show.plan(settings, job)
    if job.model is None:
        raise UsageError("these methods need no model, so there is nothing to compute", fix="ask for another --method")
    rows = fill(job)
    table = grads_table(job)
    filled = f"{rows:,} rows run through the model; the store is complete for {len(job.train):,} train rows"
    show.run_summary(job, provenance(table.schema), filled)
    show.skipped(job.left_out)
    show.table(settings, table, sort_by="loss", descending=True)
    return None


def score(settings: Settings) -> int | None:
    """One score per train row, positive where the row helps; runs what is missing of grads."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.score import score as score_stage

    job = _job(settings)
    if settings["dry_run"]:
        return show.plan(settings, job)
    table = score_stage(job, settings["per_member"])
    scored = f"{len(job.train):,} train rows scored by {', '.join(job.methods)}; positive: the row helps"
    show.run_summary(job, provenance(table.schema), scored)
    show.skipped(job.left_out)
    show.table(settings, table, sort_by="score")
    return None


def _job(settings: Settings) -> Job:
    from influence_cli.data.tables import check_output
    from influence_cli.settings import GradSpec, Runtime
    from influence_cli.stages.job import open_job

    show.check_format(settings, TABLE_FORMATS)
    if settings["output"] and not settings["dry_run"]:
        check_output(settings["output"])
    manifest, origin = _manifest(settings)
    inputs = inputs_of(settings, manifest)
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
        engine=settings["engine"],
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
        "fit_rows": None if job.fit is None else job.fit.fingerprint,
    }
    for name, now in found.items():
        # a fit set that nothing pins is the manifest's: who means another manifest means its fit set
        flags = (name, "manifest") if name == "fit_rows" and settings["fit_rows"] is None else (name,)
        then = (origin.get(name) or {}).get("fingerprint")
        if then is not None and now is not None and then != now and not any(map(settings.explicit, flags)):
            raise UsageError(
                f"the {'fit rows have' if name == 'fit_rows' else f'{name} has'} changed since the stage before",
                where=str(settings.values.get(name) or settings["manifest"] or settings.source),
                fix=f"run `influence grads` again, or pass --{name.replace('_', '-')} to say that you mean it",
            )


def retrain(settings: Settings) -> int | None:
    """Train on a manifest; with --against also without the edits, and with random edits of the same size."""
    from influence_cli.data.manifest import open_manifest
    from influence_cli.model.training import Recipe
    from influence_cli.stages.curate import parse_share
    from influence_cli.stages.retrain import RetrainRequest, improved
    from influence_cli.stages.retrain import retrain as retrain_stage

    show.check_format(settings, ("auto", "table", "json"))
    if settings["output"] is None:
        raise UsageError("no run folder", fix="pass -o RUN")
    arms = tuple(_named_arm(text) for text in settings["arm"])
    request = RetrainRequest(
        inputs_of(settings, require_source(settings, "a manifest")),
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
                open_manifest(path, request.inputs.label, request.inputs.skip_bad)
        return show.retrain_plan(settings, request, recipe)
    metrics = retrain_stage(request, recipe, show.terminal())
    show.retrain_summary(settings, metrics)
    if settings["require_improvement"] and not improved(metrics):
        show.terminal().warn("curated does not beat no edit and every control by the paired interval")
        return 1
    return None


def _canaries(settings: Settings) -> CanaryRequest | None:
    from influence_cli.stages.canaries import CanaryRequest
    from influence_cli.stages.curate import parse_share

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
