"""``save`` and ``load``: the same model comes back, from the original's code and one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import fxprune
import fxprune.io
from fxprune.io.model import tensors_of
from tests.unit.api.nets import Chain, run, seeded
from tests.unit.io.nets import NETS, Stateful, Tied, image, tokens

Where = tuple[nn.Module, Any]


def same(a: nn.Module, b: nn.Module) -> None:
    """Equal programs, tensors (numbers, dtypes, names, persistence) and plans."""
    ours, theirs = tensors_of(a), tensors_of(b)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)
    assert list(a.state_dict()) == list(b.state_dict())
    assert a.code == b.code
    assert fxprune.plan_of(a) == fxprune.plan_of(b)


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    build, inputs = NETS[request.param]
    return build, inputs()


def test_round_trip(case: tuple[Any, Tensor], tmp_path: Path) -> None:
    build, x = case
    slim = fxprune.slim(seeded(build()), 0.4, x)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    fresh = seeded(build(), seed=5)
    loaded = fxprune.load(fresh, tmp_path / "slim.safetensors")
    same(slim, loaded)
    assert torch.equal(run(slim, x), run(loaded, x))
    loaded.train()
    loaded(x).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_several_rounds(case: tuple[Any, Tensor], tmp_path: Path) -> None:
    build, x = case
    slim = fxprune.slim(seeded(build()), 0.2, x)
    for score in ("magnitude", "random"):
        slim = fxprune.slim(slim, 0.2, x, score=score)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    loaded = fxprune.load(seeded(build(), seed=5), tmp_path / "slim.safetensors")
    same(slim, loaded)
    assert torch.equal(run(slim, x), run(loaded, x))
    assert len(fxprune.io.describe(tmp_path / "slim.safetensors").rounds) == 3


def test_the_original_may_be_on_the_meta_device(case: tuple[Any, Tensor], tmp_path: Path) -> None:
    build, x = case
    slim = fxprune.slim(seeded(build()), 0.4, x)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    with torch.device("meta"):
        empty = build().eval()
    if build is Stateful:  # a program may read whole numbers: these have to be there
        empty.steps = torch.tensor(3)
    loaded = fxprune.load(empty, tmp_path / "slim.safetensors")
    same(slim, loaded)
    assert torch.equal(run(slim, x), run(loaded, x))
    assert all(t.device.type == "cpu" for t in tensors_of(loaded).values())


def test_the_same_model_gives_the_same_bytes(case: tuple[Any, Tensor], tmp_path: Path) -> None:
    build, x = case
    slim = fxprune.slim(seeded(build()), 0.4, x)
    fxprune.save(slim, tmp_path / "a.safetensors")
    fxprune.save(fxprune.load(build().double(), tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_given_model_is_only_read(tmp_path: Path) -> None:
    fxprune.save(fxprune.slim(seeded(Stateful()), 0.4, image()), tmp_path / "s.safetensors")
    fresh = seeded(Stateful(), seed=3)
    before = {name: tensor.clone() for name, tensor in tensors_of(fresh).items()}
    loaded = fxprune.load(fresh, tmp_path / "s.safetensors")
    loaded(image())
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(fresh).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_those_that_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain(), dtype=dtype), 0.4, image(dtype))
    fxprune.save(slim, tmp_path / "s.safetensors")
    loaded = fxprune.load(Chain().eval(), tmp_path / "s.safetensors")
    same(slim, loaded)
    assert torch.equal(run(slim, image(dtype)), run(loaded, image(dtype)))


def test_a_model_that_was_cast_after_slimming(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image()).to(torch.bfloat16)
    fxprune.save(slim, tmp_path / "s.safetensors")
    loaded = fxprune.load(Chain().eval(), tmp_path / "s.safetensors", device="cpu")
    same(slim, loaded)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_trained_weights_are_what_is_saved(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image()).train()
    before = slim.get_parameter("conv1.weight").clone()
    optimizer = torch.optim.SGD(slim.parameters(), 0.1)
    for _ in range(2):
        slim(image()).square().mean().backward()
        optimizer.step()
    fxprune.save(slim, tmp_path / "s.safetensors")
    loaded = fxprune.load(Chain().double().train(), tmp_path / "s.safetensors")
    assert not torch.equal(before, loaded.get_parameter("conv1.weight"))
    same(slim, loaded)
    assert int(loaded.get_buffer("bn1.num_batches_tracked")) == 2


def test_ties_stay_ties_and_are_stored_once(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Tied()), 0.4, tokens())
    fxprune.save(slim, tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert len([name for name in file.keys() if name in ("embed.weight", "head.weight")]) == 1  # noqa: SIM118
    loaded = fxprune.load(Tied().double().eval(), tmp_path / "s.safetensors")
    assert loaded.get_parameter("embed.weight") is loaded.get_parameter("head.weight")


def test_memory_format(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image()).to(memory_format=torch.channels_last)
    fxprune.save(slim, tmp_path / "s.safetensors")
    loaded = fxprune.load(Chain().double().eval(), tmp_path / "s.safetensors")
    assert loaded.get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)
    same(slim, loaded)


def test_mode_and_requires_grad_are_the_given_models(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    fxprune.save(slim, tmp_path / "s.safetensors")
    model = Chain().double().train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    loaded = fxprune.load(model, tmp_path / "s.safetensors")
    assert loaded.training
    assert not loaded.get_submodule("bn1").training
    assert not loaded.get_parameter("conv1.weight").requires_grad
    assert loaded.get_parameter("conv1.bias").requires_grad


def test_a_loaded_model_can_be_verified_and_slimmed_again(tmp_path: Path) -> None:
    original = seeded(Chain())
    fxprune.save(fxprune.slim(original, 0.3, image()), tmp_path / "s.safetensors")
    loaded = fxprune.load(Chain().double().eval(), tmp_path / "s.safetensors")
    assert fxprune.verify(original, loaded, image()).outputs_compared == 1
    again = fxprune.slim(loaded, 0.2, image())
    fxprune.save(again, tmp_path / "t.safetensors")
    same(again, fxprune.load(Chain().double().eval(), tmp_path / "t.safetensors"))


def test_inputs_that_cannot_be_written_down_are_asked_for(tmp_path: Path) -> None:
    class Odd(Chain):
        def forward(self, x: Tensor, how: object = None) -> Tensor:
            return super().forward(x)

    slim = fxprune.slim(seeded(Odd()), 0.3, (image(), slice(None)))
    fxprune.save(slim, tmp_path / "s.safetensors")
    with pytest.raises(fxprune.InputError, match="example_inputs="):
        fxprune.load(Odd().double(), tmp_path / "s.safetensors")
    same(slim, fxprune.load(Odd().double().eval(), tmp_path / "s.safetensors", (image(), slice(None))))


def test_other_libraries_read_the_file(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Stateful()), 0.4, image())
    fxprune.save(slim, tmp_path / "s.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "s.safetensors")
    ours = tensors_of(slim)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_file_describes_itself(tmp_path: Path) -> None:
    model = seeded(Chain())
    slim = fxprune.slim(model, 0.4, image())
    fxprune.save(slim, tmp_path / "s.safetensors")
    said = fxprune.io.describe(tmp_path / "s.safetensors")
    assert said.plan == fxprune.plan_of(slim)
    assert said.version == fxprune.__version__
    assert said.origin.model == "Chain"
    assert said.origin.capture == "torch.fx symbolic tracing"
    assert said.figures["parameters"] == sum(p.numel() for p in slim.parameters())
    assert said.figures["original_parameters"] == sum(p.numel() for p in model.parameters())
    assert said.figures["achieved"] == fxprune.plan_of(slim).achieved
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fxprune"])["fingerprint"] == said.origin.fingerprint


FRESH = """
import sys, torch, fxprune
from tests.unit.io.nets import Stateful, image
loaded = fxprune.load(Stateful().double().eval(), sys.argv[1])
torch.save(loaded(image()).detach(), sys.argv[2])
"""


def test_another_process(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Stateful()), 0.4, image())
    fxprune.save(slim, tmp_path / "s.safetensors")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "s.safetensors"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True)  # noqa: S603
    assert torch.equal(torch.load(tmp_path / "out.pt"), run(slim, image()))


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    slim = fxprune.slim(seeded(Chain()), 0.4, image())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    fxprune.save(slim, tmp_path / "s.safetensors")
    fxprune.load(Chain().double(), tmp_path / "s.safetensors")


class Deciding(Chain):
    """A branch that depends on numbers: it is slimmed as an eager module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("example", [True, False])
def test_a_model_that_stays_an_eager_module(tmp_path: Path, example: bool) -> None:
    x = image()
    slim = fxprune.slim(seeded(Deciding()), 0.4, x)
    assert isinstance(slim, Deciding)
    fxprune.save(slim, tmp_path / "slim.safetensors")
    loaded = fxprune.load(seeded(Deciding(), seed=5), tmp_path / "slim.safetensors", *([x] if example else []))
    assert isinstance(loaded, Deciding)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in slim.state_dict().items()}
    assert fxprune.plan_of(loaded) == fxprune.plan_of(slim)
    assert torch.equal(run(slim, x), run(loaded, x))
