"""The run behind ``grads`` and ``score``: opened from the settings, and held against the table on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import inputs_of, runtime_of
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError
from influence_cli.options import SCORE
from influence_cli.settings import GradSpec

if TYPE_CHECKING:
    from influence_cli.stages.run.job import Job

TABLE_FORMATS = ("auto", "table", "json", "jsonl", "csv")


def open_run(settings: Settings, result: ResultOptions) -> Job:
    """The run that the settings ask for; nothing is computed yet, and a dry run remembers nothing.

    Raises:
        InfluenceError: something in it cannot work, or the table on the way in was made from other content.
    """
    from influence_cli.data.tables import check_suffix
    from influence_cli.stages.run.job import open_job

    result.check_format(*TABLE_FORMATS)
    if result.output:
        check_suffix(result.output)
    manifest, origin = _manifest(settings)
    job = open_job(
        inputs_of(settings, manifest),
        settings.make(GradSpec),
        runtime_of(settings),
        terminal(),
        remember=not result.dry_run,
    )
    _check_origin(settings, job, origin or {})
    return job


def _manifest(settings: Settings) -> tuple[str, dict[str, Any] | None]:
    """The manifest with the payload, and the provenance of the table that stood in its place, if any."""
    from influence_cli.cli.settings.carried import carried_settings

    if settings.source is None:
        raise UsageError("no manifest", fix="name a Parquet manifest, or set manifest in influence.toml")
    carried = carried_settings(settings.source) if settings.command == SCORE else None
    if carried is None:
        return settings.source, None
    manifest = settings.values["manifest"]
    if manifest in (None, "-"):
        raise UsageError("the table does not say where its manifest is", fix="pass --manifest PATH")
    return manifest, carried["origin"]


def _check_origin(settings: Settings, job: Job, origin: dict[str, Any]) -> None:
    """Stop where the table on the way in was made from other content than what is found now."""
    found = {
        "manifest": job.manifest.fingerprint,
        "target": job.target_fingerprint,
        "checkpoint": None if job.checkpoint is None else job.checkpoint.digest,
        "fit_rows": None if job.fit is None else job.fit.fingerprint,
    }
    for name, now in found.items():
        # a fit set that nothing pins is the manifest's: who means another manifest means its fit set
        flags = (name, "manifest") if name == "fit_rows" and job.inputs.fit_rows is None else (name,)
        then = (origin.get(name) or {}).get("fingerprint")
        if then is not None and now is not None and then != now and not any(map(settings.explicit, flags)):
            raise UsageError(
                f"the {'fit rows have' if name == 'fit_rows' else f'{name} has'} changed since the stage before",
                where=str(settings.values.get(name) or settings.values["manifest"] or settings.source),
                fix=f"run `influence grads` again, or pass --{name.replace('_', '-')} to say that you mean it",
            )
