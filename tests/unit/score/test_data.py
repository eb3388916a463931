"""Data-driven scores against finite differences and per-sample loops, on networks small enough to write their readers down."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, InputError
from fxprune.score import activation, apoz, fisher, normalised, obd, taylor, taylor_gates
from tests.models.exporting import NETS
from tests.unit.api.nets import Chain, Residual, image, seeded

EPSILON = 1e-5


def batches(sizes: tuple[int, ...] = (3, 2), classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(image(n, 3, 8, 8, seed=n), torch.arange(n) % classes) for n in sizes]


def samples(loader: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for x, y in loader for i in range(len(x))]


# The weights that read each group of Residual, by its name: (module, how a vector over channels scales them).
READERS = {"stem.weight": ("conv1", "head"), "conv1.weight": ("conv2",)}


def scaled(model: nn.Module, group: str, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """The network whose readers of a group see channel c times ``scale[c]``."""
    changed = {}
    for name in READERS[group]:
        weight = model.get_submodule(name).weight.detach()
        changed[f"{name}.weight"] = weight * scale.view(1, -1, *(1,) * (weight.dim() - 2))
    return lambda x: torch.func.functional_call(model, changed, (x,))


def rates(model: nn.Module, group: str, x: Tensor, y: Tensor) -> Tensor:
    """dL/dscale at 1, by autograd through the readers' weights."""
    scale = torch.ones(model.get_parameter(group).shape[0], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(F.cross_entropy(scaled(model, group, scale)(x), y), scale)
    return found


def measured(model: nn.Module, score: Any) -> dict[str, Tensor]:
    graph = fxprune.analyze(model, image())
    function = score.on(graph)
    return {group.name: function(group) for group in graph.groups}


def close(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


def test_taylor_is_what_zeroing_costs_to_first_order() -> None:
    """Against central differences of each batch's loss, no derivative taken."""
    model, loader = seeded(Residual()), batches()
    found = measured(model, taylor(loader))
    assert found.keys() == READERS.keys()
    for group, values in found.items():
        for c in range(len(values)):
            step = torch.zeros(len(values), dtype=torch.float64)
            step[c] = EPSILON
            expected = 0.0
            for x, y in loader:
                with torch.no_grad():
                    up, down = (F.cross_entropy(scaled(model, group, 1 + s)(x), y) for s in (step, -step))
                expected += len(x) / 5 * abs(float(up - down)) / (2 * EPSILON)
            assert float(values[c]) == pytest.approx(expected, rel=1e-5)


def test_taylor_of_gates_and_fisher_by_a_loop_over_samples() -> None:
    model, loader = seeded(Residual()), batches()
    gates, information = measured(model, taylor_gates(loader)), measured(model, fisher(loader))
    for group in READERS:
        each = torch.stack([rates(model, group, x, y) for x, y in samples(loader)])
        close(gates[group], each.abs().mean(0))
        close(information[group], each.square().mean(0) / 2)


def test_both_ways_to_the_first_order_agree() -> None:
    """The mean of the gates' rates over a batch is the rate of its loss: weights and activations tell the same."""
    model, loader = seeded(Residual()), batches((4,))
    by_weights = measured(model, taylor(loader))
    for group in READERS:
        each = torch.stack([rates(model, group, x, y) for x, y in samples(loader)])
        close(by_weights[group], each.mean(0).abs())


def test_optimal_brain_damage_by_a_loop_over_samples() -> None:
    model, loader = seeded(Chain()), batches(classes=4)
    found = measured(model, obd(loader))
    curvature = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in samples(loader):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            curvature[name] += p.grad**2 / 5
    saliency = {name: curvature[name] * p.detach() ** 2 / 2 for name, p in model.named_parameters()}
    expected = saliency["conv1.weight"].sum((1, 2, 3)) + saliency["conv1.bias"] + saliency["bn1.weight"] + saliency["bn1.bias"]
    close(found["conv1.weight"], expected + saliency["conv2.weight"].sum((0, 2, 3)))


def test_statistics_of_what_the_readers_see() -> None:
    model, loader = seeded(Residual()), batches()
    seen: dict[str, list[Tensor]] = {"conv1": [], "conv2": [], "head": []}
    for name, found in seen.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args, f=found: f.append(args[0].detach()))
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    for _, hooked in model.named_modules():
        hooked._forward_pre_hooks.clear()
    mean, zeros = measured(model, activation(x for x, _ in loader)), measured(model, apoz([x for x, _ in loader]))
    conv2 = torch.cat(seen["conv2"])
    close(mean["conv1.weight"], conv2.abs().mean((0, 2, 3)))
    close(zeros["conv1.weight"], 1 - (conv2 == 0).double().mean((0, 2, 3)))
    conv1, head = torch.cat(seen["conv1"]), torch.cat(seen["head"])
    entries = conv1[:, 0].numel() + head[:, 0].numel()
    close(mean["stem.weight"], (conv1.abs().sum((0, 2, 3)) + head.abs().sum(0)) / entries)


ALL = (taylor, taylor_gates, fisher, obd, activation, apoz)


@pytest.mark.parametrize("make", ALL)
def test_the_model_is_not_touched(make: Callable[..., Any]) -> None:
    model, loader = seeded(Residual()).train(), batches()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = copy.deepcopy(model.state_dict())
    slim = fxprune.slim(model, 0.4, image(), score=make(loader))
    assert fxprune.plan_of(slim).score == make.__name__
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
    assert bool((model.head.weight.grad == 1).all())


@pytest.mark.parametrize("make", ALL)
def test_one_pass_and_the_batches_asked_for(make: Callable[..., Any]) -> None:
    model, passes, given = seeded(Residual()), [], batches((2, 3, 2))

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            passes.append(0)
            for batch in given:
                passes[-1] += 1
                yield batch

    graph = fxprune.analyze(model, image())
    score = make(Loader(), batches=2)
    first = fxprune.plan(graph, 0.3, score=score)
    assert passes == [2]
    fxprune.plan(graph.bar(graph.groups[0].channels[:1], "here", "a test"), 0.3, score=score)
    assert passes == [2], "measured again for a graph that only differs in what is pinned"
    assert first == fxprune.plan(graph, 0.3, score=make(given[:2]))


def test_memory_does_not_grow_with_the_samples() -> None:
    """Numbers in tensors that are alive when a batch is asked for: as many after the first batch as after the last."""
    graph = fxprune.analyze(seeded(Residual()), image())
    alive: list[int] = []

    def many(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            gc.collect()
            alive.append(sum(t.numel() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)))
            yield batches((2,))[0]

    gc.freeze()  # what other tests have left behind is neither walked nor counted
    try:
        for make in (taylor, fisher, obd, activation):
            alive.clear()
            make(many(5)).on(graph)
            assert alive[-1] <= alive[2], make.__name__
    finally:
        gc.unfreeze()


def test_inputs_of_several_kinds_and_a_loss_of_ones_own() -> None:
    model, (x, y) = seeded(Residual()), batches((3,))[0]
    expected = measured(model, fisher([(x, y)]))
    for batch in ([x, y], ((x,), y), ({"x": x}, y)):
        for group, values in measured(model, fisher([batch])).items():
            assert torch.equal(values, expected[group])

    def loss(output: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(output, target["labels"] if isinstance(target, dict) else target[0])

    for group, values in measured(model, fisher([(x, y, y)], loss)).items():
        assert torch.equal(values, expected[group])


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_gets_finite_scores(name: str) -> None:
    chosen = NETS[name]
    model, x = chosen.model(), chosen.batch(2)

    def loss(output: Any, _: Any) -> Tensor:
        first = output[0] if isinstance(output, (tuple, list)) else output
        return first.square().mean()

    graph = fxprune.analyze(model, x)
    for score in (taylor([x], loss), fisher([x], loss), taylor_gates([x], loss), activation([x])):
        function = score.on(graph)
        for group in graph.groups:
            values = function(group)
            assert bool(torch.isfinite(values).all()), score.__name__
            assert float(values.max()) > 0, (score.__name__, group.name)


def test_normalised_scores_of_data() -> None:
    model, loader = seeded(Residual()), batches()
    plain, found = measured(model, fisher(loader)), measured(model, normalised(fisher(loader), "mean"))
    for group, values in plain.items():
        close(found[group], values / values.mean())
    plan = fxprune.plan(fxprune.analyze(model, image()), 0.3, score=normalised(fisher(loader), "max"))
    assert plan.score == "fisher:max"


class Deciding(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) != 0.125 else x


def test_eager_models_get_scores_of_weights_and_a_reason_for_the_rest() -> None:
    model, loader = seeded(Deciding()), batches(classes=4)
    found, expected = measured(model, taylor(loader)), measured(seeded(Chain()), taylor(loader))
    for group, values in expected.items():
        close(found[group], values)
    for make in (fisher, activation):
        with pytest.raises(BudgetError, match="eager module"):
            measured(model, make(loader))


def test_bad_loaders_and_losses() -> None:
    model = seeded(Residual())
    with pytest.raises(InputError, match="no batch"):
        measured(model, fisher([]))
    with pytest.raises(InputError, match="no tensor"):
        measured(model, fisher([(torch.tensor(3.0), 1)]))
    with pytest.raises(InputError, match=r"must return one number"):
        measured(model, taylor(batches(), lambda output, _: output))
    with pytest.raises(fxprune.WeightError, match="NaN"):
        fxprune.slim(model, 0.3, image(), score=fisher(batches(), lambda output, _: output.mean() * float("nan")))


@pytest.mark.parametrize("make", [taylor, taylor_gates, fisher, obd, lambda loader: normalised(taylor(loader), "none")])
def test_a_budget_counts_estimates_of_the_loss_once(make: Callable[..., Any]) -> None:
    """The stream of Residual passes two places; its score says what both cost already."""
    model = seeded(Residual()).eval()
    budget = fxprune.Budget(macs=0.6)
    plan = fxprune.plan(fxprune.analyze(model, image()), budget=budget, score=make(batches()))
    total = sum(float(own.sum()) for own in measured(model, make(batches())).values())
    assert plan.figures["kept score"]["original"] == pytest.approx(total, rel=1e-9)


def test_a_budget_counts_what_is_worth_per_place_in_every_place() -> None:
    model = seeded(Residual()).eval()
    graph = fxprune.analyze(model, image())

    def asked(score: Any) -> float:
        return fxprune.plan(graph, budget=fxprune.Budget(macs=0.6), score=score).figures["kept score"]["original"]

    for loader in (batches(),):
        assert asked(normalised(fisher(loader), "mean")) > len(graph.groups[0]) + len(graph.groups[1])
    one = lambda group: torch.ones(len(group))  # noqa: E731
    in_places = asked(one)
    one.totals = True  # type: ignore[attr-defined]
    assert asked(one) == sum(len(group) for group in graph.groups) < in_places
