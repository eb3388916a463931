"""The recipe in one process: what it does, and that an interruption changes nothing."""

from __future__ import annotations

import csv
import importlib
import io
import json
import random
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fxprune
from fxprune import train
from fxprune.errors import FxpruneError, NothingToPruneError
from fxprune.train.recipe import checkpoint
from fxprune.train.recipe.checkpoint import STATE, State, load_state, save_state, write_whole

pytest.importorskip("lightning_fabric")
from fxprune.train.recipe import Settings, network_of, run

recipe = importlib.import_module("fxprune.train.recipe.run")
SMALL = Settings(
    network="mlp-16-12", subset=200, epochs=2, tune_epochs=1, passes=2, ratio=0.3, batch=64, strength=0.02, seed=3, distill=0.5
)


def done(settings: Settings, folder: Path, **options: Any) -> State:
    return run(settings, folder, accelerator="cpu", quiet=True, **options)


def same(one: State, two: State) -> bool:
    """Bit for bit."""
    return (
        one.plan == two.plan
        and one.model.keys() == two.model.keys()
        and all(torch.equal(tensor, two.model[name]) for name, tensor in one.model.items())
        and csv_text(one) == csv_text(two)
        and one.stages == two.stages
        and (one.phase, one.step) == (two.phase, two.step)
    )


def csv_text(state: State) -> str:
    return repr(state.rows)


class KilledError(Exception):
    """Stands for the end of the process."""


def interrupted(settings: Settings, folder: Path, seed: int, every: int) -> tuple[State, int]:
    """A run that is broken off after random numbers of steps and taken up again, and how often it was."""
    chance = random.Random(seed)
    breaks = 0

    def on_step(_phase: int, _step: int) -> None:
        if chance.random() < 0.3:
            raise KilledError

    while True:
        with suppress(KilledError):
            return done(settings, folder, every=every, on_step=on_step), breaks
        breaks += 1


@pytest.mark.parametrize(("every", "method"), [(1, "subgradient"), (2, "proximal"), (0, "penalty")])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, every: int, method: str) -> None:
    settings = replace(
        SMALL, method=method, coupled=method == "proximal", passes=2 if every == 2 else 1, subset=200 if every else 140
    )
    expected = done(settings, tmp_path / "whole", every=every)
    found, breaks = interrupted(settings, tmp_path / "broken", 1, every)
    assert breaks > 1
    assert same(found, expected)
    assert (tmp_path / "broken" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    assert not same(done(replace(settings, seed=4), tmp_path / "other", every=every), expected)


def test_a_run_leaves_a_state_a_log_and_results(tmp_path: Path) -> None:
    state = done(SMALL, tmp_path, tensorboard=True)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["pass"], row["kind"], row["epoch"]) for row in rows] == [
        ("0", "sparse", "0"),
        ("0", "sparse", "1"),
        ("0", "tune", "0"),
        ("1", "sparse", "0"),
        ("1", "sparse", "1"),
        ("1", "tune", "0"),
    ]
    assert [float(row["rate"]) for row in rows[:2]] == pytest.approx([0.1, 0.01])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["pass"], row["stage"]) for row in results["stages"]] == [
        (number, stage) for number in (0, 1) for stage in ("trained", "slim", "tuned")
    ]
    parameters = [row["parameters"] for row in results["stages"]]
    assert parameters[0] > parameters[1] == parameters[2] == parameters[3] > parameters[4] == parameters[5]
    model = network_of(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == parameters[-1]
    assert len(fxprune.plan_of(model).kept["hidden.0.weight"][0]) < 16
    assert not model.training
    assert list((tmp_path / "tensorboard").iterdir())
    assert torch.load(tmp_path / STATE, weights_only=True)["phase"] == 4
    assert same(done(SMALL, tmp_path), state)  # a finished run is done


def branching(num_classes: int = 10) -> nn.Module:
    """A stem that three batch norms read."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.LazyConv2d(12, 3)
            self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
            self.convs = nn.ModuleList(nn.Conv2d(12, 4, 3, padding=1) for _ in range(3))
            self.fc = nn.Linear(12, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            found = [conv(norm(x).relu()).mean((2, 3)) for norm, conv in zip(self.norms, self.convs, strict=True)]
            y: Tensor = self.fc(torch.cat(found, 1))
            return y

    model = Net()
    model(torch.zeros(2, 1, 8, 8))
    return model


def test_the_selection_layout_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slimmed twice with constants absorbed; interruptions change nothing, and what a killed writer left behind goes."""
    monkeypatch.setattr(fxprune.zoo, "branching", branching, raising=False)
    settings = replace(SMALL, network="branching", layout="selection", floor=0.1, distill=0.0, strength=0.1)
    whole = done(settings, tmp_path / "whole", every=1)
    plan = fxprune.Plan.from_json(whole.plan)
    assert plan.layout == "selection"
    assert len({plan.kept[f"norms.{i}.weight"][0] for i in range(3)}) > 1
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ".state.pt.1.draft").write_bytes(b"half a state")
    found, breaks = interrupted(settings, broken, 2, every=1)
    assert breaks > 1
    assert same(found, whole)
    assert not list(broken.glob(".*.draft"))


def widths(state: State) -> list[int]:
    return [len(tensor) for name, tensor in state.model.items() if name in ("hidden.1.weight", "hidden.4.weight")]


def test_passes_by_default_take_at_most_half_of_a_layer_until_nothing_is_left_to_take(tmp_path: Path) -> None:
    settings = Settings(network="mlp-20-11", subset=64, epochs=1, tune_epochs=0, passes=5, strength=0.05)
    state = done(settings, tmp_path)
    assert state.phase == 10
    sizes = [row["parameters"] for row in state.stages if row["stage"] == "slim"]
    assert sizes == sorted(sizes, reverse=True)
    assert all(1 <= after < before / 2 for after, before in zip(widths(state), (20, 11), strict=True))


def test_a_ratio_out_of_reach_takes_what_can_go_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(SMALL, network="mlp-15-7", passes=1, epochs=1, distill=0.0, ratio=0.8, floor=0.5)
    state = run(settings, tmp_path, accelerator="cpu")
    assert widths(state) == [8, 4]
    assert "ratio 0.8 cannot be reached" in " ".join(capsys.readouterr().out.split())
    assert "0.455 went" in fxprune.Plan.from_json(state.plan).notes[-1]


def test_other_settings_for_the_same_folder_are_refused(tmp_path: Path) -> None:
    short = replace(SMALL, epochs=1, tune_epochs=0, passes=1, distill=0.0)
    done(short, tmp_path)
    with pytest.raises(FxpruneError, match=r"holds a run with other settings \(rate\)"):
        done(replace(short, rate=0.2), tmp_path)


def test_gammas_start_where_they_are_told_and_stay_sparse_by_proximal_steps(tmp_path: Path) -> None:
    settings = replace(SMALL, epochs=4, tune_epochs=0, passes=1, method="proximal", strength=1.0, ratio=0.0, distill=0.0)
    begun: list[float] = []

    def on_step(_phase: int, _step: int) -> None:
        state = load_state(tmp_path)
        assert state is not None
        begun.extend(float(g) for g in state.model["hidden.1.weight"])
        raise KilledError

    with pytest.raises(KilledError):
        done(settings, tmp_path, on_step=on_step)
    assert begun == [0.5] * 16
    state = done(settings, tmp_path)
    assert any((state.model[name] == 0).any() for name in ("hidden.1.weight", "hidden.4.weight"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(tmp_path: Path, precision: str) -> None:
    state = done(replace(SMALL, precision=precision, epochs=1), tmp_path)
    assert state.model["hidden.0.weight"].dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert all(bool(torch.isfinite(t).all()) for t in state.model.values())


def test_a_gradient_scaler_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision with scaled gradients needs an accelerator; here Fabric's precision plugin has a scale of its own."""
    from lightning_fabric.plugins.precision.precision import Precision

    loaded: list[Any] = []
    monkeypatch.setattr(Precision, "state_dict", lambda _: {"scale": 1024.0, "_growth_tracker": 7})
    monkeypatch.setattr(Precision, "load_state_dict", lambda _, state: loaded.append(dict(state)))

    def on_step(_phase: int, step: int) -> None:
        if step == 2 and not loaded:
            raise KilledError

    settings = replace(SMALL, passes=1, distill=0.0)
    with pytest.raises(KilledError):
        done(settings, tmp_path, every=1, on_step=on_step)
    assert not loaded
    state = done(settings, tmp_path, every=1)
    assert loaded[0] == {"scale": 1024.0, "_growth_tracker": 7} == state.scaler


def test_a_file_is_old_or_new_and_never_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")

    def fails(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", fails)
        with pytest.raises(OSError, match="no space"):
            write_whole(path, b"new and long")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, State("{}", model={"a": torch.ones(2)}))
    found = load_state(tmp_path)
    assert found is not None
    assert found.model["a"].tolist() == [1, 1]
    data = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(data[: len(data) // 2])
    with pytest.raises(FxpruneError, match="is not the state of a run"):
        load_state(tmp_path)
    checkpoint.save(tmp_path / STATE, {"format": 99})
    with pytest.raises(FxpruneError, match="written by another version of fxprune"):
        load_state(tmp_path)


def test_settings_are_checked_and_survive_json() -> None:
    assert Settings.from_json(SMALL.to_json()) == SMALL
    assert SMALL.differs(replace(SMALL, seed=9)) == ("seed",)
    assert (Settings().the_strength, Settings(network="resnet20").the_strength) == (1e-4, 1e-5)
    assert (Settings().the_floor, Settings(passes=3).the_floor, Settings(passes=3, floor=0.2).the_floor) == (0.1, 0.5, 0.2)
    assert (Settings().the_gamma, Settings(weights="x").the_gamma, Settings(weights="x", gamma=0.5).the_gamma) == (0.5, 0.0, 0.5)
    assert [(p.number, p.kind, p.epochs) for p in Settings(epochs=7).phases] == [(0, "sparse", 7), (0, "tune", 7)]
    assert [Settings().rate_at(e, 160) for e in (0, 79, 80, 119, 120)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    for wrong in (
        {"method": "magic"},
        {"precision": "8"},
        {"passes": 0},
        {"ratio": 1.0},
        {"distill": 2.0},
        {"rate": float("nan")},
        {"floor": 1.5},
        {"floor": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"width": 0.0},
        {"strength": float("inf")},
        {"gamma": float("nan")},
        {"absorb": "maybe"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)  # type: ignore[arg-type]


def test_the_command_line_offers_every_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fxprune.train.__main__ import main, parser

    options = parser().parse_args(["--out", "x", "--no-augment", "--weight-decay", "0.5", "--network", "resnet20"])
    assert (options.augment, options.weight_decay, options.network) == (False, 0.5, "resnet20")
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "--tune-epochs" in told
    assert "share of the channels that goes in each pass" in " ".join(told.split())
    with pytest.raises(ValueError, match="network must be one of"):
        main(["--out", str(tmp_path), "--network", "alexnet", "--accelerator", "cpu", "--quiet"])


def test_without_fabric_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fxprune.train.recipe import launch

    monkeypatch.setattr(launch, "NAMES", ("no_such_fabric",))
    with pytest.raises(ImportError, match=r"pip install 'fxprune\[train\]'"):
        done(SMALL, tmp_path)


def test_recalibration_is_the_last_thing_before_fine_tuning(tmp_path: Path) -> None:
    settings = replace(SMALL, passes=1, epochs=1, distill=0.0, recalibrate=2)
    state = done(settings, tmp_path)
    assert state.phase == 2
    norms = {name: t for name, t in state.model.items() if name.endswith("num_batches_tracked")}
    steps = 200 // 64
    assert all(int(t) == 2 + steps for t in norms.values())  # two batches of recalibration, then an epoch of fine-tuning
    assert train.readiness(network_of(tmp_path)).overall.channels < 28


def test_recalibration_waits_for_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slimming is the first process's business: the others are not there to average with."""

    def waits(_: Any) -> None:
        raise AssertionError("averaged over processes")

    monkeypatch.setattr(importlib.import_module("fxprune.train.recalibrate"), "_average", waits)
    assert done(replace(SMALL, passes=1, epochs=1, distill=0.0, recalibrate=2), tmp_path).phase == 2


@pytest.mark.parametrize(("gamma", "expected"), [(-1.0, None), (0.0, None), (0.5, 0.5)])
def test_pretrained_scale_factors_stay_unless_told(tmp_path: Path, gamma: float, expected: float | None) -> None:
    given = fxprune.zoo.mlp(64, 16, 12, 10)
    with torch.no_grad():
        for own in train.gammas(given).values():
            own.uniform_()
    torch.save(given.state_dict(), tmp_path / "given.pt")
    settings = Settings(network="mlp-16-12", weights=str(tmp_path / "given.pt"), epochs=0, tune_epochs=0, ratio=0.0, gamma=gamma)
    state = done(settings, tmp_path / "run")
    for name, own in given.state_dict().items():
        wanted = torch.full_like(own, expected) if expected and name in train.gammas(given) else own
        assert torch.equal(state.model[name], wanted), name


@pytest.mark.parametrize("content", ["other widths", "no dict", "a pickled class", "no file of torch's", "nothing"])
def test_weights_of_something_else_are_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "given.pt"
    held: dict[str, Any] = {"other widths": fxprune.zoo.mlp(64, 8, 10).state_dict(), "no dict": [1], "a pickled class": Path()}
    if content in held:
        torch.save(held[content], file)
    else:
        file.write_bytes(b"hello" if content != "nothing" else b"")
    settings = Settings(network="mlp-16-12", weights=str(file), epochs=0, tune_epochs=0, ratio=0.0)
    with pytest.raises(ValueError, match=r"given\.pt does not hold the weights of mlp-16-12\. \w+Error: "):
        done(settings, tmp_path / "run")


def test_results_are_written_though_the_process_was_killed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KilledError

    settings = replace(SMALL, passes=1, epochs=1, distill=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "write_whole", killed)
        with pytest.raises(KilledError):
            done(settings, tmp_path)
    assert not (tmp_path / "results.json").exists()
    state = done(settings, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["stages"] == state.stages
    assert (tmp_path / "slim.safetensors").exists()


def test_exact_absorption(tmp_path: Path) -> None:
    settings = replace(SMALL, network="tiny_vgg", epochs=0, tune_epochs=0, distill=0.0, absorb="exact")
    state = done(settings, tmp_path)
    model = network_of(tmp_path)
    assert fxprune.plan_of(model).added
    assert all(torch.equal(tensor, state.model[name]) for name, tensor in model.state_dict().items())


def scaled(fabric: Any, scale: float) -> Any:
    """Half precision with scaled gradients, as on an accelerator."""
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    fabric._precision = fabric.strategy.precision
    return fabric


@pytest.mark.parametrize(("scale", "shrunk"), [(2.0**60, False), (2.0**4, True)])
def test_no_proximal_step_after_a_step_that_the_scaler_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, shrunk: bool
) -> None:
    launch = recipe.launch
    monkeypatch.setattr(recipe, "launch", lambda _, accelerator: scaled(launch("32-true", accelerator), scale))

    def on_step(_phase: int, step: int) -> None:
        if step == 2:
            raise KilledError

    settings = replace(SMALL, method="proximal", strength=1.0, precision="16-mixed", passes=1, distill=0.0)
    with pytest.raises(KilledError):
        done(settings, tmp_path, every=1, on_step=on_step)
    state = load_state(tmp_path)
    assert state is not None
    assert state.scaler["scale"] == (scale if shrunk else scale / 4)
    assert state.sparsity["steps"] == (2 if shrunk else 0)
    assert bool((state.model["hidden.1.weight"] == 0.5).all()) is not shrunk


class Process:
    """One of several processes, each a thread, that take turns as Fabric lets them."""

    def __init__(self, rank: int, local: int, barrier: threading.Barrier) -> None:
        self.rank, self.local, self.barrier = rank, local, barrier
        self.is_global_zero = rank == 0

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        first = (self.local if local else self.rank) == 0
        if not first:
            self.barrier.wait()
        yield
        if first:
            self.barrier.wait()


def test_one_process_fetches_what_the_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with two processes each: the first process of all, then the first of the other machine, then both others."""
    order: list[str] = []

    def prepared(_: Settings, *, download: bool) -> str:
        assert download
        time.sleep(0.02)
        order.append(threading.current_thread().name)
        return order[-1]

    monkeypatch.setattr(recipe, "prepared", prepared)
    barrier = threading.Barrier(4, timeout=20)
    threads = [
        threading.Thread(
            target=recipe._images, args=(Process(rank, rank % 2, barrier), SMALL), kwargs={"download": True}, name=str(rank)
        )
        for rank in range(4)
    ]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    assert order[:2] == ["0", "2"]
    assert sorted(order[2:]) == ["1", "3"]


def test_images_that_are_not_there_are_an_error_of_the_family(tmp_path: Path) -> None:
    for data, words in (("mnist", "Dataset not found.*--download"), ("svhn", "--download"), ("cifar10-jpeg", "train.npz")):
        with pytest.raises(FxpruneError, match=words):
            done(replace(SMALL, data=data, root=str(tmp_path / "none")), tmp_path / "run")


def test_without_batch_norm_it_says_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, num_classes))

    monkeypatch.setattr(fxprune.zoo, "plain", plain, raising=False)
    settings = replace(SMALL, network="plain", epochs=1, distill=0.0)
    for coupled in (False, True):
        with pytest.raises(NothingToPruneError, match="--method none"):
            done(replace(settings, coupled=coupled), tmp_path / str(coupled))
    state = done(replace(settings, method="none"), tmp_path / "none")
    assert len(state.model["0.weight"]) < 8


def test_a_terminal_shows_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(recipe, "Console", lambda: Console(file=said, force_terminal=True, width=120, color_system=None))
    run(replace(SMALL, passes=1, distill=0.0), tmp_path, accelerator="cpu")
    text = said.getvalue()
    assert "pass 1, sparse" in text
    assert "6/6" in text
    assert "pass 1, tune" in text
    assert "3/3" in text
    assert "pass 1 sparse epoch 2: loss " in text
    assert "of gammas below 1e-3" in text


def events(folder: Path) -> Iterator[Any]:
    """What is in TensorBoard's files, in their order (records: length, its checksum, data, theirs)."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield proto.Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def test_tensorboard_goes_on_where_the_run_does(tmp_path: Path) -> None:
    def on_step(phase: int, step: int) -> None:
        if (phase, step) == (0, 4):
            raise KilledError

    settings = replace(SMALL, passes=1, distill=0.0)
    with pytest.raises(KilledError):
        done(settings, tmp_path, tensorboard=True, on_step=on_step)
    done(settings, tmp_path, tensorboard=True)
    found = list(events(tmp_path / "tensorboard"))
    losses = [(value.tag, event.step) for event in found for value in event.summary.value if value.tag.endswith("/loss")]
    assert losses == [("sparse/loss", 1), ("sparse/loss", 2), ("tune/loss", 3)]
    assert [event.step for event in found if event.HasField("session_log")] == [2]
