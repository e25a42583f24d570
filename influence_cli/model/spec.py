"""Which model, from what input, with which weights: plain data, resolved without importing torch where possible.

A checkpoint that ``retrain`` wrote says all of this itself (``run.json``, or the metadata of the file).  For any
other file the architecture comes from ``--model`` and its input from timm's configuration, remembered in the store
under timm's version so that a warm run need not import timm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.protocol import Kind
from influence_cli.errors import UsageError
from influence_cli.model.task import PYTHON
from influence_cli.model.text_input import TextInput

if TYPE_CHECKING:
    from influence_cli.model.task import Task


# left out where they say nothing, since they came later
_LATER = ("crop", "code", "order", "features", "one_logit", "network", "text", "loss", "adapter")
TORCHVISION = "torchvision:"  # prefix of torchvision's own architectures
ENCODER = "encoder:"  # prefix of encoders of transformers of which only the features are wanted
GPT = "gpt"  # and "gpt:LAYERSxWIDTH": a small GPT that is trained from nothing
NEXT_TOKEN = "next-token"  # the loss of a language model, which is the output that it gives of a row


@dataclass(frozen=True)
class ModelSpec:
    """An architecture and how a payload becomes its input."""

    name: str  # a timm name, "torchvision:NAME", "linear", "mlp:128", "gpt:4x128", "hf:bert", "python:PKG.MOD:FACTORY"
    num_classes: int
    kind: str  # the name of the payload's, or "task" where a transform of the user's own makes the input
    shape: tuple[int, ...]  # [channels, height, width] of images, [d] of features, [most tokens] of texts
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"
    decoder: str = "pillow"
    classes: tuple[str, ...] | None = None
    crop: float | None = None  # None: stretch to the size; else cut the middle, as timm and torchvision evaluate
    code: str | None = None  # of a model of the user's own: what its outputs on a few rows are known by
    order: tuple[int, ...] | None = None  # which output of the weights each class is; None: as they stand
    features: tuple[str, ...] | None = None  # what each feature is that it was trained on, where the rows said so
    head: str | None = field(default=None, compare=False, repr=False)  # see ``model.logit_layer``
    one_logit: bool | None = None  # of two classes the model gives the second one's logit alone; None: a logit a class
    network: str | None = None  # of a model of transformers: its configuration, as sorted JSON
    text: TextInput | None = None  # of a model of text: its tokenizer, and how long texts may be
    adapter: str | None = None  # of LoRA adapters on such a model: what decides on their numbers, as sorted JSON
    loss: str | None = None  # see ``model.losses``; None: cross-entropy, or that of a task whose labels are classes
    task: Task | None = field(default=None, compare=False, repr=False)

    @property
    def is_language(self) -> bool:
        """Whether the model predicts the next tokens of its texts, and no label."""
        return self.loss == NEXT_TOKEN

    @property
    def payload_kind(self) -> Kind:
        """What its input is made of."""
        return KINDS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for fingerprints; what came later is left out where it says nothing."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("task", "head")}
        values["text"] = None if self.text is None else self.text.as_dict()
        values |= {n: None if values[n] is None else json.loads(values[n]) for n in ("network", "adapter")}
        return json.loads(json.dumps({k: v for k, v in values.items() if v is not None or k not in _LATER}))

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ModelSpec:
        """The inverse of ``as_dict``."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "task"}
        text = known.pop("text", None)
        for name in ("network", "adapter"):
            known[name] = None if known.get(name) is None else json.dumps(known[name], sort_keys=True)
        return ModelSpec(**known, text=None if text is None else TextInput.from_dict(text))


def is_plain(name: str) -> bool:
    """Whether the architecture is ours (``linear``, ``mlp:...``), not timm's."""
    return name == "linear" or name.startswith("mlp:") or name == "mlp"


def is_gpt(name: str | None) -> bool:
    """Whether a model is a GPT of our own."""
    return name is not None and name.partition(":")[0] == GPT


def is_own(name: str | None) -> bool:
    """Whether the architecture is the user's Python code."""
    return name is not None and name.startswith(PYTHON)


def refuse_pretrained(pretrained: bool, name: str | None, own: bool) -> None:
    """Refuse --pretrained of a model that timm has no weights for (UsageError)."""
    ours = name is not None and (own or is_plain(name) or is_gpt(name))
    if not pretrained or name is None or not (ours or name.startswith(("hf:", TORCHVISION))):
        return
    if name.startswith("hf:"):
        what = f"--pretrained downloads weights by their name, and {name} is a folder that is here"
        raise UsageError(what, fix="leave it out: training begins with the folder's weights")
    raise UsageError(f"--pretrained is for timm models and names of the hub, and {name} is neither", fix="leave it out")


def code_named_by_data(name: str, where: str) -> UsageError:
    """The error for a file that names code: whoever wrote the file must not choose what runs here."""
    what = f"a file names the model {name}, which is code, and only a flag or a setting may name code"
    return UsageError(what, where=where, fix=f"pass --model {name} to say that you trust it")
