"""Pretrained weights that cannot be had are for the user to mend: exit 2, with both ways to weights."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import timm

from influence_cli.errors import ModelError
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from tests.cases import call_cli

SPEC = {"name": "resnet18", "num_classes": 10, "kind": "image", "shape": [3, 32, 32], "mean": [0.5] * 3}
SPEC |= {"std": [0.5] * 3, "interpolation": "bilinear"}
FAILURES = [
    ConnectionError("Network is unreachable"),
    socket.gaierror(-2, "Name or service not known"),
    OSError("We couldn't connect to the hub"),
    FileNotFoundError("Cannot find the file in the local cache, and outgoing traffic has been disabled"),
    TimeoutError(),
    ValueError("HTTP 404"),
    RuntimeError("Cannot send a request, as the client has been closed."),
    RuntimeError("No pretrained weights exist for resnet18"),
]


def failing(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """Make every download of pretrained weights fail."""
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            raise failure
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", offline)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: f"{type(e).__name__} {e}")
def test_weights_that_cannot_be_had_are_no_defect(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, failure)
    with pytest.raises(ModelError, match="the pretrained weights of resnet18 cannot be had") as refused:
        build_model(ModelSpec.from_dict(SPEC), pretrained=True)
    assert "--init CHECKPOINT" in refused.value.fix
    assert "HF_HOME" in refused.value.fix


def test_an_input_that_does_not_fit_is_still_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        raise AssertionError("img_size must be a multiple of 16")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ModelError, match="cannot be built for input"):
        build_model(ModelSpec.from_dict(SPEC), pretrained=True)


def test_it_is_exit_2(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ConnectionError("Network is unreachable"))
    asked = ["retrain", digits, "--model", "resnet18", "--pretrained", "--input-size", 32, "-o", "run"]
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "error: the pretrained weights of resnet18 cannot be had" in ran.err
