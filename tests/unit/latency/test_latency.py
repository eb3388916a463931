"""Latency tables: what is sampled, that a known machine is recovered exactly, that measurements are kept, resumed and never mixed up."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.inputs import given
from fxprune.errors import BudgetError, CaptureError, FileFormatError
from fxprune.latency import LatencyTable, measure, seconds_of
from fxprune.latency.fit import fitted
from fxprune.latency.profile import profile
from fxprune.latency.samples import COLUMNS, LESS, LEVELS, array, columns, samples, uneven, width
from fxprune.latency.uneven import alignment, evenness, factor, factors
from fxprune.solve.cost_table import CostEntry, CostTable
from tests.models.exporting import NETS
from tests.unit.api.nets import Chain, Residual, image, run, seeded

HOME = "fxprune.latency.table"


class Wide(nn.Module):
    """A residual stream of 64 channels, a branch of 48, a concatenation of both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv1, self.bn1 = nn.Conv2d(64, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv2, self.bn2 = nn.Conv2d(48, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.last = nn.Conv2d(112, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(y)))
        return self.head(F.relu(self.last(torch.cat([x, y], 1))).mean((2, 3)))


def wide() -> nn.Module:
    return seeded(Wide(), dtype=torch.float32)


X = image(dtype=torch.float32)


def small(seed: int = 0) -> nn.Module:
    return seeded(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), seed, torch.float32)


def test_the_array_is_orthogonal() -> None:
    rows = array()
    assert len(rows) == 25
    assert rows[0] == (0,) * 6
    for a, b in itertools.combinations(range(6), 2):
        assert len({(row[a], row[b]) for row in rows}) == 25
    less = [[less for _, less in row] for row in uneven()]
    assert len(less) == 16
    for a, b in itertools.combinations(range(5), 2):
        assert {(row[a], row[b]) for row in less} == set(itertools.product(LESS, LESS))


def test_widths() -> None:
    assert [width(64, level) for level in LEVELS] == [64, 48, 32, 16, 8]
    assert [width(64, 0.5, less) for less in (0, 4, 2, 1)] == [32, 28, 30, 31]
    assert [evenness(w) for w in (64, 28, 30, 31, 32.5)] == [8, 4, 2, 1, 1]
    assert [evenness(w, 51) for w in (51, 50, 15)] == [8, 2, 8], "the original width, and what grids hold as it is"
    assert all(1 <= width(full, level, less) <= full for full in range(1, 70) for level in LEVELS for less in (0, 1, 4))


def test_every_layer_meets_every_pair_of_widths() -> None:
    graph = fxprune.analyze(wide(), X)
    plans = samples(graph)
    assert len(plans) == 25 + 16
    assert plans[0].empty
    counts = [(len(p.kept["conv1.weight"][0]), len(p.kept["conv1.weight"][1])) for p in plans[:25]]
    assert set(counts) == set(itertools.product((48, 32, 24, 12, 6), (64, 48, 32, 16, 8)))
    odd = {(len(p.kept["conv1.weight"][0]), len(p.kept["conv1.weight"][1])) for p in plans[25:]}
    assert {(evenness(a), evenness(b)) for a, b in odd} == set(itertools.product((8, 4, 2, 1), repeat=2))
    groups = {group.name: column for group, column in zip(graph.groups, columns(graph), strict=True)}
    assert groups["stem.weight"] % COLUMNS != groups["conv1.weight"] % COLUMNS


@pytest.mark.parametrize("name", NETS)
def test_samples_of_every_kind_of_network_can_be_made(name: str) -> None:
    chosen = NETS[name]
    model = chosen.model()
    for plan in samples(fxprune.analyze(model, chosen.batch(2)))[6:8]:
        slim = fxprune.apply(model, plan, chosen.batch(2), verify=False)
        run(slim, chosen.batch(2))


def test_a_surface_is_recovered_and_means_are_taken() -> None:
    def true(a: float, b: float) -> float:
        return 3e-6 + 1e-8 * a + 2e-9 * a * b

    few = [(w, v) for w in (8, 16, 64) for v in (8, 32)]
    entry = fitted("conv", (("w", 0), ("w", 1)), (64, 32), [*few, (8, 8)], [*(true(*p) for p in few), 3 * true(8, 8)])
    assert entry.widths == ((8, 16, 64), (8, 32))
    assert entry.at((8, 8)) == pytest.approx(2 * true(8, 8))
    assert entry.at((64, 20)) == pytest.approx(true(64, 20))
    many = [(w, v) for w, v in zip(range(5, 65), itertools.cycle((4, 8, 15, 32)), strict=False)]
    entry = fitted("conv", (("w", 0), ("w", 1)), (64, 32), many, [true(*p) for p in many])
    assert [len(grid) for grid in entry.widths] == [5, 4]
    assert entry.at((33, 11)) == pytest.approx(true(33, 11), rel=1e-6)
    assert fitted("pool", (("w", 0),), (64,), [(8,), (64,)], [1.0, 0.5]).costs.min() >= 0


def test_factors_of_odd_widths_are_recovered() -> None:
    grid = (8, 32, 64)
    entry = CostEntry("conv", (("w", 0), ("w", 1)), (grid, grid), np.ones((3, 3)) * 1e-3)
    truth = ({4: 1.0, 2: 1.2, 1: 1.5}, {4: 1.1, 2: 1.1, 1: 1.3})
    widths = list(itertools.product((48, 44, 46, 47), (24, 28, 30, 31)))
    found = factors(entry, widths, [1e-3 * factor(entry, truth, own) for own in widths])
    assert [dict(own) for own in found] == [pytest.approx(own) for own in truth]
    assert factor(entry, found, (64, 13)) == 1.0
    assert alignment([entry], {"conv": found}) == 8
    assert alignment([entry], {"conv": ({4: 1.02, 2: 1.1, 1: 1.2}, {})}) == 4
    assert [dict(own) for own in factors(entry, [(47, 31)], [0.5e-3])] == [{4: 1.0, 2: 1.0, 1: 1.0}] * 2, "never less than 1"


def test_nodes_are_timed_in_a_real_run() -> None:
    program = fxprune.slim(wide(), 0.3, X)
    before = run(program, X)
    seconds, total = profile(program, given(X), torch.device("cpu"), 3)
    assert set(seconds) == {n.name for n in program.graph.nodes if n.op.startswith("call")}
    assert all(value > 0 for value in seconds.values())
    assert 0.2 * total < sum(seconds.values()) < 5 * total
    assert torch.equal(before, run(program, X))


# A machine whose times are known: every layer bilinear in its widths, its odd widths dear.
def known(node: str, widths: Mapping[str, int], dear: float = 1.0) -> float:
    into = {"stem": 3, "conv1": "conv1.weight[1]", "conv2": "conv2.weight[1]", "last": "last.weight[1]", "head": "head.weight[1]"}
    out = {"stem": "stem.weight[0]", "conv1": "conv1.weight[0]", "conv2": "conv2.weight[0]", "last": "last.weight[0]", "head": 10}
    if node not in into:
        return 1e-6
    pair = [widths[side] if isinstance(side, str) else side for side in (into[node], out[node])]
    odd = sum(isinstance(side, str) and widths[side] > 15 and widths[side] % 2 for side in (into[node], out[node]))
    return (1e-5 + 1e-7 * pair[0] + 3e-8 * pair[0] * pair[1]) * dear**odd


def widths_of(program: fx.GraphModule) -> dict[str, int]:
    return {f"{name}[{d}]": size for name, p in program.named_parameters() for d, size in enumerate(p.shape)}


def machine(
    monkeypatch: pytest.MonkeyPatch, dear: float = 1.0, stop_after: int = 10**9, few: int = 41, slow: int = -1
) -> list[int]:
    """``slow``: the number of a sample during which something else runs."""
    calls: list[int] = []

    def timed(program: fx.GraphModule, *_: Any) -> tuple[dict[str, float], float]:
        if len(calls) >= stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        nodes = [n.name for n in program.graph.nodes if n.op.startswith("call")]
        seconds = {name: known(name, widths_of(program), dear) * (3 if len(calls) == slow else 1) for name in nodes}
        return seconds, 1.1 * sum(seconds.values())

    monkeypatch.setattr(sys.modules[HOME], "profile", timed)
    monkeypatch.setattr(sys.modules[HOME], "DEPLOYING", 0.01)
    monkeypatch.setattr(sys.modules[HOME], "samples", lambda graph: samples(graph)[:few])
    return calls


def table(cache: Path | None = None, model: nn.Module | None = None, x: Tensor = X, **options: Any) -> LatencyTable:
    return measure(model or small(), x, cache=cache, show=False, **options)


def with_precision(name: str, call: Callable[[], LatencyTable]) -> LatencyTable:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        return call()
    finally:
        torch.set_float32_matmul_precision(before)


def true(program: nn.Module, nodes: list[str], dear: float = 1.0) -> float:
    return 1.1 * sum(known(name, widths_of(program), dear) for name in nodes)


def test_a_known_machine_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    model = wide()
    found = table(model=model, deployed=False)
    assert isinstance(found, CostTable)
    assert found.calibration == pytest.approx(1.1)
    assert found.form == "as given"
    axes = {entry.name: entry.axes for entry in found.entries}
    assert axes["conv1"] == (("conv1.weight", 0), ("conv1.weight", 1))
    assert axes["stem"] == (("stem.weight", 0),)
    assert axes["head"] == (("head.weight", 1),)
    assert axes["bn1"] == axes["relu_1"]
    nodes = [entry.name for entry in found.entries]
    assert found.seconds() == pytest.approx(true(model, nodes) + found.constant) == pytest.approx(found.measured)
    for ratio in (0.25, 0.5):
        slim = fxprune.slim(model, ratio, X, round_to=8, score="random")
        plan = fxprune.plan_of(slim)
        assert found.seconds(plan) == pytest.approx(true(slim, nodes) + found.constant)
        live = {(name, dim): len(rows) for name, dims in plan.kept.items() for dim, rows in dims.items()}
        assert found.seconds(live) == found.seconds(plan)
        assert found.seconds(fxprune.Plan.from_json(plan.to_json())) == found.seconds(plan)
    assert found.alignment == 1


def test_odd_widths_are_found_to_be_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, dear=1.5)
    model = wide()
    found = table(model=model, deployed=False)
    assert found.alignment == 2
    assert [own[1] for own in found.penalties["conv1"]] == pytest.approx([1.5, 1.5], rel=0.02)
    assert [own[2] for own in found.penalties["conv1"]] == pytest.approx([1.0, 1.0], rel=0.02)
    assert found.penalties["stem"][0][1] == pytest.approx(1.5, rel=0.02)
    slim = fxprune.slim(model, 0.4, X, score="random")
    nodes = [entry.name for entry in found.entries]
    assert found.seconds(fxprune.plan_of(slim)) == pytest.approx(true(slim, nodes, 1.5) + found.constant, rel=0.05)


def test_a_measurement_goes_on_from_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path)
    (file,) = tmp_path.iterdir()
    assert list(json.loads(file.read_text())["samples"]) == ["0", "25", "1", "26"], "round and odd widths in turns"
    calls = machine(monkeypatch)
    found = table(tmp_path)
    assert len(calls) == 41 - 4 + 1, "the full network once more"
    calls.clear()
    again = table(tmp_path)
    assert not calls
    assert again.seconds() == found.seconds()
    assert [e.costs.tolist() for e in again.entries] == [e.costs.tolist() for e in found.entries]


def test_measurements_of_other_machines_models_and_inputs_are_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = machine(monkeypatch, few=3)
    changes: list[Callable[[], LatencyTable]] = [
        lambda: table(tmp_path),
        lambda: table(tmp_path, x=image(4, 3, 8, 8, dtype=torch.float32)),
        lambda: table(tmp_path, deployed=False),
        lambda: table(tmp_path, model=small().double(), x=X.double()),
        lambda: table(tmp_path, model=seeded(Residual(), dtype=torch.float32)),
        lambda: table(tmp_path, model=small().to(memory_format=torch.channels_last)),
        lambda: table(tmp_path, x=X.to(memory_format=torch.channels_last)),
        lambda: with_precision("medium", lambda: table(tmp_path)),
    ]
    for change in changes:
        before = len(calls)
        change()
        assert len(calls) == before + 3 + 1
    assert len(list(tmp_path.iterdir())) == len(changes)
    before = len(calls)
    table(tmp_path, model=small(5))
    assert len(calls) == before, "other weights take as long"
    state = table(tmp_path).machine
    assert state["threads"] == 1
    assert state["torch"] == torch.__version__
    monkeypatch.setattr(sys.modules["fxprune.latency.cache"], "device_name", lambda _: "another")
    table(tmp_path)
    assert len(calls) == before + 3 + 1


def test_a_disturbed_sample_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch)
    quiet = table(None, model=wide(), deployed=False)
    for slow in (1, 12, 30):
        calls = machine(monkeypatch, slow=slow)
        found = table(tmp_path / str(slow), model=wide(), deployed=False)
        assert 41 + 1 <= len(calls) <= 41 + 3
        assert found.measured == pytest.approx(quiet.measured)
        for one, other in zip(found.entries, quiet.entries, strict=True):
            assert one.costs == pytest.approx(other.costs)
        calls.clear()
        table(tmp_path / str(slow), model=wide(), deployed=False)
        assert not calls


def test_noise_is_looked_into_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever is measured once more, the next table measures nothing."""
    noise = np.random.default_rng(0)
    calls = machine(monkeypatch)
    quiet = sys.modules[HOME].profile  # type: ignore[attr-defined]

    def noisy(*given: Any) -> tuple[dict[str, float], float]:
        seconds, total = quiet(*given)
        slower = float(1 + noise.exponential(0.2))
        return {name: slower * value for name, value in seconds.items()}, slower * total

    monkeypatch.setattr(sys.modules[HOME], "profile", noisy)
    first = table(tmp_path, model=wide(), deployed=False)
    assert 41 + 1 < len(calls) <= 2 * 41
    calls.clear()
    assert table(tmp_path, model=wide(), deployed=False).seconds() == first.seconds()
    assert not calls


def test_what_was_kept_of_fewer_rounds_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = machine(monkeypatch, few=3)
    table(tmp_path, rounds=2)
    assert len(calls) == 3 + 1
    for rounds, more in ((1, 0), (2, 0), (3, 4), (2, 0), (3, 0)):
        before = len(calls)
        table(tmp_path, rounds=rounds)
        assert len(calls) == before + more, rounds
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    assert [(own["rounds"], own["looks"]) for own in data["samples"].values()] == [(3, 2), (3, 1), (3, 1)]
    for own in data["samples"].values():
        del own["rounds"]  # as files were written before
        own["total"] = 100.0
        own["seconds"] = dict.fromkeys(own["seconds"], 1.0)
    file.write_text(json.dumps(data))
    assert table(tmp_path, rounds=1).measured < 1


def test_damaged_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, few=3)
    table(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = json.loads(file.read_text())
    for damage in (
        "",
        "{",
        "[]",
        json.dumps({**whole, "samples": 3}),
        json.dumps({**whole, "format": 0}),
        json.dumps({**whole, "machine": {}}),
        json.dumps({**whole, "form": "quick"}),
        json.dumps({**whole, "samples": {"0": {**whole["samples"]["0"], "total": float("nan")}}}),
        json.dumps({**whole, "samples": {"0": {**whole["samples"]["0"], "total": -1.0}}}),
    ):
        file.write_text(damage)
        with pytest.raises(FileFormatError, match="Remove it"):
            table(tmp_path)


TWICE = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.latency import measure


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        return self.two(torch.flatten(F.relu(self.one(x)).mean((2, 3)), 1))


torch.set_num_threads(1)
measure(Net().eval(), torch.zeros(1, 3, 8, 8), rounds=1, cache=Path(sys.argv[1]), show=False)
"""


def test_another_process_finds_what_was_measured(tmp_path: Path) -> None:
    """Functions and methods have other addresses there, which are no part of a model's structure."""
    written = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", TWICE, str(tmp_path)], check=True, env=environment, timeout=120)  # noqa: S603
        (file,) = tmp_path.iterdir()
        written.append((file.name, file.stat().st_mtime_ns))
    assert written[0] == written[1]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, few=3)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "chosen"))
    measure(small(), X, show=False)
    assert len(list((tmp_path / "chosen").iterdir())) == 1
    table(None)
    assert len(list((tmp_path / "chosen").iterdir())) == 1


def test_a_real_table(tmp_path: Path) -> None:
    """On the machine at hand: every node is there, times fall with widths, the sum is what was measured."""
    model = wide()
    x = image(1, 3, 32, 32, dtype=torch.float32)
    found = table(tmp_path, model=model, x=x, rounds=3)
    assert {"stem", "conv1", "conv2", "last"} <= {entry.name for entry in found.entries}
    assert not any(entry.name.startswith("bn") for entry in found.entries), "folded"
    conv1 = next(entry for entry in found.entries if entry.name == "conv1")
    assert float(conv1.costs[0, 0]) < float(conv1.costs[-1, -1])
    assert found.seconds() == pytest.approx(found.measured, rel=1.0)
    assert all(np.isfinite(entry.costs).all() for entry in found.entries)
    assert "conv1.weight[0], conv1.weight[1]" in str(found)
    assert seconds_of(model, x, seconds=0.01) > 0


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    found = table(model=wide())
    other = fxprune.plan_of(fxprune.slim(seeded(Residual()), 0.3, image()))
    with pytest.raises(BudgetError, match="another model"):
        found.seconds(other)
    with pytest.raises(BudgetError, match="rounds"):
        table(rounds=0)

    class Deciding(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) != 0.125 else x

    with pytest.raises(CaptureError, match="eager module"):
        table(model=seeded(Deciding()), x=image())
