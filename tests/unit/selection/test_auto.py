"""``layout="auto"``: the faster of both layouts, by interleaved calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import layouts
from fxprune.capture.inputs import given
from fxprune.score import taylor
from tests.unit.api.nets import image, seeded
from tests.unit.selection.nets import Shared


class Clock:
    """Time that passes only where somebody lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    """Takes so many seconds, more in its first call, and notes who is called when, and how."""

    def __init__(self, clock: Clock, seconds: float, log: list[Any]) -> None:
        super().__init__()
        self.clock, self.seconds, self.log = clock, seconds, log

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds * (1 if self.log.count((self.seconds, False)) else 10)
        self.log.append((self.seconds, self.training))
        x.add_(1)
        return x


@pytest.mark.parametrize(("times", "taken"), [((2.0, 1.0), "selection"), ((1.0, 2.0), "coupled"), ((1.0, 0.97), "coupled")])
def test_the_faster_layout_is_taken_and_both_times_are_told(monkeypatch: Any, times: tuple[float, float], taken: str) -> None:
    monkeypatch.setattr(layouts, "interleaved", lambda *_: times)
    model = seeded(Shared(branches=3, width=12))
    slim = fxprune.slim(model, 0.4, image(), layout="auto", absorb=False)
    plan = fxprune.plan_of(slim)
    assert plan.layout == taken
    assert [f"{seconds * 1e3:.3g} ms" in plan.notes[0] for seconds in times] == [True, True]
    again = fxprune.plan(fxprune.analyze(model, image()), 0.4, layout="auto")
    assert (again.layout, again.kept, again.asked, again.achieved) == (taken, plan.kept, 0.4, plan.achieved)


def total(model: nn.Module, plan: fxprune.Plan) -> float:
    """The sum of |gamma| that a plan keeps."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return sum(float(m.weight.detach().abs()[list(plan.kept[f"{n}.weight"][0])].sum()) for n, m in norms.items())


@pytest.mark.parametrize("score", ["auto", "l1"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_layouts_are_compared_at_the_same_score(monkeypatch: Any, seed: int, score: str) -> None:
    """Neither removes less than was asked; neither keeps less than the other one would at the ratio that was asked."""
    model, x = seeded(Shared(branches=4, width=16), seed), image()
    asked = {
        layout: fxprune.plan_of(fxprune.slim(model, 0.3, x, layout=layout, score=score)) for layout in ("coupled", "selection")
    }
    for times, taken in (((2.0, 1.0), "selection"), ((1.0, 2.0), "coupled")):
        monkeypatch.setattr(layouts, "interleaved", lambda *_, times=times: times)
        plan = fxprune.plan_of(fxprune.slim(model, 0.3, x, layout="auto", score=score))
        if "saves neither" not in plan.notes[0]:
            assert plan.layout == taken
        assert plan.asked == 0.3
        assert plan.achieved >= asked[plan.layout].achieved - 1e-9
        if score == "auto":
            assert total(model, plan) >= min(total(model, p) for p in asked.values()) * (1 - 1e-9)


@pytest.mark.parametrize(("times", "taken"), [((2.0, 1.0), "selection"), ((1.0, 2.0), "coupled")])
def test_a_selection_that_keeps_less_is_compared_with_a_coupled_plan_that_removes_more(
    monkeypatch: Any, times: tuple[float, float], taken: str
) -> None:
    """By the reference rule equal gammas go all at once: at the ratio that is asked, selection keeps far less."""
    model, x = seeded(Shared(branches=3, width=12)), image()
    for number, branch in enumerate(model.branches):  # type: ignore[union-attr, arg-type]
        branch.bn.weight.data = 1 + torch.tensor([float(i // 3 == number) for i in range(12)]).double()  # type: ignore[union-attr]
    graph = fxprune.analyze(model, x)
    asked = {layout: fxprune.plan(graph, 0.1, layout=layout, floor=0) for layout in ("coupled", "selection")}
    monkeypatch.setattr(layouts, "_saves", lambda *_: True)
    assert total(model, asked["selection"]) < total(model, asked["coupled"])
    monkeypatch.setattr(layouts, "interleaved", lambda *_: times)
    plan = fxprune.plan(graph, 0.1, layout="auto", floor=0)
    assert plan.layout == taken
    assert total(model, plan) >= total(model, asked["selection"]) * (1 - 1e-9)
    assert "at the same score" in plan.notes[0]
    if taken == "coupled":
        assert plan.asked == 0.1
        assert plan.achieved > asked["coupled"].achieved + 0.2


class Loader:
    """One batch, as often as asked; counts how often that is."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        yield image(), torch.tensor([0, 1])


class Own:
    """A data-driven score of the user's, which remembers nothing."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def on(self, graph: Any) -> Any:
        assert len(list(self.loader)) == 1
        return lambda group: torch.arange(1.0, len(group) + 1)


@pytest.mark.parametrize("make", [taylor, Own])
@pytest.mark.parametrize("times", [(2.0, 1.0), (1.0, 2.0)])
def test_data_are_looked_at_once_per_layout(monkeypatch: Any, make: Any, times: tuple[float, float]) -> None:
    monkeypatch.setattr(layouts, "interleaved", lambda *_: times)
    monkeypatch.setattr(layouts, "_saves", lambda *_: True)
    model, loader = seeded(Shared(branches=3, width=12)), Loader()
    plan = fxprune.plan(fxprune.analyze(model, image()), 0.4, layout="auto", score=make(loader))
    assert loader.passes == 2
    slim = fxprune.slim(model, 0.4, image(), layout="auto", score=make(loader))
    assert loader.passes == 4
    assert fxprune.plan_of(slim).layout == plan.layout == ("selection" if times[0] > times[1] else "coupled")


def test_an_iterator_that_gives_its_batches_once_is_refused() -> None:
    model = seeded(Shared(branches=3, width=12))
    fxprune.slim(model, 0.4, image(), score=taylor(iter(Loader())))
    with pytest.raises(fxprune.InputError, match=r"an iterator gives them once, and layout='auto' looks at two graphs"):
        fxprune.slim(model, 0.4, image(), score=taylor(iter(Loader())), layout="auto")


def test_the_warning_names_the_ratio_that_was_asked(monkeypatch: Any) -> None:
    monkeypatch.setattr(layouts, "interleaved", lambda *_: (2.0, 1.0))
    model = seeded(Shared(branches=3, width=12))
    with pytest.warns(fxprune.FxpruneWarning, match=r"the ratio 0\.4 cuts into large scale factors") as seen:
        plan = fxprune.plan(fxprune.analyze(model, image()), 0.4, layout="auto")
    assert len(seen) == 1
    assert plan.layout == "selection"
    assert plan.achieved > 0.45


def test_gammas_of_zero_cost_no_score() -> None:
    """Every branch reads another third of the stream: coupled channels always hold a large gamma, so only selection removes the zeros."""
    model, x = seeded(Shared(branches=3, width=12)), image()
    for number, branch in enumerate(model.branches):  # type: ignore[union-attr, arg-type]
        branch.bn.weight.data = torch.tensor([float(i % 3 == number) for i in range(12)]).double()  # type: ignore[union-attr]
    graph = fxprune.analyze(model, x)
    seen: list[fxprune.Plan] = []

    def make(graph: Any, layout: str, ratio: float | None) -> fxprune.Plan:
        seen.append(fxprune.plan(graph, ratio, layout=layout))
        return seen[-1]

    chosen = layouts.choose(graph, make, 0.2, lambda _: "auto")
    assert chosen.ratio is not None
    best = fxprune.plan(graph, chosen.ratio, layout=chosen.layout)
    assert chosen.layout == "selection" or chosen.ratio == 0.2
    assert total(model, best) >= min(total(model, p) for p in seen[:2])


def test_where_selection_saves_no_work_no_clock_is_asked() -> None:
    """A chain is the same in both layouts; and a ratio of 0 removes nothing."""
    chain = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))

    def clock() -> float:
        raise AssertionError

    for model, ratio in ((chain, 0.4), (seeded(Shared()), 0.0)):
        graph = fxprune.analyze(model, image())
        chosen = layouts.choose(
            graph, lambda g, layout, share: fxprune.plan(g, share, layout=layout), ratio, lambda _: "auto", clock
        )
        assert (chosen.layout, chosen.ratio) == ("coupled", ratio)
        assert "saves neither" in chosen.note


def test_scores_that_are_no_sums_are_compared_at_the_ratio() -> None:
    def last_first(group: Any) -> Tensor:
        return -torch.arange(len(group), dtype=torch.float64)

    plan = fxprune.plan(fxprune.analyze(seeded(Shared(branches=3, width=12)), image()), 0.4, layout="auto", score=last_first)
    assert "at the same score" not in plan.notes[0]


def test_a_budget_takes_the_coupled_layout() -> None:
    slim = fxprune.slim(seeded(Shared(width=12)), None, image(), budget=fxprune.Budget(macs=0.6), layout="auto")
    assert fxprune.plan_of(slim).layout == "coupled"
    assert "'selection' cannot be had" in fxprune.plan_of(slim).notes[0]


def test_calls_are_interleaved_and_the_least_of_them_counts() -> None:
    clock, log = Clock(), list[Any]()
    first, second = Slow(clock, 0.25, log), Slow(clock, 0.5, log).train()
    x = torch.zeros(2)
    assert layouts.interleaved(first, second, given(x), clock) == (0.25, 0.5)
    assert log == [(0.25, False), (0.5, False)] * (len(log) // 2)
    assert len(log) // 2 == layouts.LEAST_CALLS + 1
    assert (first.training, second.training) == (True, True)
    assert torch.equal(x, torch.zeros(2))


def test_where_one_layout_cannot_be_had_the_other_is_taken() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    plan = fxprune.plan_of(fxprune.slim(model, 0.5, image(), layout="auto", absorb=False))
    assert plan.layout == "coupled"
    assert "'selection' cannot be had: layout='selection' needs batch norms" in plan.notes[0]


def test_where_neither_can_be_had_the_reason_of_the_coupled_layout_is_told() -> None:
    model = seeded(Shared())
    with pytest.raises(fxprune.FxpruneError, match="ratio must be"):
        fxprune.slim(model, 40, image(), layout="auto")
    with pytest.raises(fxprune.FxpruneError, match="layout must be 'coupled', 'selection' or 'auto'"):
        fxprune.slim(model, 0.4, image(), layout="narrow")
