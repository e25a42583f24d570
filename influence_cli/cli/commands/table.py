"""One function a command: settings in, a stage called, its result shown.  Stages are imported inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli.commands.curate import TABLE_FORMATS, curate
from influence_cli.cli.commands.evaluate import evaluate
from influence_cli.cli.commands.guide import guide
from influence_cli.cli.commands.manifest import cache, manifest, methods
from influence_cli.cli.commands.per_target import per_target
from influence_cli.cli.commands.retrain import retrain
from influence_cli.cli.settings.inputs import inputs_of
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.stages.run.job import Job


def grads(settings: Settings) -> int | None:
    """Fill the store: directions, logits and tangents of the rows it has not seen."""
    from influence_cli.data.tables import provenance
    from influence_cli.stages.grads.fill import fill, grads_table

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
    from influence_cli.stages.score.score import score as score_stage

    job = _job(settings)
    if settings["per_target"]:
        return per_target(settings, job)
    if settings["dry_run"]:
        return show.plan(settings, job)
    table = score_stage(job, settings["per_member"], settings["combine"])
    scored = f"{len(job.train):,} train rows scored by {', '.join(job.methods)}; positive: the row helps"
    show.run_summary(job, provenance(table.schema), scored)
    show.skipped(job.left_out)
    show.table(settings, table, sort_by="score")
    return None


def _job(settings: Settings) -> Job:
    from influence_cli.data.write_tables import check_suffix
    from influence_cli.settings import GradSpec, Runtime
    from influence_cli.stages.run.job import open_job

    show.check_format(settings, TABLE_FORMATS)
    if settings["output"]:
        check_suffix(settings["output"])
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
        settings["relative"],
        settings["rows"],
        settings["sketch_dim"],
    )
    runtime = Runtime(
        None if settings["no_store"] else settings["store"],
        settings["device"],
        settings["batch_size"],
        settings["workers"],
        engine=settings["engine"],
        rows_limit=settings["rows_limit"],
    )
    job = open_job(inputs, spec, runtime, show.terminal(), remember=not settings["dry_run"])
    _check_origin(settings, job, origin)
    return job


def _manifest(settings: Settings) -> tuple[str, dict[str, Any] | None]:
    """The manifest with the payload, and the provenance of the table that stood in its place, if any."""
    from influence_cli.cli.settings.carried import carried_settings

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
    ("guide", ("TOPIC", "What to read about."), guide),
)
