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
    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session

TABLE_FORMATS = ("auto", "table", "json", "jsonl", "csv")


def open_session(settings: Settings, result: ResultOptions) -> tuple[Run, Session]:
    """The run that the settings ask for and its session; nothing is computed yet, and a dry run remembers nothing.

    Raises:
        InfluenceError: something in it cannot work, or the table on the way in was made from other content.
    """
    from influence_cli.data.write_tables import check_suffix
    from influence_cli.stages.run.open import open_run
    from influence_cli.stages.run.session import Session

    result.check_format(*TABLE_FORMATS)
    if result.output:
        check_suffix(result.output)
    manifest, origin = _manifest(settings)
    session = Session.open(runtime_of(settings), terminal(), remember=not result.dry_run)
    run = open_run(inputs_of(settings, manifest), settings.make(GradSpec), session)
    _check_origin(settings, run, origin or {})
    return run, session


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


def _check_origin(settings: Settings, run: Run, origin: dict[str, Any]) -> None:
    """Stop where the table on the way in was made from other content than what is found now."""
    found = {
        "manifest": run.manifest.fingerprint,
        "target": run.target_fingerprint,
        "checkpoint": None if run.checkpoint is None else run.checkpoint.digest,
        "fit_rows": None if run.fit is None else run.fit.fingerprint,
    }
    for name, now in found.items():
        # a fit set that nothing pins is the manifest's: who means another manifest means its fit set
        flags = (name, "manifest") if name == "fit_rows" and run.inputs.fit_rows is None else (name,)
        then = (origin.get(name) or {}).get("fingerprint")
        if then is not None and now is not None and then != now and not any(map(settings.explicit, flags)):
            raise UsageError(
                f"the {'fit rows have' if name == 'fit_rows' else f'{name} has'} changed since the stage before",
                where=str(settings.values.get(name) or settings.values["manifest"] or settings.source),
                fix=f"run `influence grads` again, or pass --{name.replace('_', '-')} to say that you mean it",
            )
