"""Weights & Biases: a run for the result, and a run for every training, all of one group.

Where it logs to is its own business: WANDB_MODE=offline, WANDB_PROJECT, WANDB_DIR and the like.  A training has the
same id each time, so that one which an earlier comparison has logged is not logged twice.  Neither code, nor the
command line, nor what stands on the terminal is sent.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from pathlib import Path
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.loggers.protocol import Logged

_PROJECT = "influence"


class WandbLogger:
    """Logs to the server, or the local folder, that Weights & Biases is set to."""

    def __init__(self, folder: str | None = None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before it is imported
        import wandb

        self._wandb: Any = wandb

    def check(self) -> None:
        """Refuse (UsageError) a server for which nobody is logged in."""
        if self._mode() in ("offline", "disabled", "dryrun"):
            return
        without_asking = {"prompt": False} if "prompt" in inspect.signature(self._wandb.login).parameters else {}
        try:
            ready, why = self._wandb.login(**without_asking), "nobody is logged in"
        except Exception as error:  # whatever its client raises
            ready, why = False, str(error)
        if not ready:
            fix = "run `wandb login`, or set WANDB_MODE=offline and send the runs later with `wandb sync`"
            raise UsageError(f"--log wandb cannot log: {why}", fix=fix)

    def _mode(self) -> str:
        """Whether it sends, keeps or drops what is logged: by its variable, or its settings files."""
        return os.environ.get("WANDB_MODE") or str(self._wandb.setup().settings.mode)

    def log(self, logged: Logged) -> str:
        """Log a result, each of its trainings once, and say where it is."""
        wandb, group = self._wandb, logged.name
        with self._run(logged.name, group, logged.command, logged.parameters) as run:
            run.summary.update(logged.metrics)
            run.log({name: wandb.Table(columns=t.header, data=t.rows) for name, t in logged.tables.items()})
            pages = {name: data for name, data in logged.files.items() if name.endswith(".html")}
            run.log({name: wandb.Html(data.decode(), inject=False) for name, data in pages.items()})
            artifact = wandb.Artifact(f"{logged.command}-{run.id}", type="result")
            with tempfile.TemporaryDirectory() as folder:
                for name, data in logged.files.items():
                    (Path(folder) / name).write_bytes(data)
                artifact.add_dir(folder)
                run.log_artifact(artifact)
            place = run.url or run.dir
        for training in logged.trainings:
            if self._is_here(training.key):
                continue
            with self._run(training.name, group, "training", {}, training.key) as one:
                if not one.resumed:  # what an earlier comparison has said of it stays
                    one.config.update(training.parameters)
                    one.summary.update(training.metrics)
        return str(place)

    def _is_here(self, key: str) -> bool:
        """Whether a run of this id is kept in the local folder, and waits to be sent."""
        place = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
        return self._mode() in ("offline", "dryrun") and any(place.glob(f"offline-run-*-{key}"))

    def _run(self, name: str, group: str, kind: str, config: dict[str, Any], key: str | None = None) -> Any:
        """A run of its own, beside any that is active; it is marked as failed where it is left by an error."""
        settings = self._wandb.Settings(
            console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        online = self._mode() in ("online", "run")
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT, name=name, group=group, job_type=kind, config=config,
            id=key, resume="allow" if key is not None and online else None, reinit="create_new", settings=settings,
        )  # fmt: skip
        return contextlib.closing(run) if not hasattr(run, "__enter__") else run
