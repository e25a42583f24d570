"""Torch files as training scripts leave them: read as data, known by their tensors, and what is code is named."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import os
import pathlib
import random
import types
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from influence_cli.errors import ModelError
from influence_cli.model.build import build_model, load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.lean_imports import compiler_put_off
from influence_cli.model.spec import ModelSpec
from influence_cli.model.torch_files import read_torch_file
from influence_cli.model.weights import read_weights
from influence_cli.settings import GradSpec
from influence_cli.store.files import file_digest
from tests.cases import Heard, examples, feature_table, job_of, run_without_torch, write
from tests.opened import score

SPEC = ModelSpec("mlp:7", 4, "features", (5,))


def trained() -> nn.Module:
    torch.manual_seed(1)
    return build_model(SPEC).eval()


def saved(path: Path, value: Any, **how: Any) -> Path:
    torch.save(value, path, **how)
    return path


def loads(path: Path, heard: Heard | None = None) -> nn.Module:
    return load_model(SPEC, find_checkpoint(str(path))[0], None, heard or Heard())


PLAIN: dict[str, Any] = {
    "timm's args": argparse.Namespace(lr=0.1, model="resnet18", output=pathlib.Path("out")),
    "namespace": types.SimpleNamespace(a=1),
    "history": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "counts": collections.defaultdict(int, a=3),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "dates": [datetime.datetime.now(datetime.UTC), datetime.date.today(), datetime.timedelta(3), datetime.time(4)],
    "path": pathlib.PosixPath("/data"),
    "windows": pathlib.PureWindowsPath("C:\\data"),
    "decimal": decimal.Decimal("1.5"),
    "uuid": uuid.uuid4(),
    "sets": [{1, 2}, frozenset([3]), b"x", bytearray(b"y"), 1j, range(3), slice(1, 2), float("nan"), None, int],
    "numpy": [np.float64(0.91), np.int32(2), np.bool_(True), np.str_("a"), np.dtype("float32"), np.float32],
    "arrays": [
        np.arange(3.0),
        np.array(["a", "b"]),
        np.array([1, "a", None], dtype=object),
        np.datetime64("2020-01-01"),
    ],
    "random states": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
    "torch's": [torch.device("cpu"), torch.float32, torch.Size([1, 2])],
}


@pytest.mark.parametrize("what", list(PLAIN))
def test_plain_data_beside_the_weights_are_read(what: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    path = saved(tmp_path / "model_best.pth.tar", {"epoch": 3, "state_dict": state, "also": PLAIN[what]})
    found = loads(path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


class Choice(enum.Enum):
    ONE = 1


with compiler_put_off():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
CODE: dict[str, tuple[Any, str]] = {
    "a class": (argparse.ArgumentParser, "argparse.ArgumentParser"),
    "a function": (os.path.join, "posixpath.join"),
    "an enum of one's own": (Choice.ONE, f"{__name__}.Choice"),
    "an optimizer": (optimizer, "torch.optim.sgd.SGD"),
    "a module": (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("what", list(CODE))
def test_code_is_named_with_how_to_save_without_it(what: str, tmp_path: Path) -> None:
    value, name = CODE[what]
    path = saved(tmp_path / "c.pth", {"state_dict": trained().state_dict(), "also": value})
    with pytest.raises(ModelError, match="cannot be read as data: it needs") as raised:
        loads(path)
    assert name in raised.value.what
    assert "torch.load('c.pth', weights_only=False)['state_dict']" in raised.value.fix


@pytest.mark.parametrize(
    ("keys", "hold"),
    [
        ("", lambda m: m),
        ("['model']", lambda m: {"optimizer": torch.optim.SGD(m.parameters(), lr=0.1), "model": m}),
        ("['my net']", lambda m: {"epoch": 3, "my net": m}),
        ("['ema']['net']", lambda m: {"ema": {"step": 1, "net": m}, "args": argparse.Namespace(lr=0.1)}),
        ("[0]", lambda m: {0: m}),
    ],
)
def test_the_fix_for_a_whole_module_leads_to_its_weights(
    keys: str, hold: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained()
    path = saved(tmp_path / "whole.pt", hold(model))
    with pytest.raises(ModelError, match="cannot be read as data") as raised:
        loads(path)
    code = raised.value.fix.removeprefix("where you trust the file, save its weights alone: ")
    assert code == f"torch.save(torch.load('whole.pt', weights_only=False){keys}.state_dict(), 'weights.pt')"
    monkeypatch.chdir(tmp_path)
    exec(code, {"torch": torch})
    assert loads(tmp_path / "weights.pt").state_dict().keys() == model.state_dict().keys()


def test_code_is_named_in_files_of_other_forms_too(tmp_path: Path) -> None:
    state = trained().state_dict()
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear") as raised:
        loads(saved(tmp_path / "whole.pt", trained()))
    assert "weights_only=False).state_dict()" in raised.value.fix
    old = {"state_dict": state, "also": argparse.ArgumentParser}
    with pytest.raises(ModelError, match=r"argparse\.ArgumentParser"):
        loads(saved(tmp_path / "old.pt", old, _use_new_zipfile_serialization=False))
    loads(saved(tmp_path / "older.pt", {"model": state, **PLAIN}, _use_new_zipfile_serialization=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch does not want to be used any more
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(ModelError, match="TorchScript") as raised:
        loads(tmp_path / "script.pt")
    assert "torch.jit.load('script.pt').state_dict()" in raised.value.fix
    (tmp_path / "junk.pt").write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match="damaged, or no file that"):
        loads(tmp_path / "junk.pt")


# ---- known by their tensors -----------------------------------------------------------------------------------------


def as_views(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, as parts of one storage."""
    whole = torch.cat([torch.ones(3), *(value.flatten() for value in state.values())])
    parts = whole[3:].split([value.numel() for value in state.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(state.items(), parts, strict=True)}


SAME: dict[str, Any] = {
    "as it is": lambda s: s,
    "with another optimizer state": lambda s: {"state_dict": s, "optimizer": {"state": {0: torch.ones(9)}}, "epoch": 7},
    "parameters": lambda s: {name: nn.Parameter(value) for name, value in s.items()},
    "an ordered dict": lambda s: collections.OrderedDict(reversed(list(s.items()))),
    "turned in memory": lambda s: {n: v.t().contiguous().t() if v.ndim == 2 else v for n, v in s.items()},
    "views of one storage": as_views,
    "with extra state": lambda s: {**s, "head._extra_state": {"step": 3}},
}


@pytest.mark.parametrize("form", list(SAME))
def test_a_torch_file_has_the_digest_of_safetensors_with_its_tensors(form: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    expected = find_checkpoint(str(tmp_path / "w.safetensors"))[0].digest
    assert find_checkpoint(str(saved(tmp_path / "w.pt", SAME[form](state))))[0].digest == expected


def test_every_type_of_values_has_its_digest(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]
    kinds += [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]
    state = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    state |= {"one": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    save_file(state, tmp_path / "w.safetensors")
    expected = find_checkpoint(str(tmp_path / "w.safetensors"))[0].digest
    assert find_checkpoint(str(saved(tmp_path / "w.pt", state)))[0].digest == expected
    turned = torch.arange(6.0).to(torch.complex64)
    one = find_checkpoint(str(saved(tmp_path / "c.pt", {"c": turned})))[0].digest
    other = find_checkpoint(str(saved(tmp_path / "d.pt", {"c": turned * 1j})))[0].digest
    assert one != other


def test_other_values_names_or_shapes_are_another_digest(tmp_path: Path) -> None:
    state = trained().state_dict()
    other = [
        {**state, "head.bias": state["head.bias"] + 1e-6},
        {("top" if name == "head.bias" else name): value for name, value in state.items()},
        {**state, "head.bias": state["head.bias"][None]},
        {**state, "head.bias": state["head.bias"].double()},
        {name: value for name, value in state.items() if name != "head.bias"},
    ]
    found = {find_checkpoint(str(saved(tmp_path / f"{k}.pt", s)))[0].digest for k, s in enumerate([state, *other])}
    assert len(found) == 6


def test_what_only_torch_can_read_is_known_by_its_bytes(tmp_path: Path) -> None:
    state = trained().state_dict()
    turned = {"c": torch.ones(2, dtype=torch.complex64).conj()}  # a view that is not the values themselves
    for name, value, how in (
        ("old", state, {"_use_new_zipfile_serialization": False}),
        ("sparse", {"s": torch.eye(3).to_sparse()}, {}),
        ("conjugate", turned, {}),
        ("repeated", {"r": torch.zeros(1).expand(10**9)}, {}),
    ):
        path = saved(tmp_path / f"{name}.pt", value, **how)
        assert find_checkpoint(str(path))[0].digest == file_digest(path)


def test_the_same_weights_saved_again_compute_nothing_and_import_no_torch(tmp_path: Path) -> None:
    manifest = write(feature_table(examples(20, 8, 4)), tmp_path / "m.parquet")
    spec = ModelSpec("mlp:4", 3, "features", (5,))
    torch.manual_seed(0)
    state = build_model(spec).state_dict()
    saved(tmp_path / "w.pt", state)
    score(job_of(manifest, tmp_path / "w.pt", tmp_path / "store", model="mlp:4", spec=GradSpec(("loss",))))
    saved(tmp_path / "again.pth", {"state_dict": state, "args": argparse.Namespace(lr=0.1), "epoch": np.float64(2)})
    flags = ["--model", "mlp:4", "--method", "loss", "--store", tmp_path / "store", "--isolated", "-o", "s.parquet"]
    for name in ("w.pt", "again.pth"):
        run_without_torch("score", manifest, "--checkpoint", tmp_path / name, *flags, cwd=tmp_path)


def test_nothing_in_a_file_runs_and_no_damage_stops_the_reader(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = saved(tmp_path / "r.pt", {"state_dict": trained().state_dict(), "also": [Runs(), {"x": Runs()}]})
    found = read_torch_file(path)
    assert found is not None
    assert found.code == ("posix.mkdir",)
    with pytest.raises(ModelError, match="posix"):
        loads(path)
    assert not (tmp_path / "ran").exists()
    good = saved(tmp_path / "w.pt", trained().state_dict())
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    for _ in range(200):
        raw = bytearray(parts[pickled])
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(256)
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, bytes(raw) if name == pickled else part)
        read_torch_file(tmp_path / "b.pt")


# ---- other names ----------------------------------------------------------------------------------------------------


def test_what_a_profiler_left_is_left_out_and_said(tmp_path: Path) -> None:
    state, heard = trained().state_dict(), Heard()
    counts = {"total_ops": torch.zeros(1), "layers.0.total_params": torch.zeros(1, dtype=torch.float64)}
    loads(saved(tmp_path / "a.pt", {**state, **counts}), heard)
    assert heard.notes == ["2 values that a profiler left (total_ops, total_params) are no part of the weights"]
    loads(saved(tmp_path / "b.pt", {f"module.{name}": value for name, value in {**state, **counts}.items()}), heard)
    assert len(heard.notes) == 2
    save_file({**state, **counts}, tmp_path / "c.safetensors")
    loads(tmp_path / "c.safetensors", heard)
    assert len(heard.notes) == 3
    with pytest.raises(ModelError, match="total_time found but not expected"):
        loads(saved(tmp_path / "d.pt", {**state, "total_time": torch.zeros(1)}))


def normed(old: bool, dim: int | None) -> nn.Module:
    model = trained()
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    for layer in (model.get_submodule("layers.0"), model.get_submodule("head")):
        norm(layer, dim=dim)
        for name, value in layer.named_parameters():
            if name.endswith(("_g", "original0")):
                value.data *= 1.5
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("old", [True, False], ids=["weight_g", "original0"])
def test_weight_norm_is_read_into_a_model_without_it(old: bool, dim: int | None, tmp_path: Path) -> None:
    model, heard, x = normed(old, dim), Heard(), torch.randn(3, 5)
    found = loads(saved(tmp_path / "w.pt", {f"module.{n}": v for n, v in model.state_dict().items()}), heard)
    with torch.no_grad():
        assert torch.allclose(found(x), model(x), atol=1e-6)
    assert heard.notes == ["weight norm of the checkpoint is multiplied out, as the model has none: 2 weights"]


@pytest.mark.parametrize("other", ["state_dict_ema", "model_ema", "ema"])
def test_weights_beside_those_that_are_taken_are_said(tmp_path: Path, other: str) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save({"state_dict": state, other: {k: v + 1 for k, v in state.items()}}, tmp_path / "both.pt")
    heard = Heard()
    found = read_weights(find_checkpoint(str(tmp_path / "both.pt"))[0], heard)
    assert torch.equal(found["weight"], state["weight"])
    assert "state_dict is taken, not " + other in heard.notes[0]
    assert f"['{other}']" in heard.notes[0]
