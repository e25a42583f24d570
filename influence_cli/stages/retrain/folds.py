"""Out of fold: every train row judged by a model that was trained on the rows of the other folds (``--folds``).

Folds are by payload, so that equal rows never stand on both sides, and dealt out class by class.  A fold's model is
trained as the arm is, with its edits, recipe and seed; it judges rows as they are, without augmentation.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import label_called
from influence_cli.data.folds import dealt
from influence_cli.model.losses import loss_of
from influence_cli.model.run_folder import FOLDS, RunFolder
from influence_cli.model.training_records import FOLD_OF
from influence_cli.stages.retrain.arms import Arm
from influence_cli.stages.retrain.training_run import TrainingRun
from influence_cli.store.keys import fingerprint
from influence_cli.store.shards import positions, unique

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.data.manifest import Rows
    from influence_cli.events import Listener
    from influence_cli.stages.retrain.request import RetrainRequest

Ints = NDArray[np.int64]


def check_folds(request: RetrainRequest, base: Rows, listener: Listener) -> None:
    """Refuse (UsageError) more folds than rows before anything is trained; say where models may know rows already."""
    if not request.folds:
        return
    dealt(base, base.weights > 0, request.folds, request.seed)
    if request.init is not None and RunFolder.of(request.init).read() is not None:
        listener.warn(
            f"--folds from --init {request.init}: where that was trained on these rows, no model is without them, and "
            "what is out of fold is not"
        )


def out_of_fold(run: TrainingRun, arm: Arm, metrics: dict[str, Any]) -> dict[str, str]:
    """Train the folds' models of an arm's first seed, and keep what they say of the rows that they have not seen.

    Returns the files by name with their digests, and puts into ``metrics`` how good the models are on those rows.
    Nothing where no folds are asked for.  A fold that is there already is not trained again.
    """
    if not run.request.folds:
        return {}
    count, seed = run.request.folds, run.request.seed
    trained = arm.weights > 0
    fold, folder = dealt(run.base, trained, count, seed), run.folder(arm, seed)
    _say_rare(run, arm, fold)
    files, models = dict[str, str](), list[str]()
    logits: NDArray[np.floating] | None = None
    parts = [
        Arm(f"{arm.name}, fold {k + 1} of {count}", arm.labels, np.where(fold == k, 0.0, arm.weights))
        for k in range(count)
    ]
    every = [np.flatnonzero(fold == k) for k in range(count)]
    named = [f"{FOLDS}/fold-{k + 1}-of-{count}.safetensors" for k in range(count)]

    def work(k: int) -> None:
        _fold(run, parts[k], every[k], folder, named[k])

    run.share([(run.folder(parts[k], seed).path.name, functools.partial(work, k)) for k in range(count)])
    for part, rows, name in zip(parts, every, named, strict=True):
        digest, found = _fold(run, part, rows, folder, name)
        files[name] = digest
        logits = np.full((len(fold), found.shape[1]), np.nan) if logits is None else logits
        logits[rows] = found
        models += [str(run.folder(part, seed).path)] if run.request.keep_fold_models else []
    assert logits is not None
    measured = loss_of(run.spec).quality(logits[trained], arm.labels[trained])
    found = {"folds": count, "rows": int(trained.sum()), **measured}
    metrics["out_of_fold"] = {**found, **({"models": models} if models else {})}
    return files


def _fold(run: TrainingRun, arm: Arm, rows: Ints, folder: RunFolder, name: str) -> tuple[str, NDArray[np.floating]]:
    """Digest of a fold's file, and logits of its rows in the order that they stand in; trained where it is not kept."""
    keys, seed = run.base.payload_keys[rows], run.request.seed
    ours = run.folder(arm, seed)
    first = unique(keys)
    about = {"of": FOLD_OF, "training": ours.path.name, "rows": fingerprint("fold", 1, keys=_hex(keys[first]))}
    at = positions(keys, keys[first])
    kept = folder.kept_arrays(name, about)
    if kept is not None and (not run.request.keep_fold_models or ours.read() is not None):
        digest, arrays = kept
        return digest, arrays["logits"][at]
    if run.request.keep_fold_models:
        run.train(arm, seed, False)
        model = run.trained(ours)
    else:
        model = run.fit(arm, seed, f"train {arm.name}, seed {seed}", ours)[0]
    logits = _judged(run, model, rows[first])
    digest = folder.write_arrays(name, {"payload_keys": np.ascontiguousarray(keys[first]), "logits": logits}, about)
    return digest, logits[at]


def _judged(run: TrainingRun, model: nn.Module, rows: Ints) -> NDArray[np.floating]:
    """Logits of some train rows in evaluation mode, in the precision of the model's weights."""
    import torch

    from influence_cli.model.train.sgd import predict

    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    logits = predict(model, run.sets["train"].only(rows), run.device)
    return logits if dtype == torch.float64 else logits.astype(np.float32)


def _hex(keys: NDArray[np.uint8]) -> list[str]:
    return sorted(key.tobytes().hex() for key in keys)


def _say_rare(run: TrainingRun, arm: Arm, fold: Ints) -> None:
    """Name the classes of which a fold's model sees no row: it cannot know them, and their rows look wrong."""
    trained, labels = arm.weights > 0, arm.labels
    if not loss_of(run.spec).by_class:
        return
    rare = [c for c in np.unique(labels[trained]).tolist() if len(np.unique(fold[trained & (labels == c)])) == 1]
    if rare:
        named = ", ".join(label_called(run.base.manifest.classes, c) for c in rare[:5])
        run.listener.warn(f"a fold's model sees no row of {named}: out of fold such rows look wrong whatever they are")
