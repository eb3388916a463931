"""Latency budgets end to end, on machines whose times are known: the table, the plan, the clock, the correction, what is told."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune import Budget, BudgetError
from fxprune.cli import main
from fxprune.latency import measure
from fxprune.solve.cost_table import CostEntry, MeasuredCosts
from fxprune.solve.measured import Reading, meet_latency
from tests.unit.api.nets import Chain, image, run, seeded
from tests.unit.latency.test_latency import X, known, machine, true, wide, widths_of

LAYERS = ["stem", "conv1", "conv2", "last", "head"]


class Clock:
    """Times a model as ``known`` says, those that are slimmer than the original ``slower`` than that; notes what it was shown."""

    def __init__(self, slower: float = 1.0, dear: float = 1.0) -> None:
        self.slower, self.dear = slower, dear
        self.shown: list[nn.Module] = []

    def of(self, module: nn.Module) -> float:
        return 1.1 * sum(known(name, widths_of(module), self.dear) for name in LAYERS)

    def __call__(self, calls: Sequence[Any], *_: Any) -> list[list[float]]:
        original, slim = (call.func for call in calls)
        assert gc.isenabled()
        assert not original.training
        assert not slim.training
        self.shown.append(slim)
        return [[self.of(original)], [self.slower * self.of(slim)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Clock:
    return at(Clock(), monkeypatch, folder)


def at(clock: Clock, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Clock:
    machine(monkeypatch, dear=clock.dear)
    monkeypatch.setattr(sys.modules["fxprune.timed"], "interleaved", clock)
    monkeypatch.setenv("FXPRUNE_CACHE", str(folder / str(clock.dear)))
    return clock


def latency(slim: nn.Module) -> dict[str, float]:
    return dict(fxprune.plan_of(slim).figures["latency"])


@pytest.mark.parametrize("slower", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("amount", [0.6, "relative"])
def test_the_clock_decides(amount: Any, slower: float, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Whatever the table foresees: what comes back takes at most what was asked, by the clock, and not much less."""
    clock, model = at(Clock(slower), monkeypatch, folder), wide()
    whole = clock.of(model)
    asked: Any = amount if amount != "relative" else f"{0.6e3 * whole}ms"
    slim = fxprune.slim(model, None, X, budget=Budget(latency=asked))
    figures = latency(slim)
    assert figures["original"] == pytest.approx(whole)
    assert figures["asked"] == pytest.approx(0.6 * whole)
    assert figures["measured"] == figures["achieved"] == pytest.approx(slower * clock.of(slim)), "what is returned was timed"
    assert 0.9 * figures["asked"] < figures["measured"] <= figures["asked"]
    assert figures["predicted"] == pytest.approx(clock.of(slim), rel=0.15)
    assert figures["rounds"] == len(clock.shown)
    notes = fxprune.plan_of(slim).notes
    assert sum(note.startswith("latency: ") for note in notes) == 1
    assert fxprune.Plan.from_json(fxprune.plan_of(slim).to_json()) == fxprune.plan_of(slim)
    assert gc.isenabled()
    assert run(slim, X).shape == (2, 10)
    assert "latency, ms" in str(fxprune.summary(slim))


def test_other_bounds_hold_too(clock: Clock) -> None:
    slim = fxprune.slim(wide(), None, X, budget=Budget(latency=0.7, macs=0.35, params=0.5))
    figures = fxprune.plan_of(slim).figures
    assert all(own["achieved"] <= own["asked"] for name, own in figures.items() if name != "kept score")
    assert figures["params"]["achieved"] == sum(p.numel() for p in slim.parameters())
    assert {"original", "asked", "predicted", "measured"} <= set(figures["latency"])


def test_what_cannot_be_met_tells_the_best(clock: Clock) -> None:
    with pytest.raises(BudgetError, match=r"was not met in \d rounds?: the fastest model took .* floor=0.5 binds") as caught:
        fxprune.slim(wide(), None, X, budget=Budget(latency=0.001), floor=0.5)
    (fastest,) = {clock.of(slim) for slim in clock.shown}
    assert caught.value.got == pytest.approx(fastest)
    nearest = caught.value.nearest
    assert nearest.figures["latency"]["measured"] == pytest.approx(fastest)
    slim = fxprune.apply(wide(), nearest, X)
    assert clock.of(slim) == pytest.approx(fastest)


def test_what_is_wrong_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = machine(monkeypatch)
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    wrong: tuple[tuple[Budget, dict[str, Any], str], ...] = (
        (Budget(latency=0.9, macs=0.0001), {}, "macs of at most"),
        (Budget(latency=0.9), {"score": "best"}, "best"),
        (Budget(latency=0.9), {"floor": 2}, "floor"),
        (Budget(latency=0.9), {"scope": "here"}, "here"),
        (Budget(latency=0.9), {"round_to": 0}, "round_to"),
    )
    for budget, options, said in wrong:
        with pytest.raises(BudgetError, match=said):
            fxprune.slim(wide(), None, X, budget=budget, **options)
        with pytest.raises(BudgetError, match=said):
            fxprune.plan(fxprune.analyze(wide(), X), budget=budget, **options)
    assert not calls


def test_a_prediction_that_is_too_dark_is_put_right(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """By the table the bound is out of reach; the clock is asked all the same."""
    clock, model = at(Clock(0.5), monkeypatch, folder), wide()
    with pytest.raises(BudgetError) as caught:
        fxprune.plan(fxprune.analyze(model, X), budget=Budget(macs=1e-4), floor=0.5)
    least = clock.of(fxprune.apply(model, caught.value.nearest, X))
    slim = fxprune.slim(model, None, X, budget=Budget(latency=f"{0.8e6 * least}us"), floor=0.5)
    assert latency(slim)["measured"] <= 0.8 * least < latency(slim)["predicted"]


def test_cheap_widths_are_the_default(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    at(Clock(dear=1.5), monkeypatch, folder)

    def odd(**options: Any) -> list[int]:
        slim = fxprune.slim(wide(), None, X, budget=Budget(latency=0.55), score="random", **options)
        plan = fxprune.plan_of(slim)
        told = [note for note in plan.notes if note.startswith("widths are multiples of 2")]
        assert bool(told) == (not options)
        return [n for n in (len(plan.kept[f"{layer}.weight"][0]) for layer in LAYERS[:4]) if n % options.get("round_to", 2)]

    assert not odd()
    assert not odd(round_to=8)
    assert latency(fxprune.slim(wide(), None, X, budget=Budget(latency=0.55), round_to=1))["achieved"]


def test_a_coarse_alignment_gives_way(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    at(Clock(dear=1.5), monkeypatch, folder)
    table = measure(wide(), X, deployed=False)
    object.__setattr__(table, "alignment", 64)
    plan = fxprune.plan(fxprune.analyze(wide(), X), budget=Budget(latency=0.5, table=table))
    assert any(note.startswith("widths are multiples of ") for note in plan.notes)
    assert plan.figures["latency"]["achieved"] <= plan.figures["latency"]["asked"]


def test_a_budget_that_is_met_already_rounds_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    at(Clock(dear=1.5), monkeypatch, folder)
    plan = fxprune.plan_of(fxprune.slim(wide(), None, X, budget=Budget(latency="1s")))
    assert plan.empty
    assert any("nothing goes" in note for note in plan.notes)
    assert not any(note.startswith("widths are multiples of") for note in plan.notes)


def test_one_table_serves_all_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at(Clock(), monkeypatch, tmp_path)
    fxprune.slim(wide(), None, X, budget=Budget(latency=0.7))
    calls = machine(monkeypatch)
    kept = fxprune.slim(wide(), None, X, budget=Budget(latency=0.6), keep=["conv1"])
    assert len(fxprune.plan_of(kept).kept["conv1.weight"][0]) == 48
    plan = fxprune.plan(fxprune.analyze(wide(), X), budget=Budget(latency=0.6))
    assert plan.figures["latency"]["achieved"] <= plan.figures["latency"]["asked"]
    assert "measured" not in plan.figures["latency"], "plan times nothing: it has no model to run"
    assert not calls
    assert len(list((tmp_path / "1.0").iterdir())) == 1


def test_tables_of_elsewhere_only_predict(clock: Clock) -> None:
    table = measure(wide(), X, deployed=False)
    other = measure(wide(), image(4, 3, 8, 8, dtype=torch.float32), deployed=False)
    plain = MeasuredCosts(table.constant, table.entries)
    for foreign in (other, plain):
        slim = fxprune.slim(wide(), None, X, budget=Budget(latency=0.7, table=foreign))
        figures = latency(slim)
        assert "measured" not in figures
        assert figures["achieved"] <= figures["asked"]
        assert any("not timed here" in note for note in fxprune.plan_of(slim).notes)
    assert not clock.shown
    assert "measured" in latency(fxprune.slim(wide(), None, X, budget=Budget(latency=0.7, table=table)))


def test_a_table_of_the_deployed_form_has_that_form_timed(clock: Clock) -> None:
    table = measure(wide(), X)
    object.__setattr__(table, "form", "folded")
    slim = fxprune.slim(wide(), None, X, budget=Budget(latency=0.7, table=table))
    assert latency(slim)["measured"] <= latency(slim)["asked"]
    assert all(not any(isinstance(m, nn.BatchNorm2d) for m in shown.modules()) for shown in clock.shown)
    assert any(isinstance(m, nn.BatchNorm2d) for m in slim.modules())


def test_data_are_looked_at_once(clock: Clock) -> None:
    seen: list[int] = []

    class Looking:
        def on(self, graph: fxprune.ChannelGraph) -> Any:
            seen.append(len(graph.groups))
            return fxprune.score.magnitude

    clock.slower = 1.3
    loader = [(X, torch.tensor([0, 1]))]
    slim = fxprune.slim(wide(), None, X, budget=Budget(latency=0.6), score=Looking(), absorb=loader)
    assert len(seen) == 1
    assert len(clock.shown) > 1
    assert latency(slim)["measured"] <= latency(slim)["asked"]
    assert fxprune.slim(wide(), None, X, budget=Budget(latency=0.6), score=fxprune.score.taylor(loader))


def test_a_warning_is_given_for_what_is_taken(clock: Clock) -> None:
    clock.slower = 1.3
    model = wide()
    with pytest.warns(fxprune.FxpruneWarning, match="cuts into large scale factors") as caught:
        fxprune.slim(model, None, X, budget=Budget(latency=0.5), score="gamma", keep=["last"])
    assert len(clock.shown) > 1
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_model_stays_as_it_was(clock: Clock) -> None:
    model = wide().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slim = fxprune.slim(model, None, X, budget=Budget(latency=0.6))
    assert slim.training
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_timed_is_refused() -> None:
    class Deciding(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) != 0.125 else x

    with pytest.raises(BudgetError, match=r"eager module.*Give Budget\(latency=..., table="):
        fxprune.slim(seeded(Deciding()), None, image(), budget=Budget(latency=0.5))
    with pytest.raises(BudgetError, match="layout='selection' takes a ratio"):
        fxprune.slim(wide(), None, X, budget=Budget(latency=0.5), layout="selection")


def test_a_noisy_clock_does_not_keep_the_search_from_ending() -> None:
    """The aim stays between what was met and what was not; a plan is timed once."""
    graph = fxprune.analyze(wide(), X)
    entry = CostEntry("conv1", (("conv1.weight", 0),), ((1, 48),), torch.tensor([1e-4, 1e-3]).double().numpy())
    generator = torch.Generator().manual_seed(0)
    made: list[fxprune.Plan] = []

    def noisy(plan: fxprune.Plan) -> Reading:
        made.append(plan)
        noise = 1 + 0.2 * float(torch.randn((), generator=generator))
        return Reading(plan.figures["latency"]["achieved"] * noise, 1e-3 * noise)

    budget = Budget(latency=0.5, table=MeasuredCosts(0.0, (entry,)))
    found = meet_latency(budget, lambda b: fxprune.plan(graph, budget=b), lambda plan: plan, noisy)
    assert found.seconds <= found.bound
    assert len(made) == len({plan.to_json() for plan in made}) <= 6


def test_the_command_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shape = "x".join(map(str, X.shape))
    with pytest.raises(SystemExit) as ended:
        main(["slim", "tests.unit.latency.test_latency:wide", "--latency", "0.6", "--params", "0.8", "-i", shape, "--json"])
    assert ended.value.code == 0
    data = json.loads(capsys.readouterr().out)
    assert data["figures"]["latency"]["measured"] <= data["figures"]["latency"]["asked"]
    assert data["figures"]["params"]["achieved"] == data["after"]["parameters"]
    with pytest.raises(SystemExit) as ended:
        main(["slim", "tests.unit.latency.test_latency:wide", "--latency", "1us", "-i", shape])
    assert ended.value.code == 1
    assert "the fastest model took" in capsys.readouterr().err


def test_on_the_machine_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real clock: nothing is said about how fast, but what is promised is kept."""
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(sys.modules["fxprune.timed"], "SECONDS", 0.05)
    model = seeded(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), dtype=torch.float32)
    refused: BudgetError | None = None
    try:
        slim = fxprune.slim(model, None, X, budget=Budget(latency=0.9, params=0.9))
    except BudgetError as error:
        refused = error
    if refused is not None:
        assert "the fastest model took" in str(refused)
        assert refused.nearest.figures["latency"]["measured"] > refused.nearest.figures["latency"]["asked"]
    else:
        assert isinstance(slim, fx.GraphModule)
        figures = latency(slim)
        assert figures["measured"] <= figures["asked"] == pytest.approx(0.9 * figures["original"])
        assert figures["predicted"] > 0
    assert len(list(tmp_path.iterdir())) == 1


def test_true_is_what_the_clock_says() -> None:
    assert Clock().of(wide()) == pytest.approx(true(wide(), LAYERS))
