"""How a run is carried out: its store, the device and batch size, decoded rows in memory, and who is told.

Nothing of a session changes a number beyond rounding.  Nothing here imports torch before a row is run.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Manifest, Rows
from influence_cli.events import SILENT, Listener
from influence_cli.model.spec import ModelSpec
from influence_cli.processes.group import Group
from influence_cli.processes.lead import current
from influence_cli.settings import Runtime
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Member, Run
from influence_cli.store import BlockFolder, Keys, Store, open_store
from influence_cli.store.keys import taken
from influence_cli.store.shards import ShardFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from influence_cli.curvature.head import HeadInputs
    from influence_cli.data.manifest import Payload
    from influence_cli.engines.point import Point
    from influence_cli.model.decoded import DecodedByKey

LARGEST_BATCH = 256
INPUT_VALUES = 3_000_000  # of a batch, about


@dataclass(eq=False)
class Batch:
    """Some rows of one manifest, decoded: their places [b] in it and their inputs [b, ...]."""

    index: NDArray[np.int64]
    decoded: Tensor
    manifest: Manifest
    model: ModelSpec

    def on(self, point: Point) -> Tensor:
        """The model's input where a point is, in its precision."""
        from influence_cli.model.examples import move, to_input

        return to_input(move(self.decoded, point.device), self.model, point.dtype)

    def labels_on(self, point: Point) -> Tensor:
        """The labels [b] where a point is."""
        import torch

        return torch.from_numpy(self.labels).to(point.device)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The rows' labels [b]."""
        return self.manifest.labels[self.index]

    @property
    def payload_keys(self) -> Keys:
        """The keys [b, 16] of what is in the rows."""
        return taken(self.manifest.payload_keys, self.index)

    @property
    def row_keys(self) -> Keys:
        """The keys [b, 16] of the rows, labels included."""
        return taken(self.manifest.row_keys, self.index)


@dataclass(eq=False)
class Session:
    """What the stages of a run share while it is carried out."""

    store: Store
    runtime: Runtime
    listener: Listener = SILENT
    decoded: DecodedByKey | None = None  # decoded rows, while several passes need them
    head_inputs: tuple[str, HeadInputs] | None = None  # what a pass kept, and whose it is (``names.before_head``)
    built: tuple[ModelSpec, nn.Module] | None = None  # a model without values, and of which spec; who fills it takes it
    few: Tensor | None = None  # decoded rows from all over the data, on which a point's derivatives are checked
    group: Group | None = None  # the processes that it can be divided among
    sharing: bool = False  # whether they are at work in what is done now
    said: set[str] = field(default_factory=set)  # accuracies already said to be at chance
    opened: float = field(default_factory=time.perf_counter)
    cold: bool = field(default_factory=lambda: "torch" not in sys.modules)  # it is yet to be imported
    timed: float = 0.0  # seconds that are in rates; the others of a run are those of its start
    _folders: dict[tuple[str, str], ShardFolder] = field(default_factory=dict)

    @staticmethod
    def open(runtime: Runtime, listener: Listener = SILENT, remember: bool = True) -> Session:
        """A session on the store that ``runtime`` names; one that is only planned remembers nothing.

        Raises:
            InfluenceError: the store cannot be used.
        """
        return Session(open_store(runtime.store, listener, remember), runtime, listener, group=current())

    @functools.cached_property
    def device(self) -> torch.device:
        """Where models are run."""
        from influence_cli.model.build import device_of

        return device_of(self.runtime.device)

    def batch_size(self, model: ModelSpec | None) -> int:
        """Rows a batch: as asked, or 256, fewer for large inputs."""
        if self.runtime.batch_size:
            return self.runtime.batch_size
        values = int(np.prod(model.shape)) if model else 1
        values = values**2 if model and model.is_language else values  # every token looks at every other
        return int(np.clip(INPUT_VALUES // values, 4, LARGEST_BATCH))

    def rows(
        self,
        model: ModelSpec,
        rows: Rows,
        chunks: int | Iterable[list[tuple[int, Payload]]],
        on_bad: Callable[[int, str], None] | None = None,
        keep: bool = True,
    ) -> Iterator[Batch]:
        """Decoded batches of rows: of so many each in the order of the manifest, or as ``chunks`` has them.

        A row that cannot be decoded is an error that names it, or is left out and told to ``on_bad``.
        With ``keep`` decoded rows are kept for other passes, where a run has several.
        """
        from influence_cli.model.examples import batches, chunked

        if isinstance(chunks, int):
            chunks = chunked(rows.manifest.payloads(rows.index), chunks) if len(rows) else []
        held = self.decoded if keep else None
        for index, decoded in batches(rows.manifest, chunks, model, self.runtime.workers, on_bad, held):
            yield Batch(index, decoded, rows.manifest, model)

    def outputs(self, run: Run, member: Member) -> BlockFolder:
        """The shards of a member's logits, by payload key."""
        return self._by_blocks("outputs", names.outputs(member), self.about(run, member))

    def tangents(self, run: Run, direction: str) -> BlockFolder:
        """The shards of the logits' tangents along a direction, by payload key."""
        about = {"params": run.spec.params, "objectives": list(run.objectives), "direction": direction}
        return self._by_blocks("tangents", direction, about)

    def row_values(self, run: Run, method: str, member: Member) -> ShardFolder:
        """The shards of a method's values of rows at a member, by row key: the label is part of what they are of."""
        name, about = names.row_value(run, method, member)
        return self.folder("row_values", name, {**about, **self.about(run, member)})

    def attacks(self, run: Run, objective: str) -> ShardFolder:
        """The shards of an objective's attacked target rows, by row key."""
        name = names.attack(run, objective)
        assert name is not None
        assert run.model is not None
        how = run.objectives[objective].describe(run.model, run.spec.seed)
        about = {"model": run.model.as_dict(), "precision": run.spec.precision, "attack": how}
        return self.folder("attacks", name, about)

    def _by_blocks(self, kind: str, name: str, about: dict[str, Any]) -> BlockFolder:
        """The shards of values by class, which are read a block of rows at a time."""
        found = self._folders.get((kind, name))
        if not isinstance(found, BlockFolder):
            found = self._folders[kind, name] = self.store.by_blocks(kind, name, about)
        return found

    def folder(self, kind: str, name: str, about: dict[str, Any], mapped: bool = False) -> ShardFolder:
        """The shards of one thing of a kind, which are read once, or mapped; ``about`` is for people who look."""
        if (kind, name) not in self._folders:
            self._folders[kind, name] = (self.store.mapped if mapped else self.store.folder)(kind, name, about)
        return self._folders[kind, name]

    def about(self, run: Run, member: Member) -> dict[str, Any]:
        """What is said of a member's folders to people who look into the store."""
        assert run.model is not None
        return {"model": run.model.as_dict(), "member": member.as_dict(), "precision": run.spec.precision}

    def silent(self) -> Session:
        """A session on the same store in which nobody is told anything."""
        return Session(self.store, self.runtime)

    def forget_folders(self, kind: str | None = None) -> None:
        """Let go of what was read, of a kind or of all, so that it is read anew: the store may have been written."""
        for known in [key for key in self._folders if kind in (None, key[0])]:
            del self._folders[known]
        if kind is None and self.group is not None:
            self.store.look_again()
