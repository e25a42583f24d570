"""Architectures by name, and weights into them."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.errors import ModelError, disk_full, nearest
from influence_cli.events import SILENT, Listener
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.examples import blank_input, to_input
from influence_cli.model.lean_imports import import_timm
from influence_cli.model.logit_layer import HEAD
from influence_cli.model.named_tensors import as_argument, from_arrays
from influence_cli.model.parameters import in_precision
from influence_cli.model.spec import ENCODER, TORCHVISION, ModelSpec, code_named_by_data, is_gpt, is_own, is_plain
from influence_cli.model.weights import load_weights
from influence_cli.model.without_draws import WithoutDraws
from influence_cli.settings import INTERPOLATIONS


def timm_config(name: str) -> dict[str, Any]:
    """Input shape, mean, sd and interpolation that timm states for an architecture.

    Raises:
        ModelError: timm does not know the name.
    """
    if name.startswith(TORCHVISION):
        _known_to_torchvision(name)
        sizes = {"shape": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        return {**sizes, "interpolation": "bilinear", "crop": 0.875}
    timm = import_timm()
    _known_to_timm(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return {"shape": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    return {
        "shape": list(config.input_size),
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation if config.interpolation in INTERPOLATIONS else "bicubic",
        "crop": config.crop_pct if config.crop_mode in (None, "center") else None,
    }


def _known_to_timm(name: str) -> None:
    timm = import_timm()
    if not timm.is_model(name.split(".")[0]):
        known = timm.list_models()
        raise ModelError(f"unknown model {name!r}", fix=nearest(name, [*known, "linear", "mlp:128"])[:200])


def _known_to_torchvision(name: str) -> None:
    from torchvision.models import list_models

    known = list_models()
    if name.removeprefix(TORCHVISION) not in known:
        raise ModelError(f"unknown model {name!r}", fix=nearest(name.removeprefix(TORCHVISION), known)[:200])


class MLP(nn.Module):
    """Flatten, hidden layers with ReLU, and a linear ``head``; no hidden layers make a linear model."""

    def __init__(self, inputs: int, hidden: list[int], num_classes: int) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, C] of inputs [n, ...]."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class OutputOrder:
    """A forward hook that puts a model's logits into the order of the classes."""

    def __init__(self, order: tuple[int, ...]) -> None:
        """``order`` says which output each class is."""
        self.order = order

    def __call__(self, model: nn.Module, args: Any, out: Any) -> Any:
        """Logits [n, C], class by class; anything else is refused where logits are asked for.

        Raises:
            ModelError: there are not as many outputs as classes.
        """
        if not isinstance(out, Tensor) or out.ndim != 2:
            return out
        if out.shape[1] != len(self.order):
            what = f"the model has {out.shape[1]} outputs, and --class-map names {len(self.order)} classes"
            raise ModelError(what, fix="name every output, in order")
        return out.index_select(1, torch.tensor(self.order, device=out.device))


class OneLogit:
    """A forward hook that makes a logit z [n] or [n, 1] of the second of two classes the logits (-z/2, z/2) [n, 2].

    Their cross-entropy is the binary cross-entropy of z, with all its derivatives.
    """

    def __call__(self, model: nn.Module, args: Any, out: Any) -> Any:
        """Logits [n, 2]; anything else is refused where logits are asked for."""
        if not isinstance(out, Tensor) or out.ndim not in (1, 2) or (out.ndim == 2 and out.shape[1] != 1):
            return out
        half = out.reshape(-1) / 2
        return torch.stack([-half, half], 1)


def as_column(model: nn.Module, args: Any, out: Any) -> Any:
    """A forward hook that makes predictions [n] outputs [n, 1]; anything else stays."""
    return out[:, None] if isinstance(out, Tensor) and out.ndim == 1 else out


def build_model(spec: ModelSpec, pretrained: bool = False, values: bool = True) -> nn.Module:
    """An untrained model (or timm's pretrained one) for a spec, with its logits in the order of the classes.

    Without ``values`` parameters of an architecture known by name are not drawn: their names and shapes matter alone.

    Raises:
        ModelError: the name is unknown, or the architecture refuses the input.
    """
    known = spec.task is None and spec.network is None and not is_own(spec.name)
    named = known and not is_gpt(spec.name) and not spec.name.startswith(ENCODER)
    with contextlib.nullcontext() if values or not named else WithoutDraws():
        return _in_order(_build(spec, pretrained), spec)


def _in_order(model: nn.Module, spec: ModelSpec) -> nn.Module:
    if spec.head is not None:
        setattr(model, HEAD, spec.head)
    if spec.one_logit:
        model.register_forward_hook(OneLogit())
    if spec.num_classes == 1:
        model.register_forward_hook(as_column)
    if spec.order is not None:
        model.register_forward_hook(OutputOrder(spec.order))
    _give_all_gradients(model)
    return model


def _give_all_gradients(model: nn.Module) -> None:
    """Let embeddings whose weights another layer has too forget their padding index; logits stay.

    Backward mode drops the embedding's share of that row's gradient and forward mode does not: with the other layer's
    share in the direction, they would differ.
    """
    used = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    for module in model.modules():
        if isinstance(module, nn.Embedding) and used.count(id(module.weight)) > 1:
            module.padding_idx = None


def _build(spec: ModelSpec, pretrained: bool) -> nn.Module:
    if spec.task is not None:
        return spec.task.build()
    if spec.name.startswith(ENCODER):
        from influence_cli.model.encoder import build_encoder

        return build_encoder(spec)
    if spec.network is not None:
        from influence_cli.model.transformers_model import build

        return build(spec)
    if is_own(spec.name):  # code is made a task where it is named; a name alone is data
        raise code_named_by_data(spec.name, "")
    if is_gpt(spec.name):
        from influence_cli.model.gpt import of_spec

        return of_spec(spec)
    if is_plain(spec.name):
        _, _, tail = spec.name.partition(":")
        try:
            hidden = [int(n) for n in tail.split(",") if n] if tail else ([] if spec.name == "linear" else [128])
        except ValueError as error:
            raise ModelError(f"cannot read model {spec.name!r}", fix="write mlp:128,128") from error
        if any(n < 1 for n in hidden):
            raise ModelError(f"{spec.name} has a layer without units", fix="write mlp:128,128")
        try:
            return MLP(math.prod(spec.shape), hidden, spec.num_classes)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            what = f"{spec.name} for input {spec.shape} is too large for the memory"
            raise ModelError(what, fix="see what the checkpoint says of its model") from error
    if spec.name.startswith(TORCHVISION):
        from torchvision.models import get_model

        _known_to_torchvision(spec.name)
        if pretrained:
            raise ModelError("--pretrained is for timm models", fix="name timm's model, or pass --init CHECKPOINT")
        return get_model(spec.name.removeprefix(TORCHVISION), weights=None, num_classes=spec.num_classes)
    timm = import_timm()
    _known_to_timm(spec.name)
    arguments: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.shape[0]}
    config = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = spec.shape[1:]
    try:
        return timm.create_model(spec.name, pretrained=pretrained, **arguments)
    except Exception as error:
        if pretrained and not isinstance(error, MemoryError) and not disk_full(error):
            build_model(spec)  # says so where the input is at fault, and not the weights
            raise _no_pretrained(spec.name, error) from error
        if not isinstance(error, TypeError | AssertionError | RuntimeError):
            raise
        what = f"{spec.name} cannot be built for input {spec.shape}: {error}"
        raise ModelError(what, fix="try another --input-size") from error


def _no_pretrained(name: str, error: Exception) -> ModelError:
    """What is wrong where timm has no weights for a model, or they cannot be downloaded."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    fix = (
        "pass --init CHECKPOINT with weights that you have; or run once where there is a network, which keeps them "
        "in the cache of huggingface_hub (HF_HOME), and set HF_HUB_OFFLINE=1 where there is none"
    )
    return ModelError(f"the pretrained weights of {name} cannot be had ({type(error).__name__}: {why})", fix=fix)


def load_model(
    spec: ModelSpec, checkpoint: Checkpoint, dtype: torch.dtype | None = None, listener: Listener = SILENT,
    to_train: bool = False, built: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """The model of a spec with a checkpoint's weights, in evaluation mode; with ``dtype`` read into that precision.

    With ``to_train`` torch's random numbers are taken as building the model anew takes them.  One that is ``built``
    already, of the same spec, is given the weights.

    Raises:
        ModelError: the checkpoint does not fit; names tensors, expected and found shapes.
    """
    if spec.network is not None:
        from influence_cli.model.transformers_model import load

        model = in_precision(_in_order(load(spec, checkpoint), spec), dtype)
    else:
        if built is None or to_train or not checkpoint.files:
            built = build_model(spec, values=to_train or not checkpoint.files)
        model = in_precision(built, dtype)
        model = load_weights(model, checkpoint, spec.name, listener) if checkpoint.files else model.eval()
    check_input(model, spec)
    return model


def start_model(spec: ModelSpec, checkpoint: Checkpoint, listener: Listener = SILENT) -> nn.Module:
    """The model that a training begins with; one of transformers gets a new head where the checkpoint's does not fit.

    Raises:
        ModelError: the checkpoint does not fit.
    """
    if spec.network is None:
        return load_model(spec, checkpoint, to_train=True)
    from influence_cli.model.transformers_model import load_start

    model = _in_order(load_start(spec, checkpoint, listener), spec)
    check_input(model, spec)
    return model


def check_input(model: nn.Module, spec: ModelSpec) -> None:
    """Run one blank input, in evaluation mode: not every architecture takes every size.  Code of the user's is probed.

    Raises:
        ModelError: the model fails on it.
    """
    if spec.task is not None:
        return
    training, kind = model.training, next(model.parameters()).dtype
    try:
        with torch.no_grad():
            model.eval()(as_argument(blank_input(spec, 1, kind)))
        refuse_filling(model, spec)
    except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
        what = f"{spec.name} does not take input {spec.shape} ({error})"
        fix = "give another architecture" if spec.payload_kind.ragged else "try another --input-size"
        raise ModelError(what, fix=fix) from error
    finally:
        model.train(training)


def refuse_filling(model: nn.Module, spec: ModelSpec) -> None:
    """Refuse a model whose logits of a row depend on how far its batch is filled up: a score belongs to one row.

    Raises:
        ModelError: they do.
    """
    pair = spec.payload_kind.filled(spec)
    if pair is None:
        return
    kind = next(model.parameters()).dtype
    with torch.no_grad():
        alone, beside = (model(as_argument(to_input(from_arrays(x), spec, kind)))[:1].double() for x in pair)
    off = float((alone - beside).abs().max()) / max(float(alone.abs().max()), 1e-6)
    if not off <= (5e-2 if kind == torch.bfloat16 else 2e-5):
        what = f"{spec.name} gives a row other logits alone than beside a longer row (by {off:.1e}): no mask hides "
        fix = "take an architecture that hides filling, such as BERT, RoBERTa, DeBERTa, GPT-2 or Llama"
        raise ModelError(f"{what}from it what its batch is filled up with", fix=fix)


def device_of(name: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.  Raises ModelError: it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} is not available", fix="pass --device cpu") from error
    return device
