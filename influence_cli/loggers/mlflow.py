"""MLflow: a run for the result, and below it a run for every training, in the experiment that MLflow's settings name.

Where it logs to is MLflow's own business: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like.  A training that
an earlier comparison has logged to the experiment is not logged again.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.loggers.protocol import Logged, LoggedTraining, Metrics, Parameters
from influence_cli.loggers.results import as_csv, parts_of, safe_names

TAG = "influence.training"
_MOST_PARAMETERS, _MOST_METRICS = 100, 1000  # that MLflow takes in one call
_LONGEST = 500  # characters of a value that every version of MLflow takes


class MLflowLogger:
    """Logs to the tracking server, or the local store, that MLflow is set to."""

    def __init__(self, folder: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before it is imported
        import mlflow

        self._mlflow: Any = mlflow

    def check(self) -> None:
        """Refuse (UsageError) a tracking server that does not answer."""
        try:
            self._mlflow.MlflowClient().search_experiments(max_results=1)
        except Exception as error:  # whatever its many stores raise
            what = f"--log mlflow cannot reach the tracking store: {error}"
            raise UsageError(what, fix="set MLFLOW_TRACKING_URI to one that answers, or leave --log out") from error

    def log(self, logged: Logged) -> str:
        """Log a result, each of its trainings once, and say where it is."""
        mlflow = self._mlflow
        tags = {"influence.command": logged.command}
        nested = mlflow.active_run() is not None
        with mlflow.start_run(run_name=logged.name, nested=nested, tags=tags) as run:
            self._put(logged.parameters, logged.metrics)
            with tempfile.TemporaryDirectory() as folder:
                for name, data in logged.files.items():
                    (Path(folder) / name).write_bytes(data)
                (Path(folder) / "tables").mkdir()
                for name, table in logged.tables.items():
                    (Path(folder) / "tables" / f"{name}.csv").write_text(as_csv(table), encoding="utf-8")
                mlflow.log_artifacts(folder)
            for training in logged.trainings:
                self._log_training(training, run.info.experiment_id)
        return f"run {run.info.run_id} of experiment {run.info.experiment_id}"

    def _log_training(self, training: LoggedTraining, experiment: str) -> None:
        """A run of its own, unless the experiment has a finished one of the same training."""
        found = self._mlflow.MlflowClient().search_runs(
            [experiment], f"tags.`{TAG}` = '{training.key}' and attributes.status = 'FINISHED'", max_results=1
        )
        if found:
            return
        with self._mlflow.start_run(run_name=training.name, nested=True, tags={TAG: training.key}):
            self._put(training.parameters, training.metrics)

    def _put(self, parameters: Parameters, metrics: Metrics) -> None:
        texts = {name: str(value)[:_LONGEST] for name, value in parameters.items()}
        for part in parts_of(safe_names(texts), _MOST_PARAMETERS):
            self._mlflow.log_params(part)
        for part in parts_of(safe_names(metrics), _MOST_METRICS):
            self._mlflow.log_metrics(part)
