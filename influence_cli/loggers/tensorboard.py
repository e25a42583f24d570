"""TensorBoard: a folder of events for the result, and one for every training, below the folder that is named.

``--log tensorboard:FOLDER`` names it; ``retrain`` has ``RUN/tensorboard`` where nothing does.  TensorBoard shows
numbers, tables and pictures; pages and results as JSON lie beside the events.  What an earlier comparison has logged of
a training stays.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from influence_cli.errors import UsageError
from influence_cli.loggers.protocol import Logged, LoggedTraining
from influence_cli.loggers.results import safe_name
from influence_cli.report.text_table import TextTable
from influence_cli.store.files import write_bytes


class TensorBoardLogger:
    """Writes event files below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def check(self) -> None:
        """Refuse (UsageError) a place that is no folder."""
        if self._folder.exists() and not self._folder.is_dir():
            fix = "pass --log tensorboard:FOLDER"
            raise UsageError(
                "--log tensorboard writes into a folder, and this is a file", where=str(self._folder), fix=fix
            )

    def log(self, logged: Logged) -> str:
        """Log a result, each of its trainings once, and say where it is."""
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        folder = self._folder / f"{_file_name(logged.name)} {now}"
        with _writer(folder) as writer:
            writer.add_text("parameters", _markdown(["parameter", "value"], list(map(list, logged.parameters.items()))))
            for name, table in logged.tables.items():
                writer.add_text(f"tables/{name}", _table(table))
            for name, value in logged.metrics.items():
                writer.add_scalar(name, value)
            for name, data in logged.files.items():
                if name.endswith(".png"):
                    writer.add_image(name, _pixels(data), dataformats="HWC")
        for name, data in logged.files.items():
            write_bytes(folder / name, data)
        for training in logged.trainings:
            self._log_training(training)
        return str(folder)

    def _log_training(self, training: LoggedTraining) -> None:
        """Events of its own, with its parameters for the hparams view, unless they are there."""
        from torch.utils.tensorboard.summary import hparams

        folder = self._folder / "arms" / _file_name(training.arm) / f"seed {training.seed} {training.key[:8]}"
        done = folder / "logged"
        if done.exists():
            return
        with _writer(folder) as writer:
            for summary in hparams(training.parameters, training.metrics):
                writer.file_writer.add_summary(summary)
            for name, value in training.metrics.items():
                writer.add_scalar(name, value)
        write_bytes(done, b"")  # events that were cut off are written again


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _file_name(name: str) -> str:
    return safe_name(name).replace("/", "_").lstrip(".")


def _pixels(data: bytes) -> Any:
    """A picture's pixels [height, width, 3]."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _table(table: TextTable) -> str:
    return "\n\n".join([f"**{_cell(table.title)}**", _markdown(table.header, table.rows), *map(_cell, table.notes)])


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """Text in a cell: no name of a row or column makes a cell, a line or markup of its own."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(text.split())
