"""Finding weights as people have them, and naming what is in them, and those that a training left on its way to them.

A checkpoint is a run folder of ``retrain``, a folder of the Hugging Face hub, a safetensors file, a folder or index of
sharded safetensors, or a torch file (read as data only).  The digest covers names, dtypes, shapes and values, whatever
the kind of file, the sharding and what else is in it; that of a torch file whose tensors only torch can read covers its
bytes.  Nothing here imports torch.
"""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.errors import DamagedModel, ModelError, UsageError
from influence_cli.model.adapter_folder import ADAPTER_FILE, ADAPTER_WEIGHTS, base_folder, read_adapter
from influence_cli.model.hf_folder import HF, by_hand, hub_name, spec_values
from influence_cli.model.hub_config import read_hub_config
from influence_cli.model.run_folder import CHECKPOINTS, RUN_FILE, RunFolder
from influence_cli.model.run_record import WEIGHTS_FILE, RunRecord, is_model
from influence_cli.model.text_input import placed
from influence_cli.model.training_records import EpochRecords, FoldRecords
from influence_cli.store.files import DamagedFile, file_digest
from influence_cli.store.keys import fingerprint, parse_json
from influence_cli.store.lfs import refuse_pointer
from influence_cli.store.remote import is_remote, local
from influence_cli.store.sealed import read_weights_metadata, tensor_digest
from influence_cli.store.zips import damage_told, is_zip

if TYPE_CHECKING:
    from influence_cli.model.train.recipe import Recipe

INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
IN_FOLDER = (WEIGHTS_FILE, "model" + INDEX_SUFFIX, "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Files of weights and the digest of what is in them."""

    locator: str
    files: tuple[Path, ...]
    digest: str


def find_checkpoint(locator: str) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The weights behind a path or folder, verified, and the model spec they carry, if any.

    Raises:
        ModelError: nothing there, a shard is missing or damaged, an unknown kind of file, or weights or a ``run.json``
            that are not as ``retrain`` wrote them.
    """
    named = None if is_remote(locator) else hub_name(locator)
    if named is not None:
        what = f"no such checkpoint: {locator} is no folder here, and what is scored is not downloaded"
        raise ModelError(what, fix=by_hand(named))
    if not is_remote(locator):
        locator = locator.removeprefix(HF)  # as the folder is called where it is a model's name
    path, carried = local(locator), None
    if (path / ADAPTER_FILE).is_file():
        return _with_base(path, locator), None
    if path.is_dir():
        path, carried = _in_folder(path, locator)
    checkpoint, carried = _verified(path, carried, locator)
    return checkpoint, placed(carried, RunFolder.of(locator).path)


def _with_base(folder: Path, locator: str) -> Checkpoint:
    """Adapters and the weights that they are put on, as one checkpoint.

    Raises:
        ModelError: one of the two is not there, or they are of another form.
    """
    read_adapter(folder)
    base = base_folder(folder)
    if (base / ADAPTER_FILE).is_file():
        what = "the base model of the adapters has adapters itself"
        raise ModelError(what, where=str(base), fix="merge them into it with peft: merge_and_unload()")
    of_base = find_checkpoint(str(base))[0]
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file() or of_base.files[0].suffix != ".safetensors":
        where = folder if not weights.is_file() else base
        raise ModelError("the weights are not there as safetensors", where=str(where), fix="save them so")
    own = _verified(weights, None, locator)[0]
    return Checkpoint(
        locator, (*own.files, *of_base.files), fingerprint("adapters", 1, own=own.digest, base=of_base.digest)
    )


def _verified(path: Path, carried: dict[str, Any] | None, locator: str) -> tuple[Checkpoint, dict[str, Any] | None]:
    """A file of weights by its digest, and the model spec that it carries where its folder says of none."""
    if not path.is_file():  # what would be waited for, such as a pipe, is none either
        what = "the checkpoint is no regular file" if path.exists() else "no such checkpoint"
        kept = path.parent.name == CHECKPOINTS and (path.parent.parent / RUN_FILE).is_file()
        fix = "copy the run folder again, or train again" if kept else "pass --checkpoint PATH (retrain: --init PATH)"
        raise ModelError(what, where=locator, fix=fix)
    refuse_pointer(path, ModelError)
    try:
        if path.name.endswith(INDEX_SUFFIX):
            files = _shards(path, locator)
            return Checkpoint(locator, files, tensor_digest(files)), carried
        if path.suffix == ".safetensors":
            digest = tensor_digest((path,))  # first: it finds damage
            RunFolder.of(path).check_weights(path, digest, whole=carried is not None)
            own = (read_weights_metadata(path, digest) or {}).get("model")
            if own is not None and not is_model(own):
                raise DamagedFile("its metadata say of no model that can be built")
            return Checkpoint(locator, (path,), digest), carried or own
        if path.suffix in TORCH_SUFFIXES:
            from influence_cli.model.torch_files import read_torch_file  # for these alone: it takes its time

            _check_zip(path)
            found = read_torch_file(path)
            refusal = None if found is None else found.refusal(path.name, locator)
            if refusal is not None:
                raise refusal
            digest = None if found is None else found.digest
            return Checkpoint(locator, (path,), digest or file_digest(path)), carried
    except DamagedFile as error:
        raise DamagedModel(f"the checkpoint is damaged ({error})", where=str(path), fix="copy it again") from error
    kind = f"unknown kind of checkpoint {path.suffix!r}" if path.suffix else "the checkpoint's name says of no kind"
    raise ModelError(kind, where=locator, fix="use .safetensors, .pt or .pth, or the folder that retrain wrote")


def find_model(
    locator: str, own_code: bool = False, language: bool = False
) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The same; where weights say nothing of their model, what the hub's ``config.json`` beside them says of it.

    ``language``: the rows have no labels, so that a folder of transformers is one of a language model.  With
    ``own_code`` the model is the user's, and a ``config.json`` says nothing of that.

    Raises:
        ModelError: as ``find_checkpoint``, and where that file cannot be read.
    """
    checkpoint, carried = find_checkpoint(locator)
    if carried is None and not own_code:
        folder = checkpoint.files[0].parent
        adapter = read_adapter(folder)
        base = folder if adapter is None else base_folder(folder)
        carried = read_hub_config(base) or spec_values(base, language=language)
        if carried is not None and adapter is not None:
            carried = {**carried, "adapter": adapter}
    return checkpoint, carried


def _in_folder(folder: Path, locator: str) -> tuple[Path, dict[str, Any] | None]:
    record = RunFolder(folder).read()  # where there is none, --model says what it is
    for name in IN_FOLDER:
        if (folder / name).exists():
            return folder / name, None if record is None else record.model
    what = f"no weights in the folder (looked for {', '.join(IN_FOLDER)})"
    raise ModelError(what, where=locator, fix="give a run folder of `retrain`, or the file itself")


def _check_zip(path: Path) -> None:
    """Verify the checksums in a torch file, which torch itself does not look at; older ones are no zip, with none.

    Raises:
        DamagedFile: a part of the file is not what was written.
    """
    if not is_zip(path):
        return
    with damage_told(), zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise DamagedFile(f"the checksum of {bad} differs")


def _shards(index: Path, locator: str) -> tuple[Path, ...]:
    """The files that an index of sharded safetensors names, in order."""
    refuse_pointer(index)
    try:
        names = sorted(set(parse_json(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"the index cannot be read ({error})", where=str(index), fix="copy it again") from error
    strange = next((name for name in names if not isinstance(name, str) or Path(name).name != name), None)
    if strange is not None:  # a file of somewhere else is no part of these weights
        raise ModelError(
            f"the index names {strange!r}, which is no file beside it", where=str(index), fix="copy it again"
        )
    files = tuple(index.parent / name for name in names)
    lost = next((file for file in files if not file.exists()), None)
    if lost is not None:
        raise ModelError(f"a shard is missing: {lost.name}", where=locator, fix="copy it beside the index")
    for file in files:
        refuse_pointer(file, ModelError)
    return files


@dataclass(frozen=True)
class Recorded:
    """One checkpoint on the way: after so many steps, with the learning rate of the last of them."""

    checkpoint: Checkpoint
    step: int
    learning_rate: float


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way to a final checkpoint; the other checkpoints are read and verified only when a method asks for them."""

    final: Checkpoint

    @functools.cached_property
    def folder(self) -> RunFolder:
        """The run folder of the final weights, if they are in one."""
        return RunFolder.of(self.final.locator)

    @property
    def record(self) -> RunRecord | None:
        """What it says of the training, read anew since a training may add to it; None where it says nothing."""
        return self.folder.read()

    @functools.cached_property
    def recorded(self) -> tuple[Recorded, ...]:
        """Checkpoints that ``retrain --keep-checkpoints`` wrote, in order of steps; none for weights without a run.

        Where the final one is one of them, they are those up to it.

        Raises:
            DamagedModel: one of them, or what the run folder says of it, cannot be read.
            ModelError: one of them is gone.
        """
        kept = () if self.record is None else self.record.checkpoints
        found = [Recorded(find_checkpoint(str(self.folder.path / k.file))[0], k.step, k.lr) for k in kept]
        last = next((n for n, k in enumerate(found) if k.checkpoint.digest == self.final.digest), len(found))
        return tuple(found[: last + 1])

    def kept(self, method: str, flags: str = "--keep-checkpoints 5") -> tuple[Recorded, ...]:
        """The same for a method that needs them.  Raises UsageError: there are none; names the flags that keep them."""
        if not self.recorded:
            what = f"{method} needs checkpoints that were kept during training, and there are none"
            raise UsageError(what, where=self.final.locator, fix=_train_with(flags))
        return self.recorded

    def travelled(self, method: str) -> list[float]:
        """The sum of the learning rates of the steps up to each kept checkpoint from the one before.

        Raises:
            UsageError: there are no checkpoints, or the run folder does not say how it was trained.
        """
        kept, recipe = self.kept(method), self.recipe(method)
        assert self.record is not None
        found, before = list[float](), 0
        steps = self.record.checkpoints[-1].step  # the last one that is kept is the end of training
        for k in kept:
            found.append(sum(recipe.rate(step, steps) for step in range(before, k.step)))
            before = k.step
        return found

    def recipe(self, method: str) -> Recipe:
        """How it was trained, for a method that needs its kept checkpoints.

        Raises:
            UsageError: there are no checkpoints, or the run folder does not say it.
        """
        from influence_cli.model.train.recipe import LBFGS, Recipe

        self.kept(method)
        record, known = self.record, {f.name for f in fields(Recipe)} - {"asked"}
        values = {} if record is None else {k: v for k, v in record.recipe.items() if k in known}
        if record is None or values.get("optimizer") == LBFGS or "schedule" not in values:
            what = f"{method} needs the learning rate of every step, and the run folder does not say it"
            fix = f"--set {method}.weights=lr, or train again" if method == "tracin" else "train again"
            raise UsageError(what, where=self.final.locator, fix=fix)
        return Recipe(**values)

    def by_epoch(self, method: str, value: str) -> EpochRecords:
        """Values of every row at every epoch of the training that ended in the final weights, for a method.

        Raises:
            UsageError: there are none, none of this ``value``, or the weights are not those that training ended with.
            DamagedModel: a file of them is not as it was written.
        """
        flag = "--record epochs"
        record = self._training(method, "what training noted of its rows at every epoch", flag)
        if not record.values:
            what = f"{method} needs what training noted of its rows at every epoch, and the run folder has none of it"
            raise UsageError(what, where=self.final.locator, fix=_train_with(flag))
        found = EpochRecords(self.folder, record.values)
        if value not in found.names():
            for _ in found.shards():  # each as it was written: another file in its place is named first
                pass
            what = f"{method} is about labels that are classes, and training noted no {value} of its rows"
            raise UsageError(what, where=self.final.locator, fix="use --method loss")
        return found

    def out_of_fold(self, method: str) -> FoldRecords:
        """Logits of every train row by models that were trained without it, for a method.

        Raises:
            UsageError: there are none, or the weights are not those that training ended with.
        """
        flag = "--folds 5"
        record = self._training(method, "models that were trained without the row that they judge", flag)
        if not record.folds:
            what = f"{method} needs models that were trained without the row that they judge, and there are none"
            raise UsageError(what, where=self.final.locator, fix=_train_with(flag))
        return FoldRecords(self.folder, record.folds)

    def moments(self, method: str) -> list[dict[str, Any]]:
        """The optimizer's state [...] by KIND.PARAMETER at every kept checkpoint, for a method that needs it.

        Kinds are exp_avg and exp_avg_sq of adamw, and momentum_buffer of sgd.

        Raises:
            UsageError: no checkpoint was kept, or not with its state.
            DamagedModel: a file is not as it was written.
        """
        kept, record = self.kept(method), self.record
        files = {} if record is None else {Path(n).stem.removeprefix("step-"): n for n in record.moments}
        if record is None or any(f"{k.step:06d}" not in files for k in kept):
            what = f"{method} needs the state of the optimizer at kept checkpoints, and the run folder has none"
            raise UsageError(what, where=self.final.locator, fix=_train_with("--keep-checkpoints 6 --record moments"))
        names = [files[f"{k.step:06d}"] for k in kept]
        return [self.folder.read_arrays(name, record.moments[name]) for name in names]

    def _training(self, method: str, needed: str, flag: str) -> RunRecord:
        """What the run folder says of the training that ended in the final weights."""
        record = self.record
        if record is None:
            what = f"{method} needs {needed}, and these weights have no run folder of `retrain`"
            raise UsageError(what, where=self.final.locator, fix=_train_with(flag))
        if (record.digests or {}).get(WEIGHTS_FILE) not in (None, self.final.digest):
            what = f"{method} is about a whole training, and this checkpoint is not the one that it ended with"
            raise UsageError(what, where=self.final.locator, fix="pass the run folder itself as --checkpoint")
        return record


def _train_with(flag: str) -> str:
    """How to have it."""
    return f"train again with them: `influence retrain MANIFEST ... {flag} -o RUN`, otherwise as before"
