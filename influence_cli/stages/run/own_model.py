"""A model of the user's own is known by what it does, since code cannot be hashed honestly: it calls other code.

The store keeps the model's outputs on a few rows; where a later run with the same weights gives other outputs on those
rows, the code has changed, and everything that depends on it is computed anew under another name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import CLASSES
from influence_cli.errors import InfluenceError, ModelError, UsageError
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.losses import loss_in_spec
from influence_cli.model.new_spec import new_spec, outputs_of
from influence_cli.model.seeded import seed_draws
from influence_cli.model.spec import ModelSpec
from influence_cli.model.task import Task, checked_task, own_code, text_of_error
from influence_cli.stages.run.class_map import with_class_order, with_outputs
from influence_cli.store.keys import canonical_json, fingerprint
from influence_cli.store.sealed import serialized_digest

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.data.manifest import Manifest
    from influence_cli.settings import Inputs
    from influence_cli.store import Store


PROBES = 8  # rows by whose outputs a model's code is known
AGREEMENT = 1e-4  # of the largest logit: more than rounding, less than any change that matters


def weights_digest(model: nn.Module) -> str:
    """Digest of a module's state: that of a safetensors file with the same tensors."""
    from safetensors.torch import save

    state = model.state_dict()
    return serialized_digest(save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}))


def task_spec(inputs: Inputs, manifest: Manifest, store: Store | None) -> ModelSpec:
    """The spec of a model of the user's own, given through the Python API or made by ``python:...``.

    Raises:
        UsageError: a plain module that needs to be told how images become its input.
    """
    task, plain = (checked_task(inputs.task), False) if inputs.task is not None else own_code(inputs.model or "")
    if not plain:
        name = inputs.model or f"task:{task.name or _name_of(task)}"
        outputs = inputs.num_classes or (len(manifest.classes) if manifest.classes else 0)
        if manifest.label_kind.holds != CLASSES:
            outputs = outputs_of(inputs, manifest)
        loss = loss_in_spec(inputs.loss, manifest.label_kind, own=task.loss is not None)
        return ModelSpec(name, outputs, "task", (), classes=manifest.classes, loss=loss, task=task)
    if not manifest.payload_kind.as_it_is and (inputs.mean is None or inputs.std is None):
        fix = "pass --mean and --std, or return an influence_cli.Task with a transform"
        raise UsageError(f"{inputs.model} does not say how images become its input", fix=fix)
    return replace(new_spec(inputs, manifest, store), task=task)


def resolve_task(
    inputs: Inputs, manifest: Manifest, store: Store, checkpoint: Checkpoint | None, precision: str
) -> tuple[ModelSpec, Checkpoint]:
    """Spec and weights of a scoring run whose model is the user's own code.

    Raises:
        ModelError: the model does not run on the manifest's rows.
    """
    spec = with_class_order(task_spec(with_outputs(inputs), manifest, store), inputs, manifest, inputs.checkpoint or "")
    assert spec.task is not None
    model = spec.task.build()  # once: a function may make other weights every time
    spec = replace(spec, task=replace(spec.task, model=model))
    if checkpoint is None:
        checkpoint = Checkpoint(spec.name, (), weights_digest(model))
    return known_by_outputs(spec, checkpoint, manifest, store, precision), checkpoint


def training_spec(inputs: Inputs, manifest: Manifest, store: Store) -> ModelSpec:
    """The spec of a model of the user's own that is to be trained, known by what it gives untrained, from seed 0.

    Raises:
        ModelError: the model does not run on the manifest's rows.
    """
    spec = with_class_order(task_spec(with_outputs(inputs), manifest, store), inputs, manifest, inputs.model or "")
    return known_untrained(spec, manifest, store)


def known_untrained(spec: ModelSpec, manifest: Manifest, store: Store) -> ModelSpec:
    """The spec with the name of its code, by what it gives untrained, from seed 0."""
    import torch

    assert spec.task is not None
    with torch.random.fork_rng(devices=[]):
        seed_draws(0)
        model = spec.task.build()
    fixed = replace(spec, code=None, task=replace(spec.task, model=model))
    known = known_by_outputs(fixed, Checkpoint(spec.name, (), weights_digest(model)), manifest, store, "fp32")
    return replace(known, task=spec.task)


def _name_of(task: Task) -> str:
    kind: Any = task.model if callable(task.model) and hasattr(task.model, "__qualname__") else type(task.model)
    return f"{kind.__module__}.{kind.__qualname__}"


def known_by_outputs(
    spec: ModelSpec, checkpoint: Checkpoint, manifest: Manifest, store: Store, precision: str
) -> ModelSpec:
    """The spec with the name of its code: the stored one that agrees on the rows that both know, or a new one.

    Raises:
        ModelError: the model does not run on the rows.
    """
    from influence_cli.model.build import load_model
    from influence_cli.model.parameters import frozen_parameters

    rows = manifest.all_rows()
    keys = [k.tobytes().hex() for k in rows.payload_keys]
    place = dict(zip(reversed(keys), reversed(rows.index.tolist()), strict=True))
    own_loss = spec.task is not None and spec.task.loss is not None
    model = load_model(spec, checkpoint)
    may_be_one = spec.one_logit is None and spec.loss is None and not own_loss and spec.num_classes in (0, 2)
    if may_be_one and _gives_one_logit(model, spec, manifest, place):
        spec = replace(spec, one_logit=True)
        model = load_model(spec, checkpoint)
    name = fingerprint("task", 1, weights=checkpoint.digest, spec=spec.as_dict())
    revisions = store.task_revisions(name)
    known = [k for r in revisions for k in r["outputs"] if k in place]
    wanted = list(dict.fromkeys([*known, *sorted(place)[:PROBES]]))
    frozen = frozen_parameters(model)
    found = probe(model, spec, manifest, {k: place[k] for k in wanted}, precision)
    classes = len(next(iter(found.values())))
    if spec.num_classes not in (0, classes):
        raise ModelError(
            f"the model gives {classes} outputs a row where {spec.num_classes} are asked for", fix="correct one"
        )
    if not own_loss and _are_probabilities(list(found.values())):
        what = f"the outputs of {spec.name} are between 0 and 1 and add up to 1 in every row: probabilities, not logits"
        raise ModelError(what, fix="leave the softmax out of the model, or give a Task with a loss of probabilities")
    spec = replace(spec, num_classes=classes, head=_head(model, spec, manifest, place))
    for revision in revisions:
        shared = [k for k in revision["outputs"] if k in found]
        if shared and all(_agree(np.array(revision["outputs"][k], dtype=np.float64), found[k]) for k in shared):
            missing = {k: _plain(v) for k, v in found.items() if k not in revision["outputs"]}
            if missing and len(shared) < PROBES:
                revision["outputs"].update(missing)
                store.write_task_revisions(name, revisions)
            return replace(spec, code=_code(revision["code"], frozen))
    outputs = {k: _plain(v) for k, v in found.items()}
    code = hashlib.blake2b(canonical_json([name, len(revisions), outputs]).encode(), digest_size=16).hexdigest()
    store.write_task_revisions(name, [*revisions, {"code": code, "outputs": outputs}])
    return replace(spec, code=_code(code, frozen))


def _are_probabilities(rows: list[NDArray[np.float64]]) -> bool:
    """Whether every one of several rows of outputs is a distribution, which logits are not by chance."""
    values = np.stack(rows)
    near = np.isfinite(values).all() and (values >= 0).all() and np.abs(values.sum(axis=1) - 1.0).max() < 1e-4
    return bool(near and len(values) > 2 and values.shape[1] > 1)


def _gives_one_logit(model: nn.Module, spec: ModelSpec, manifest: Manifest, rows: dict[str, int]) -> bool:
    """Whether the model gives one number a row, as two rows show it: the logit of the second of two classes."""
    import torch

    def shapes(x: Any) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(model(x).shape)

    found = _tried(model, spec, manifest, rows, 2, shapes)
    return found in ((2,), (2, 1))


def _tried(
    model: nn.Module, spec: ModelSpec, manifest: Manifest, rows: dict[str, int], count: int, what: Callable[[Any], Any]
) -> Any:
    """What comes of a few rows as the model's argument; None where none decodes, or code of the user's fails."""
    from influence_cli.model.examples import batches, to_input
    from influence_cli.model.named_tensors import as_argument

    payloads = list(manifest.payloads(np.array(sorted(set(rows.values()))[:PROBES], dtype=np.int64)))
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    for _, decoded in batches(manifest, [payloads], spec, 1, on_bad=lambda *_: None):
        if kind is not None and len(decoded) >= count:
            try:
                return what(as_argument(to_input(decoded[:count], spec, kind)))
            except (Exception, SystemExit, GeneratorExit):
                return None
    return None


def _head(model: nn.Module, spec: ModelSpec, manifest: Manifest, rows: dict[str, int]) -> str | None:
    """The name of the layer that makes the logits, as one row that can be decoded shows it; "" where there is none."""
    from influence_cli.model.logit_layer import logit_layer

    if not any(p.is_floating_point() for p in model.parameters()):
        return None
    return _tried(model, spec, manifest, rows, 1, lambda x: logit_layer(model, x)) or ""


def _code(code: str, frozen: list[str]) -> str:
    """The name of code that has frozen parameters: they are no part of gradients, and outputs do not show it."""
    if not frozen:
        return code
    return hashlib.blake2b(canonical_json([code, frozen]).encode(), digest_size=16).hexdigest()


def _plain(logits: NDArray[np.float64]) -> list[float | str]:
    """Logits for JSON, which has no name for what is not finite."""
    return [v if np.isfinite(v) else str(v) for v in logits.tolist()]


def _agree(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    if a.shape != b.shape:
        return False
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return False
    largest = float(np.abs(a[finite]).max(initial=1e-12))
    return bool(np.abs(a[finite] - b[finite]).max(initial=0.0) <= AGREEMENT * largest)


def probe(
    model: nn.Module, spec: ModelSpec, manifest: Manifest, rows: dict[str, int], precision: str
) -> dict[str, NDArray[np.float64]]:
    """Logits [C] that a model in evaluation mode gives a few rows, by payload key.

    Raises:
        ModelError: the model fails on them, its output is not logits [n, C], or rows depend on each other.
    """
    import torch

    from influence_cli.engines.point import Point
    from influence_cli.model.examples import batches, to_input
    from influence_cli.model.named_tensors import shape_of

    order = sorted(set(rows.values()))
    payloads = list(manifest.payloads(np.array(order, dtype=np.int64)))
    point = Point(model, "all", None, "fp32" if precision == "bf16" else precision, torch.device("cpu"))
    by_row, reasons = dict[int, NDArray[np.float64]](), list[str]()
    heard = lambda _, why: reasons.append(why)  # noqa: E731  (the pass names bad rows)
    for index, decoded in batches(manifest, [payloads], spec, 1, on_bad=heard):
        try:
            x = to_input(decoded, spec, point.dtype)
            z, _ = point.outputs(x, [])
            alone, _ = point.outputs(x[:1], [])
        except InfluenceError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # whatever code of the user's raises
            plain = isinstance(error, RuntimeError | TypeError | IndexError | ValueError) and str(error)
            what = str(error) if plain else text_of_error(error)
            raise ModelError(
                f"the model {spec.name} fails on inputs of shape {shape_of(decoded)} ({what})",
                fix="check that the transform gives what the model takes",
            ) from error
        # every row is looked at: what is drawn by chance may leave one as it was
        if not _agree(z.double().numpy(), point.outputs(x, [])[0].double().numpy()) and bool(z.isfinite().all()):
            raise ModelError(
                f"the model {spec.name} gives the same rows other logits when it is run twice: it is random",
                fix="let nothing be drawn by chance in evaluation mode: F.dropout(x, training=self.training)",
            )
        if not _agree(z[:1].double().numpy(), alone.double().numpy()) and bool(z[:1].isfinite().all()):
            raise ModelError(
                f"the model {spec.name} gives row id={manifest.ids[int(index[0])]} other logits alone than in a batch",
                fix="let no row's output depend on the others of its batch; a score belongs to one row",
            )
        by_row.update(zip(index.tolist(), z.double().numpy(), strict=True))
    if not by_row:
        fix = "check the task's transform: it fails on every one of them"
        what = f"none of the first {len(order)} rows can be decoded: {reasons[0] if reasons else 'there is none'}"
        raise ModelError(what, where=manifest.source, fix=fix)
    return {key: by_row[row] for key, row in rows.items() if row in by_row}
