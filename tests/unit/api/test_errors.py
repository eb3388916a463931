"""Refusals for people: the type, the offending value, what to do, the fields, and an untouched model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import (
    BudgetError,
    CaptureError,
    FxpruneError,
    InputError,
    KeepError,
    NothingToPruneError,
    PlanMismatchError,
    WeightError,
)
from tests.reference.compare import Snapshot
from tests.unit.api.nets import Chain, Residual, image, run, seeded

Build = Callable[[], nn.Module]
Call = Callable[[nn.Module], Any]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """One thing that is refused: what is asked of which model, and what the error has to say and hold."""

    name: str
    call: Call
    kind: type[FxpruneError]
    says: tuple[str, ...]
    fields: dict[str, object] = dataclasses.field(default_factory=dict)
    build: Build = Chain
    open: str = ""


def slim(*args: Any, **options: Any) -> Call:
    return lambda model: fxprune.slim(model, *(args or (0.4,)), **{"example_inputs": image(), **options})


def broken(name: str, number: float, index: int = 3) -> Build:
    def build() -> nn.Module:
        model = Chain()
        with torch.no_grad():
            model.state_dict()[name][index] = number
        return model

    return build


def changed(**modules: Callable[[], nn.Module]) -> Build:
    def build() -> nn.Module:
        model = Chain()
        for name, make in modules.items():
            setattr(model, name, make())
        return model

    return build


def integer_weights() -> nn.Module:
    model = Chain()
    model.conv2.weight = nn.Parameter(torch.ones(10, 8, 3, 3, dtype=torch.int8), requires_grad=False)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Chain()


def buffer_on_meta() -> nn.Module:
    model = Chain()
    model.bn1.running_mean = torch.empty(8, device="meta")
    return model


def dynamically_quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Chain().float(), {nn.Linear})


def statically_quantised() -> nn.Module:
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.default_qconfig
    ready = quantization.prepare(model)
    ready(torch.randn(2, 3, 8, 8))
    return quantization.convert(ready)


def foreign_plan(model: nn.Module) -> Any:
    other = fxprune.plan(fxprune.analyze(seeded(Residual()), image()), 0.4)
    return fxprune.apply(model, other, image())


def wider_plan(model: nn.Module) -> Any:
    wider = fxprune.plan(fxprune.analyze(seeded(Chain(12)), image()), 0.4)
    return fxprune.apply(model, wider, image())


def torn_plan(model: nn.Module) -> Any:
    whole = fxprune.plan(fxprune.analyze(model, image()), 0.4)
    kept = {name: dict(dims) for name, dims in whole.kept.items()}
    kept["bn1.weight"][0] = tuple(range(8))
    return fxprune.apply(model, dataclasses.replace(whole, kept=kept), image())


def pinned_plan(model: nn.Module) -> Any:
    whole = fxprune.plan(fxprune.analyze(model, image()), 0.4)
    kept = {name: dict(dims) for name, dims in whole.kept.items()}
    kept["fc.weight"][0] = kept["fc.bias"][0] = (0, 1)
    return fxprune.apply(model, dataclasses.replace(whole, kept=kept), image())


RANGE = {"expected": "[0, 1)"}
NAN = float("nan")
REFUSALS = [
    # ratio
    Refusal("ratio 40", slim(40), BudgetError, ("got 40", "[0, 1)", "Did you mean 0.40?"), {**RANGE, "got": 40}),
    Refusal("ratio 400", slim(400), BudgetError, ("got 400", "[0, 1)", "REMOVE"), {**RANGE, "got": 400}),
    Refusal("ratio 1", slim(1.0), BudgetError, ("got 1", "[0, 1)", "REMOVE"), {**RANGE, "got": 1.0}),
    Refusal("negative ratio", slim(-0.2), BudgetError, ("got -0.2", "[0, 1)", "REMOVE"), {**RANGE, "got": -0.2}),
    Refusal("NaN ratio", slim(NAN), BudgetError, ("got nan", "[0, 1)", "REMOVE"), RANGE),
    Refusal("infinite ratio", slim(float("inf")), BudgetError, ("got inf", "[0, 1)"), RANGE),
    Refusal("bool ratio", slim(True), BudgetError, ("got True", "number in [0, 1)"), {**RANGE, "got": True}),
    Refusal("str ratio", slim("0.4"), BudgetError, ("got '0.4'", "number in [0, 1)"), {**RANGE, "got": "0.4"}),
    Refusal("no ratio", slim(None), BudgetError, ("ratio is missing", "[0, 1)"), {**RANGE, "got": None}),
    Refusal("ratio beyond floors", slim(0.95, floor=0.5), BudgetError, ("ratio 0.95", "floor=0.5", "0.5", "lower floor"),
            {"expected": 0.5, "got": 0.95}),
    Refusal("round_to wider than any layer", slim(0.5, round_to=16), NothingToPruneError, ("round_to=16", "Lower"), {"got": 0.5}),
    Refusal("floor of everything", slim(0.5, floor=1.0), NothingToPruneError, ("floor=1", "Lower floor"), {"got": 0.5}),
    Refusal("floor above one", slim(0.5, floor=2), BudgetError, ("floor", "[0, 1]", "got 2"), {"expected": "[0, 1]", "got": 2}),
    Refusal("negative floor", slim(0.5, floor=-1), BudgetError, ("floor", "[0, 1]", "got -1"), {"got": -1}),
    Refusal("NaN floor", slim(0.5, floor=NAN), BudgetError, ("floor", "[0, 1]", "got nan")),
    Refusal("str floor", slim(0.5, floor="0.1"), BudgetError, ("floor", "'0.1'")),
    Refusal("round_to 0", slim(0.5, round_to=0), BudgetError, ("round_to", "positive whole number", "got 0"), {"got": 0}),
    Refusal("fractional round_to", slim(0.5, round_to=1.5), BudgetError, ("round_to", "got 1.5"), {"got": 1.5}),
    Refusal("unknown layout", slim(0.5, layout="narrow"), BudgetError, ("layout", "'coupled'", "'narrow'"), {"got": "narrow"}),
    # weights
    Refusal("NaN gamma", slim(), WeightError, ("1 of the 8", "bn1.weight", "NaN", "nothing was pruned"),
            {"node": "bn1.weight"}, broken("bn1.weight", NAN)),
    Refusal("infinite gamma", slim(), WeightError, ("1 of the 10", "bn2.weight", "infinite"),
            {"node": "bn2.weight"}, broken("bn2.weight", float("inf"))),
    Refusal("NaN filter", slim(score="magnitude"), WeightError, ("conv1.weight", "NaN"), {"node": "conv1.weight"},
            broken("conv1.weight", NAN)),
    Refusal("infinite statistic", slim(), WeightError, ("1 of the 8", "bn1.running_var", "infinite"),
            {"node": "bn1.running_var"}, broken("bn1.running_var", float("inf"))),
    Refusal("integer weights", slim(), WeightError, ("conv2.weight", "torch.int8", "floating-point"),
            {"node": "conv2.weight", "got": torch.int8}, integer_weights),
    Refusal("dynamically quantised", slim(), WeightError, ("'fc'", "quantise", "Prune the float model"), {"node": "fc"},
            dynamically_quantised),
    Refusal("statically quantised", slim(), WeightError, ("quantise", "Prune the float model"), {"node": "0"}, statically_quantised),
    Refusal("meta weights", slim(), WeightError, ("conv1.weight", "meta device", "Load the weights"), {"node": "conv1.weight"}, on_meta),
    Refusal("meta buffer", slim(verify=False), WeightError, ("bn1.running_mean", "meta device"), {"node": "bn1.running_mean"},
            buffer_on_meta),
    # nothing to prune
    Refusal("one layer", slim(example_inputs=image(2, 4)), NothingToPruneError, ("no channel", "output", "keeps its shape"), {},
            lambda: nn.Linear(4, 3)),
    Refusal("no layer", slim(), NothingToPruneError, ("no channel", "no layers with channels"), {}, nn.ReLU),
    Refusal("all kept", slim(keep=("conv*",)), NothingToPruneError, ("no channel", "kept by the user", "conv*"), {}),
    # capture
    # inputs
    Refusal("wrong channels", slim(example_inputs=image(2, 4, 8, 8)), InputError, ("'conv1'", "example inputs"),
            {"node": "conv1", "target": "conv1"}),
    Refusal("wrong rank", slim(example_inputs=image(2, 8)), InputError, ("'conv1'", "[2, 8]"), {"node": "conv1"}),
    Refusal("wrong dtype", slim(example_inputs=image().long()), InputError, ("'conv1'", "long"), {"node": "conv1"}),
    Refusal("a text", slim(example_inputs="x"), InputError, ("got str", "a tensor, a tuple"), {"got": "str"}),
    Refusal("a number", slim(example_inputs=3), InputError, ("got int", "a tensor, a tuple"), {"got": "int"}),
    Refusal("no arguments", slim(example_inputs=()), InputError, ("'x'", "does not give it"), {"node": "x", "expected": "x"}),
    Refusal("too many", slim(example_inputs=(image(), image())), InputError, ("more example inputs", "than the model takes")),
    Refusal("an empty batch", slim(example_inputs=image(0, 3, 8, 8)), InputError, ("(0, 3, 8, 8)", "empty", "at least one"),
            {"got": (0, 3, 8, 8)}),
    Refusal("an unknown keyword alone", slim(example_inputs={"y": image()}), InputError, ("'x'",), {"expected": "x"}),
    Refusal("an unknown keyword", slim(example_inputs={"x": image(), "y": image()}), InputError, ("'y'",), {}),
    Refusal("nothing to infer from", slim(example_inputs=None), InputError, ("could not be inferred", "Pass example_inputs="), {},
            lambda: nn.Sequential(nn.ReLU())),
    # keep
    Refusal("unknown keep", slim(keep=("conv3",)), KeepError, ("'conv3'", "matches no module or parameter"), {"got": "conv3"}),
    Refusal("a parameter misspelt", slim(keep="conv1.weigth"), KeepError, ("conv1.weigth", "Did you mean"), {}),
    Refusal("keep with a wrong prefix", slim(keep="net.conv1"), KeepError, ("'net.conv1'", "Did you mean 'conv1'?"), {"got": "net.conv1"}),
    Refusal("a number in keep", slim(keep=3), KeepError, ("3",), {}),
    # scores
    Refusal("unknown score", slim(score="gama"), BudgetError, ("'gama'", "gamma"), {"got": "gama"}),
    Refusal("gamma without norms", slim(score="gamma", example_inputs=image(2, 3)), BudgetError, ("'gamma'", "batch norm", "magnitude"),
            {"node": "0.weight"}, lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))),
    Refusal("score of wrong shape", slim(score=lambda _: torch.ones(3)), BudgetError, ("8 values", "(3,)", "conv1.weight"),
            {"node": "conv1.weight", "expected": (8,), "got": (3,)}),
    Refusal("score that is one number", slim(score=lambda _: 3.0), BudgetError, ("8 values", "()"), {"got": ()}),
    Refusal("score that is NaN", slim(score=lambda group: torch.full((len(group),), NAN)), WeightError, ("8 of the 8", "NaN"),
            {"node": "conv1.weight"}),
    Refusal("score that returns nothing", slim(score=lambda _: None), BudgetError, ("score",), {}),
    Refusal("score that returns a text", slim(score=lambda _: "high"), BudgetError, ("score",), {}),
    Refusal("score that is no callable", slim(score=3), BudgetError, ("score", "3"), {}),
    # plans
    Refusal("plan of another model", foreign_plan, PlanMismatchError, ("does not belong", "stem.weight"), {"node": "stem.weight"}),
    Refusal("plan of a wider model", wider_plan, PlanMismatchError, ("does not belong", "12 channels", "8 channels"), {"expected": 12}),
    Refusal("plan that tears channels", torn_plan, PlanMismatchError, ("coupled", "another model"), {}),
    Refusal("plan that removes outputs", pinned_plan, PlanMismatchError, ("cannot go", "fc.weight", "explain"), {}),
    Refusal("plan as a text", lambda m: fxprune.apply(m, "{}", image()), PlanMismatchError, ("got str", "from_json"), {}),
    Refusal("plan of a plain module", fxprune.plan_of, PlanMismatchError, ("carries no plan", "Chain"), {"got": "Chain"}),
    Refusal("verify of a plain module", lambda m: fxprune.verify(m, torch.fx.symbolic_trace(m), image()), PlanMismatchError,
            ("carries no plan",), {}),
    # explain
    Refusal("explain of an unknown name", lambda m: fxprune.analyze(m, image()).explain("net.conv1"), FxpruneError,
            ("'net.conv1'", "Did you mean 'conv1'?"), {"got": "net.conv1"}),
]  # fmt: skip


def _rows() -> list[Any]:
    return [pytest.param(r, id=r.name, marks=pytest.mark.xfail(strict=True, reason=r.open) if r.open else ()) for r in REFUSALS]


def _prepared(refusal: Refusal) -> nn.Module:
    model = refusal.build()
    quantised = "quantised" in refusal.name
    integer = any(not p.is_floating_point() for p in model.parameters())
    return model.eval() if quantised or integer else model.double().eval()


@pytest.mark.parametrize("refusal", _rows())
def test_refusals(refusal: Refusal) -> None:
    model = _prepared(refusal)
    before = Snapshot(model) if "quantised" not in refusal.name and "meta" not in refusal.name else None
    with pytest.raises(FxpruneError) as caught:
        refusal.call(model)
    error = caught.value
    assert isinstance(error, refusal.kind), f"{type(error).__name__}: {error}"
    for words in refusal.says:
        assert words in str(error), str(error)
    for field, value in refusal.fields.items():
        assert getattr(error, field) == value, f"{field}={getattr(error, field)!r}"
    if before is not None:
        assert not _changes(before, model)


def _changes(before: Snapshot, model: nn.Module) -> list[str]:
    """Differences, where NaN equals NaN."""
    state = model.state_dict()
    same = {f"value of {k}" for k, v in before.state.items() if torch.equal(v.nan_to_num(1e9), state[k].nan_to_num(1e9))}
    return [change for change in before.differences(model) if change not in same]


@pytest.mark.parametrize("refusal", [pytest.param(r, id=r.name) for r in REFUSALS if not r.open])
def test_what_was_found_is_a_field(refusal: Refusal) -> None:
    with pytest.raises(FxpruneError) as caught:
        refusal.call(_prepared(refusal))
    assert not (isinstance(caught.value.got, str) and caught.value.got == "")


def test_every_error_is_of_the_family() -> None:
    names = [n for n in fxprune.__all__ if n.endswith("Error")]
    assert all(issubclass(getattr(fxprune, n), FxpruneError) for n in names)
    assert issubclass(BudgetError, ValueError)
    assert issubclass(PlanMismatchError, ValueError)


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, image())], ids=["scripted", "traced"])
@pytest.mark.filterwarnings("ignore")
def test_a_script_module_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    model = make(seeded(Chain()))
    with pytest.raises(CaptureError, match="TorchScript") as caught:
        fxprune.slim(model, 0.4, image())
    assert "Hand over the nn.Module it was made from" in str(caught.value)
    assert caught.value.got == type(model).__name__


@pytest.mark.parametrize("given", [3, Chain, lambda x: x], ids=["number", "class", "function"])
def test_what_is_no_module_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, got (int|type|function)"):
        fxprune.slim(given, 0.4, image())


def test_a_nan_filter_under_the_gamma_score_is_refused() -> None:
    model = broken("conv2.weight", NAN)()
    with pytest.raises(WeightError, match=r"conv2\.weight"):
        fxprune.slim(model.double().eval(), 0.2, image())


def test_an_error_inside_a_users_score_is_the_users() -> None:
    with pytest.raises(ZeroDivisionError):
        fxprune.slim(seeded(Chain()), 0.4, image(), score=lambda _: 1 / 0)


def test_a_graph_module_is_a_model_like_any_other() -> None:
    model = seeded(Chain())
    traced = torch.fx.symbolic_trace(model)
    before, code = Snapshot(traced), traced.code
    slim_traced = fxprune.slim(traced, 0.4, image())
    assert fxprune.plan_of(slim_traced) == fxprune.plan_of(fxprune.slim(model, 0.4, image()))
    assert not before.differences(traced)
    assert traced.code == code


@pytest.mark.parametrize("build", [Chain, Residual])
def test_an_already_slim_model_composes(build: Build) -> None:
    """The plan of the second is in the original's coordinates, and makes the second from a fresh original."""
    model = seeded(build())
    first = fxprune.slim(model, 0.3, image(), absorb=False)
    before, plan_before = Snapshot(first), fxprune.plan_of(first)
    second = fxprune.slim(first, 0.3, image(), absorb=False)
    assert not before.differences(first)
    assert fxprune.plan_of(first) == plan_before
    plan = fxprune.plan_of(second)
    assert {name: dict(dims) for name, dims in plan.sizes.items()} == {
        name: dict(dims) for name, dims in plan_before.sizes.items()
    }
    for name, dims in plan.kept.items():
        for dim, rows in dims.items():
            assert set(rows) <= set(plan_before.kept[name][dim])
    again = fxprune.apply(seeded(build()), plan, image(), absorb=False)
    state = second.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert torch.equal(run(again, image()), run(second, image()))
    fxprune.verify(model, second, image())


def test_a_copy_of_the_model_is_not_needed_for_a_second_try() -> None:
    """A refused call leaves nothing behind that a later one would see."""
    model = seeded(Chain())
    expected = fxprune.plan_of(fxprune.slim(copy.deepcopy(model), 0.4, image()))
    for bad in (40, None):
        with pytest.raises(BudgetError):
            fxprune.slim(model, bad, image())
    assert fxprune.plan_of(fxprune.slim(model, 0.4, image())) == expected


def test_a_compiled_model_is_not_looked_into() -> None:
    compiled = torch.compile(seeded(Chain()))
    with pytest.raises(CaptureError, match=r"model\._orig_mod"):
        fxprune.slim(compiled, 0.4, image())


def test_a_shape_is_no_example() -> None:
    with pytest.raises(InputError, match=r"Did you mean torch\.randn\(2, 3, 8, 8\)\?"):
        fxprune.slim(seeded(Chain()), 0.4, (2, 3, 8, 8))


@pytest.mark.parametrize("ratio", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_ratio_is_any_real_number(ratio: Any) -> None:
    assert fxprune.plan_of(fxprune.slim(seeded(Chain()), ratio, image())) == fxprune.plan_of(
        fxprune.slim(seeded(Chain()), 0.5, image())
    )
