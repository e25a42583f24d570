"""The store: a memo on disk, never a state.  Deleting it changes no answer; only this package knows file names.

.influence/
  influence-store, CACHEDIR.TAG what says that the folder is a store (see ``place``), and that backups may leave it out
  directions/<fp>.safetensors   a direction q (or u) at a member; its metadata holds Phi and its noise
  factors/<fp>.safetensors      curvature fitted on a fit set: what it holds is its method's, and the fit set's keys
  outputs/<fp>/<shard>          keys u8[n, 16] (payload), logits [n, C]
  tangents/<u-fp>/<shard>       keys u8[n, 16] (payload), tangent [n, C]
  features/<fp>/<shard>         keys u8[n, 16] (payload), features [n, w]: inputs of the layer that makes the logits
  row_values/<fp>/<shard>       keys u8[n, 16] (row), value f64[n], payload_keys: a value of each row's own gradient
  row_values/<fp>/curvature.json   where that is taken with curvature: its fit set, and what is known of it
  tuned_head/<fp>/<shard>       keys u8[n, 16] (row), value, payload_keys: of gradients in a last layer tuned on targets
  weights/<fp>.safetensors      selected parameters of a member that was trained further, by name
  chains/<fp>.safetensors       Phi at the draws of a chain, and how it was drawn; or Phi at a member
  traces/<fp>/<shard>           keys u8[n, 16] (row), payload_keys, moments of rows' losses over the draws of a chain
  tokens/<u-fp>/<shard>         keys u8[n, 16] (payload), ragged by token: its place in the text, loss and score along u
  positions/<u-fp>/<shard>      the same with the part of the score that enters at the token's position
  gradients/<fp>/<shard>        keys u8[n, 16] (row), payload_keys, value [n, p], loss f64[n], norms f64[n, L] of rows
  decisions/<fp>.safetensors    how many members an ensemble has, where its members decided, and what they said
  interims/<fp>.safetensors     the state of a long computation that was stopped; gone once its result is stored
  attacks/<fp>/<shard>          keys u8[n, 16] (row), input [n, ...], payload_keys: attacked target rows;
                                of texts a token each: keys of row and token, input [n, d] its change
  trainings/<fp>.safetensors    each target and test row's loss and margin after training on a subset of the train rows
  claims/<fp>.lock              while a process is at a chain or a member, so that others take the next one
  models/<fp>.json              what an architecture's name meant (input size, mean, sd) under a timm version
  engines/<member-fp>.json      how a member's derivatives were last taken, and how far they were from the loop
  tasks/<fp>.json               outputs on a few rows by which a model of the user's own is known
  manifests/<fp>.safetensors    payload and row keys u8[n, 16] of manifests, for those that have not changed since
  payload-files.parquet         payload keys of files, for those that have not changed since
  undecodable.json              payloads that could not be decoded, and why: left out at once with --skip-bad
  timings.json                  measured seconds per row, for the plan; never read to decide anything

Every file that is read back carries a checksum; ``spec.json``, beside shards, is for people and has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.events import SILENT, Listener
from influence_cli.store.blocks import BlockFolder
from influence_cli.store.claims import Claims
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.gradients import GradientFolder
from influence_cli.store.keys import Keys, fingerprint
from influence_cli.store.layout import CLAIM, CLAIMED, FILE_KEYS, MANIFESTS, TIMINGS, UNDECODABLE, VALUE_NOTE
from influence_cli.store.manifest_keys import ManifestKeys
from influence_cli.store.mapped import MappedFolder
from influence_cli.store.mirror import called, mirror_of
from influence_cli.store.notes import read_note, read_revisions, write_note
from influence_cli.store.place import Place, check_place, store_root
from influence_cli.store.shards import Arrays, ShardFolder, Sought
from influence_cli.store.single_files import FileFolder, at_hand

__all__ = ["BlockFolder", "FileFolder", "GradientFolder", "Keys", "ShardFolder", "Store", "fingerprint", "open_store"]

OF_ROWS = " rows"  # after a timing's name: on how many rows it was measured
FIT_KEYS = "fit_keys"  # the tensor of a factor's file that names the rows it was fitted on


def open_store(named: str | None, listener: Listener = SILENT, remember: bool = True) -> Store:
    """The store that a setting names, or with None a temporary one.

    Raises:
        UsageError: the name is empty.
        StoreError: the folder is no store, and cannot become one.
    """
    root = store_root(named)
    check_place(root)
    return Store(root, listener, remember)


class Store:
    """Everything remembered under one root folder.

    The folder is marked as a store when it is first written to; without ``marked`` it is another's, where notes lie.
    """

    def __init__(self, root: Path, listener: Listener = SILENT, remember: bool = True, marked: bool = True) -> None:
        self.root, self.listener, self.remember = root, listener, remember
        self._place, self._mirror = Place(root, marked), mirror_of(root)
        self._sought = Sought()
        self.directions = self._files("directions")  # with what is known of each: the value of Phi, its noise
        self.factors = self._files("factors", what="factor")
        self.interims = self._files("interims")  # the states that computations have left
        self.decisions = self._files("decisions", what="decision")
        self.trainings = self._files("trainings", "trained again")
        self.weights = self._files("weights", "trained again", what="member")  # of members that were trained further
        self.chains = self._files("chains", what="chain")  # Phi at draws of the parameters, and how they were drawn
        self.claims = Claims(lambda name: self.root / CLAIMED / f"{name}{CLAIM}", self._place.claim)

    @property
    def called(self) -> str:
        """What it is called in plans: its root, or the address that this is the copy of."""
        return called(self.root)

    @property
    def at_an_address(self) -> bool:
        """Whether its files are put somewhere else as they are written."""
        return self._mirror is not None

    def look_again(self) -> None:
        """See what others have put at the address that this is the copy of; nothing of a store that is none."""
        if self._mirror is not None:
            self._mirror.look()

    def _files(self, kind: str, again: str = "computed again", what: str | None = None) -> FileFolder:
        fetch = at_hand if self._mirror is None else self._mirror.file
        return FileFolder(self.root / kind, self.listener, self._place.claim, again, what, fetch)

    def _folder(self, kind: str, name: str) -> Path:
        """Where the shards of a thing are, once they are here."""
        if self._mirror is not None:
            self._mirror.folder(kind, name)
        return self.root / kind / name

    def folder(self, kind: str, name: str, about: dict[str, Any] | None = None) -> ShardFolder:
        """The shards of one thing of a kind; ``about`` is for people who look into the store."""
        return ShardFolder(self._folder(kind, name), about or {}, self.listener, self._place.claim, self._sought)

    def mapped(self, kind: str, name: str, about: dict[str, Any] | None = None) -> MappedFolder:
        """The same, for rows of so many values that they are not all held in memory."""
        return MappedFolder(self._folder(kind, name), about or {}, self.listener, self._place.claim, self._sought)

    def by_blocks(self, kind: str, name: str, about: dict[str, Any] | None = None) -> BlockFolder:
        """The same, for rows that are read a block at a time, and added often."""
        return BlockFolder(self._folder(kind, name), about or {}, self.listener, self._place.claim, self._sought)

    def gradients(self, name: str, spec: dict[str, Any] | None = None) -> GradientFolder:
        """Rows' own gradients, whole or sketched, by row key."""
        return GradientFolder(self._folder("gradients", name), spec or {}, self.listener, self._place.claim)

    def file_keys(self) -> StoredFileKeys:
        """Payload keys of files known from earlier runs."""
        about = (self.remember, self.listener, self._place.claim)
        return StoredFileKeys(self.root / FILE_KEYS, *about, ManifestKeys(self.root / MANIFESTS, *about))

    def read_factor(self, name: str) -> Arrays | None:
        """A fitted curvature's tensors, less its fit set's keys; None where it is not stored intact."""
        tensors = self.factors.read(name)
        return tensors and {k: tensor for k, tensor in tensors.items() if k != FIT_KEYS}

    def write_factor(self, name: str, tensors: Arrays, fit_keys: Keys, meta: dict[str, Any]) -> None:
        """Store a fitted curvature whole, with the keys [n, 24] of the rows that it was fitted on."""
        self.factors.write(name, {**tensors, FIT_KEYS: fit_keys}, meta)

    def fit_keys(self, name: str) -> Keys | None:
        """Keys [n, 24] of the rows that a stored factor was fitted on, read alone: for a reason, never for a number."""
        return self.factors.read_one(name, FIT_KEYS)

    def keep_decision(self, name: str, decided: dict[str, Any], path: Arrays) -> dict[str, Any]:
        """Store a decision whole, with the figures by step that led to it, and return what is now decided.

        A decision that another run has stored meanwhile stands.
        """
        known = self.decisions.meta(name)
        return self.decisions.write(name, path, decided) if known is None else known

    # ---- notes: each None, or empty, where nothing was noted

    def _write_note(self, path: Path, note: Any) -> None:
        self._place.claim()
        write_note(path, note)

    def value_facts(self, name: str) -> dict[str, Any] | None:
        """What was noted of the curvature that values are taken with, for provenance."""
        note = read_note(self.root / "row_values" / name / VALUE_NOTE, self.listener)
        return None if note is None or note.get("of", name) != name else note["curvature"]  # another's is noted again

    def write_value_facts(self, name: str, fit: str, facts: dict[str, Any]) -> None:
        """Note it beside the values, with the name of the fit set: they go with it."""
        self._write_note(self.root / "row_values" / name / VALUE_NOTE, {"of": name, "fit": fit, "curvature": facts})

    def read_model_note(self, name: str) -> dict[str, Any] | None:
        """What was resolved for an architecture's name."""
        return read_note(self.root / "models" / f"{name}.json", self.listener)

    def write_model_note(self, name: str, note: dict[str, Any]) -> None:
        """Remember what an architecture's name resolved to."""
        if self.remember:
            self._write_note(self.root / "models" / f"{name}.json", note)

    def engine_note(self, member: str) -> dict[str, Any] | None:
        """By which engine a member's rows were last run, and what its self-check found."""
        again = "noted again when rows are next run at that member"
        return read_note(self.root / "engines" / f"{member}.json", self.listener, again)

    def write_engine_note(self, member: str, note: dict[str, Any]) -> None:
        """Remember it, for the provenance of later tables."""
        self._write_note(self.root / "engines" / f"{member}.json", note)

    def task_revisions(self, name: str) -> list[dict[str, Any]]:
        """What is known of a model of the user's own: for every revision of its code, its outputs on a few rows."""
        return read_revisions(self.root / "tasks" / f"{name}.json", self.listener)

    def write_task_revisions(self, name: str, revisions: list[dict[str, Any]]) -> None:
        """Remember the revisions of a model of the user's own."""
        if self.remember:
            self._write_note(self.root / "tasks" / f"{name}.json", revisions)

    def timing(self, what: str) -> float | None:
        """Seconds per row last measured for ``what``."""
        return self._known(TIMINGS).get(what)

    def timed_rows(self, what: str) -> float:
        """How many rows that was measured on; 0 where an earlier version, which did not say, has noted it."""
        return self._known(TIMINGS).get(f"{what}{OF_ROWS}", 0.0)

    def write_timing(self, what: str, seconds: float, rows: float = 0.0) -> None:
        """Remember a rate, measured on so many rows, for the next plan."""
        self._write_note(self.root / TIMINGS, {**self._known(TIMINGS), what: seconds, f"{what}{OF_ROWS}": rows})

    def _known(self, file: str) -> dict[str, Any]:
        return read_note(self.root / file, self.listener) or {}

    def undecodable(self, decoder: str) -> dict[str, str]:
        """Payloads, by hex key, that ``decoder`` could not decode, and why."""
        return self._known(UNDECODABLE).get(decoder, {})

    def write_undecodable(self, decoder: str, reasons: dict[str, str]) -> None:
        """Remember payloads that ``decoder`` could not decode."""
        known = self._known(UNDECODABLE)
        self._write_note(self.root / UNDECODABLE, {**known, decoder: {**known.get(decoder, {}), **reasons}})

    def forget_undecodable(self, keep: set[str] | None) -> int:
        """Forget payloads that are not among these hex keys (None: all are); returns how many."""
        known = self._known(UNDECODABLE)
        if keep is None:
            return 0
        left = {decoder: {k: why for k, why in some.items() if k in keep} for decoder, some in known.items()}
        forgotten = sum(map(len, known.values())) - sum(map(len, left.values()))
        if forgotten:
            self._write_note(self.root / UNDECODABLE, {decoder: some for decoder, some in left.items() if some})
        return forgotten
