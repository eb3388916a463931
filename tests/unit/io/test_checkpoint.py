"""Checkpoints that are slimmed in pieces: the same numbers as slimming the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
import fxprune.io
from benchmarks.streaming import Decoder
from fxprune.io import checkpoint
from tests.unit.api.nets import Chain, run, seeded
from tests.unit.io.nets import Attentive, Halves, Tied, image, states, tokens


def small() -> Decoder:
    return Decoder(2, width=32, hidden=48, heads=4, kv_heads=2, vocabulary=11)


class Grouped(nn.Module):
    """Grouped, depthwise and transposed convolutions; a layer with more columns than rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.c = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.d = nn.ConvTranspose2d(12, 6, 2, groups=2)
        self.e = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.e(F.relu(self.d(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))))


CASES: dict[str, tuple[Any, Any]] = {
    "chain": (Chain, image),
    "halves": (Halves, image),
    "grouped": (Grouped, image),
    "attentive": (Attentive, states),
    "tied": (Tied, tokens),
    "decoder": (small, tokens),
}


def empty(build: Any) -> nn.Module:
    with torch.device("meta"):
        return build().double().eval()


def sharded(model: nn.Module, folder: Path, count: int = 3) -> None:
    """Write a checkpoint of ``count`` files and an index, as other libraries do."""
    state = distinct(model)
    names = list(state)
    place = {}
    for i in range(count):
        part = {name: state[name].contiguous() for name in names[i::count]}
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        place.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied weights under their last name."""
    last = {tensor.data_ptr(): name for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in model.state_dict().items() if last[tensor.data_ptr()] == name}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    build, inputs = CASES[request.param]
    return build, inputs()


@pytest.mark.parametrize("piece", [64, 1 << 23])
def test_a_ratio(case: tuple[Any, Tensor], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE", piece)
    build, x = case
    model = seeded(build())
    (tmp_path / "in").mkdir()
    sharded(model, tmp_path / "in")
    done = fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "out", 0.4, empty(build), x)
    slim = fxprune.slim(model, 0.4, x, absorb=False)
    assert done.plan == fxprune.plan_of(slim)
    assert done.unknown == ()
    state = slim.state_dict()
    written = {}
    for file in done.files:
        written.update(safetensors.torch.load_file(tmp_path / "out" / file))
    assert written.keys() == distinct(model).keys()
    assert all(torch.equal(written[name], state[name]) for name in written)
    assert done.bytes == sum(t.nbytes for t in written.values()) < done.original_bytes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.bytes
    assert index["weight_map"].keys() == written.keys()
    for other in (empty(build), seeded(build(), seed=8)):
        loaded = fxprune.load(other, tmp_path / "out")
        assert loaded.code == slim.code
        assert torch.equal(run(loaded, x), run(slim, x))
        assert fxprune.plan_of(loaded) == done.plan


def test_a_plan_and_a_single_file(case: tuple[Any, Tensor], tmp_path: Path) -> None:
    build, x = case
    model = seeded(build())
    plan = fxprune.plan(fxprune.analyze(model, x), 0.3, score="random", floor=0)
    safetensors.torch.save_file(distinct(model), tmp_path / "in.safetensors")
    done = fxprune.io.slim_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", plan, empty(build), x)
    slim = fxprune.apply(model, plan, x, absorb=False)
    loaded = fxprune.load(empty(build), tmp_path / "out.safetensors")
    assert torch.equal(run(loaded, x), run(slim, x))
    assert done.plan.kept == fxprune.plan_of(slim).kept
    assert {p.name for p in tmp_path.iterdir()} == {"in.safetensors", "out.safetensors"}


@pytest.mark.parametrize("score", ["gamma", "gamma_max", "random"])
def test_scores_by_name(score: str, tmp_path: Path) -> None:
    model = seeded(Chain())
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    done = fxprune.io.slim_checkpoint(
        tmp_path / "model.safetensors",
        tmp_path / "out.safetensors",
        0.4,
        empty(Chain),
        image(),
        score=score,
        keep=["conv1"],
        round_to=2,
    )
    assert done.plan == fxprune.plan_of(fxprune.slim(model, 0.4, image(), score=score, keep=["conv1"], round_to=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = seeded(small(), dtype=dtype)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "in.safetensors")
    with torch.device("meta"):
        bare = small().to(dtype).eval()
    done = fxprune.io.slim_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", 0.4, bare, tokens())
    slim = fxprune.slim(model, 0.4, tokens(), verify=False)
    assert done.plan.kept == fxprune.plan_of(slim).kept
    assert torch.equal(run(fxprune.load(bare, tmp_path / "out.safetensors"), tokens()), run(slim, tokens()))


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    safetensors.torch.save_file(seeded(Chain()).state_dict(), tmp_path / "in" / "model.safetensors")
    fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "out", 0.4, empty(Chain), image())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "model.safetensors.index.json",
        "fxprune.safetensors",
    }
    fxprune.load(empty(Chain), tmp_path / "out")
    with pytest.raises(FileExistsError):
        fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "out", 0.4, empty(Chain), image())


def test_what_the_model_does_not_have_is_copied_and_told(tmp_path: Path) -> None:
    state = {**seeded(Chain()).state_dict(), "extra": torch.arange(3)}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    done = fxprune.io.slim_checkpoint(tmp_path / "in.safetensors", tmp_path / "out.safetensors", 0.4, empty(Chain), image())
    assert done.unknown == ("extra",)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "out.safetensors")["extra"], torch.arange(3))
    fxprune.load(empty(Chain), tmp_path / "out.safetensors")


def test_refusals(tmp_path: Path) -> None:
    state = seeded(Chain()).state_dict()
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"

    def slimmed(content: dict[str, Tensor], plan: Any = 0.4, **options: Any) -> None:
        safetensors.torch.save_file(content, source)
        fxprune.io.slim_checkpoint(source, target, plan, empty(Chain), image(), **options)

    with pytest.raises(fxprune.FileFormatError, match=r"no tensor 'fc.bias'"):
        slimmed({name: tensor for name, tensor in state.items() if name != "fc.bias"})
    with pytest.raises(fxprune.PlanMismatchError, match=r"'fc.bias' with shape \(5,\)"):
        slimmed({**state, "fc.bias": torch.zeros(5)})
    with pytest.raises(fxprune.BudgetError, match="ranked as it is read"):
        slimmed(state, score=lambda group: torch.ones(len(group)))
    with pytest.raises(fxprune.BudgetError, match="ratio must be"):
        slimmed(state, 40)
    with pytest.raises(fxprune.WeightError, match="NaN"):
        slimmed({**state, "bn1.weight": state["bn1.weight"] * float("nan")})
    with pytest.raises(fxprune.PlanMismatchError):
        slimmed(state, fxprune.plan_of(fxprune.slim(seeded(Halves()), 0.3, image())))
    assert not target.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]


def test_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(fxprune.FileFormatError, match="holds neither"):
        fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "out", 0.4, empty(Chain), image())
    sharded(seeded(Chain()), tmp_path / "in")
    fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "out", 0.4, empty(Chain), image())
    shard = tmp_path / "out" / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(fxprune.FileFormatError, match=r"00002.*changed after"):
        fxprune.load(empty(Chain), tmp_path / "out")
    fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "other", 0.3, empty(Chain), image())
    shard.write_bytes((tmp_path / "other" / shard.name).read_bytes())
    with pytest.raises(fxprune.FileFormatError, match="belongs to another checkpoint"):
        fxprune.load(empty(Chain), tmp_path / "out")
    shard.unlink()
    with pytest.raises(fxprune.FileFormatError, match="no file"):
        fxprune.load(empty(Chain), tmp_path / "out")
    for text in (
        "",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../x"}}',
        '{"weight_map": {"a": 1}}',
    ):
        (tmp_path / "in" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(fxprune.FileFormatError):
            fxprune.io.slim_checkpoint(tmp_path / "in", tmp_path / "new", 0.4, empty(Chain), image())
