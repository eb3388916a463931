"""Exports are held against the model: a file that computes something else is not left there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
import fxprune.io
from fxprune.capture.inputs import Inputs
from fxprune.io.export import export
from tests.unit.api.nets import Chain, image, seeded


@pytest.fixture
def slim() -> nn.Module:
    return fxprune.slim(seeded(Chain()), 0.4, image()).float()


@pytest.fixture
def call() -> Inputs:
    return Inputs((image().float(),), {})


def test_a_good_file_stays(slim: nn.Module, call: Inputs, tmp_path: Path) -> None:
    slim.train()
    done = export(slim, tmp_path / "slim.pt", call)
    assert (done.format, done.dynamic, done.checked_with) == ("TorchScript", True, "torch")
    assert done.error <= 1e-6
    assert done.bytes == (tmp_path / "slim.pt").stat().st_size
    assert slim.training  # it was a copy that was exported


def test_a_file_that_computes_something_else_goes(
    slim: nn.Module, call: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.jit.load

    def changed(path: Any) -> Any:
        module = load(path)
        next(module.parameters()).data.mul_(1.01)
        return module

    monkeypatch.setattr(torch.jit, "load", changed)
    with pytest.raises(fxprune.VerificationError, match="it was removed"):
        export(slim, tmp_path / "slim.pt", call)
    assert not list(tmp_path.iterdir())


def test_the_suffix_chooses(slim: nn.Module, call: Inputs, tmp_path: Path) -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"must end in \.onnx"):
        export(slim, tmp_path / "slim.tflite", call)


def test_inputs_are_given_as_everywhere(slim: nn.Module, tmp_path: Path) -> None:
    x = image().float()
    for given in (x, (x,), [x], {"x": x}):
        assert fxprune.io.export(slim, tmp_path / "slim.pt2", given).error == 0
    with pytest.raises(fxprune.InputError, match="a tensor, a tuple"):
        fxprune.io.export(slim, tmp_path / "slim.pt2", "x")


def test_a_folder_that_is_not_there(slim: nn.Module, call: Inputs, tmp_path: Path) -> None:
    for suffix in (".onnx", ".pt2", ".pt"):
        with pytest.raises(FileNotFoundError, match="no folder to write 'slim"):
            fxprune.io.export(slim, tmp_path / "no" / f"slim{suffix}", call)


def test_a_model_that_no_exporter_takes(tmp_path: Path, call: Inputs) -> None:
    class Deciding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(fxprune.FxpruneError, match=r"torch\.export does not take this model"):
        export(Deciding(), tmp_path / "model.pt2", call)
