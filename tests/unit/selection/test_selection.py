"""The selection layout, point by point: thresholds, selects, liveness, emptied layers, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.errors import BudgetError, NothingToPruneError, VerificationError
from tests.reference.compare import backward, relative_error
from tests.reference.zeroed import zeroed
from tests.unit.api.nets import image, run, seeded
from tests.unit.selection.nets import Branch, Shared, kept, with_gammas


def selected(model: nn.Module, ratio: float, x: Tensor | None = None, **options: Any) -> Any:
    """Slim in the selection layout by the reference rule, and hold it against the zeroed network."""
    x = image() if x is None else x
    options = {"floor": 0, "absorb": False} | options
    slim = fxprune.slim(model, ratio, x, layout="selection", **options)
    assert relative_error(run(slim, x), zeroed(model, fxprune.plan_of(slim), x)) <= 1e-9
    return slim


# ---- the rule ----


def test_every_batch_norm_keeps_what_is_greater_than_the_threshold() -> None:
    model = with_gammas(
        seeded(Shared()), branches__0__bn=[0.1, 0.9, 0.2, 0.8, 0.3, 0.7], branches__1__bn=[0.9, 0.15, 0.8, -0.25, 0.6, 0.5]
    )
    slim = selected(model, 0.5)  # sorted[6] = 0.6: it goes too
    assert kept(slim, "branches.0.bn.weight") == (1, 3, 5)
    assert kept(slim, "branches.1.bn.weight") == (0, 2)
    assert fxprune.plan_of(slim).achieved == pytest.approx(7 / 12)
    assert fxprune.plan_of(slim).score == "gamma"


def test_equal_gammas_go_together_by_the_reference_rule_and_evenly_with_a_floor() -> None:
    model = with_gammas(seeded(Shared()), branches__0__bn=[1.0] * 6, branches__1__bn=[2.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    slim = selected(model, 0.2)
    assert fxprune.plan_of(slim).achieved >= 8 / 12
    even = fxprune.plan_of(selected(model, 0.2, floor=0.1))
    assert even.achieved == pytest.approx(3 / 12)


def test_a_ratio_of_zero_removes_nothing() -> None:
    slim = selected(seeded(Shared()), 0.0)
    assert fxprune.plan_of(slim).empty
    assert "_select" not in slim.code


@pytest.mark.parametrize("layout", ["coupled", "selection", "auto"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": -1}, r"floor must be in \[0, 1\] .*, got -1"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\] .*, got 1\.5"),
        ({"round_to": 0}, "round_to must be a positive whole number, got 0"),
        ({"round_to": 2.5}, r"round_to must be a positive whole number, got 2\.5"),
    ],
)
def test_floors_and_widths_that_make_no_sense_are_refused_in_every_layout(
    layout: str, options: dict[str, Any], message: str
) -> None:
    model = seeded(Shared())
    with pytest.raises(BudgetError, match=message):
        fxprune.slim(model, 0.5, image(), layout=layout, **options)
    with pytest.raises(BudgetError, match=message):
        fxprune.plan(fxprune.analyze(model, image()), 0.5, layout=layout, **options)


def test_floors_hold() -> None:
    model = with_gammas(seeded(Shared()), branches__0__bn=[0.1] * 6, branches__1__bn=[1.0] * 6)
    slim = selected(model, 0.5, floor=0.5)
    assert len(kept(slim, "branches.0.bn.weight")) == 3
    with pytest.raises(BudgetError, match="cannot be reached"):
        fxprune.slim(model, 0.9, image(), layout="selection", floor=0.5)


def test_widths_are_multiples() -> None:
    slim = selected(seeded(Shared(width=16)), 0.4, round_to=4)
    assert {len(kept(slim, f"branches.{i}.bn.weight")) % 4 for i in (0, 1)} == {0}


def test_widths_that_are_no_multiples_are_told() -> None:
    """Each branch keeps three channels; of the stem the five that one of them reads."""
    model = with_gammas(Shared().eval(), branches__0__bn=[9, 8, 7, 1, 1, 1], branches__1__bn=[1, 1, 7, 8, 9, 1])
    graph = fxprune.analyze(model, torch.randn(2, 3, 8, 8))
    plan = fxprune.plan(graph, 0.5, layout="selection", round_to=3)
    assert plan.kept["stem.weight"][0] == (0, 1, 2, 3, 4)
    said = "1 of 5 groups end at widths that are no multiples of 3, for nobody reads more of them: stem.weight (5 of 6)"
    assert said in plan.notes
    assert not any("multiples" in note for note in fxprune.plan(graph, 0.5, layout="selection").notes)


def test_any_score_is_a_threshold_over_channels() -> None:
    def last_first(group: Any) -> Tensor:
        return -torch.arange(len(group), dtype=torch.float64)

    slim = selected(seeded(Shared()), 0.3, score=last_first)
    assert kept(slim, "branches.0.bn.weight") == kept(slim, "branches.1.bn.weight") == (0, 1, 2, 3)


def test_names_that_are_kept_stay() -> None:
    model = seeded(Shared())
    slim = selected(model, 0.5, keep=("branches.0.bn",))
    assert len(kept(slim, "branches.0.bn.weight")) == 6
    assert len(kept(slim, "branches.1.bn.weight")) < 6
    stem = selected(model, 0.5, keep=("stem",))
    assert len(kept(stem, "stem.weight")) == 6


# ---- selects ----


def test_selects_stand_only_where_they_are_needed() -> None:
    chain = seeded(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    )
    slim = selected(chain, 0.4)
    assert [str(node.op) for node in slim.graph.nodes] == ["placeholder", *["call_module"] * 6, "output"]
    alike = with_gammas(seeded(Shared()), branches__0__bn=[0.1, 0.9] * 3, branches__1__bn=[0.2, 0.8] * 3)
    slim = selected(alike, 0.45)
    assert "_select" not in slim.code
    assert kept(slim, "stem.weight") == (1, 3, 5)


def test_the_stem_is_laid_out_so_that_both_branches_take_slices() -> None:
    model = with_gammas(
        seeded(Shared()), branches__0__bn=[0.9, 0.1, 0.9, 0.1, 0.9, 0.1], branches__1__bn=[0.1, 0.1, 0.9, 0.9, 0.9, 0.1]
    )
    slim = selected(model, 0.45)
    assert sorted(kept(slim, "stem.weight")) == [0, 2, 3, 4]
    assert "index_select" not in slim.code
    assert slim.code.count("slice(None, None, None), slice(") == 2
    again = fxprune.apply(copy.deepcopy(model), fxprune.Plan.from_json(fxprune.plan_of(slim).to_json()), image())
    again.load_state_dict(slim.state_dict())
    assert again.code == slim.code


def test_what_cannot_be_sliced_is_gathered_by_a_buffer_outside_the_state_dict() -> None:
    model = seeded(Shared(branches=4, width=12), seed=3)
    slim = selected(model, 0.5)
    assert "index_select" in slim.code
    buffers = [name for name, _ in slim.named_buffers() if name.startswith("_select_")]
    assert buffers
    assert not set(buffers) & set(slim.state_dict())
    assert slim.state_dict().keys() == model.state_dict().keys()


def test_a_reader_that_needs_everything_keeps_the_order_open_to_others() -> None:
    class Also(Shared):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.heads(y) + F.linear(y.mean((2, 3)), self.fc.weight[:, :6])

    model = seeded(Also())
    selected(model, 0.5)


def test_a_second_round_leaves_one_select_per_batch_norm() -> None:
    model = seeded(Shared(branches=4, width=16), seed=5)
    first = selected(model, 0.3)
    second = fxprune.slim(first, 0.4, image(), layout="selection", floor=0, absorb=False)
    for node in second.graph.nodes:
        if node.op == "call_module" and node.target.endswith("bn"):
            source = node.args[0]
            assert source.name == "stem" or source.args[0].name == "stem"
    total = fxprune.plan_of(second)
    assert total.layout == "selection"
    assert relative_error(run(second, image()), zeroed(model, total, image())) <= 1e-9


# ---- liveness ----


def test_a_channel_that_nobody_reads_goes() -> None:
    model = with_gammas(
        seeded(Shared()), branches__0__bn=[0.9, 0.1, 0.1, 0.9, 0.9, 0.9], branches__1__bn=[0.9, 0.9, 0.1, 0.1, 0.9, 0.9]
    )
    slim = selected(model, 0.3)
    assert sorted(kept(slim, "stem.weight")) == [0, 1, 3, 4, 5]
    assert sorted(kept(slim, "stem.bias")) == [0, 1, 3, 4, 5]


class Heard(Shared):
    """Something else hears the stem: ``how`` says what."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.other = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        out = self.heads(y)
        if self.how == "conv":
            return out + self.other(y).mean((1, 2, 3), keepdim=False)[:, None]
        if self.how == "mean":
            return out + y.mean((1, 2, 3))[:, None]
        if self.how == "softmax":
            return self.heads(y.softmax(1)) + out
        if self.how == "product":
            flat = y.flatten(2)
            return out + (flat.transpose(1, 2) @ flat).mean((1, 2))[:, None]
        return self.heads(F.layer_norm(y.movedim(1, -1), (6,)).movedim(-1, 1))


@pytest.mark.parametrize("how", ["conv", "mean", "softmax", "product", "norm"])
def test_a_channel_that_something_else_hears_stays(how: str) -> None:
    """The zeroed network computes all of the stem: if liveness took a channel that is heard, outputs would differ."""
    model = with_gammas(
        seeded(Heard(how)), branches__0__bn=[0.1, 0.9, 0.8, 0.7, 0.2, 0.1], branches__1__bn=[0.1, 0.9, 0.9, 0.1, 0.1, 0.1]
    )
    slim = selected(model, 0.5)
    assert len(kept(slim, "stem.weight")) == 6
    assert len(kept(slim, "branches.0.bn.weight")) == 3


def test_what_feeds_a_dead_layer_is_dead() -> None:
    """A dense layer none of whose new channels is read keeps one channel of everything, which nobody hears."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.layer = Branch(6, 4)
            self.bn, self.fc = nn.BatchNorm2d(10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = F.relu(self.bn(torch.cat([x, self.layer(x)], 1)))
            y: Tensor = self.fc(x.mean((2, 3)))
            return y

    model = with_gammas(
        seeded(Dense()), layer__bn=[0.8, 0.9, 1.0, 0.7, 0.6, 0.5], bn=[0.4, 0.9, 0.9, 0.9, 0.1, 0.9, 0.1, 0.2, 0.3, 0.1]
    )
    slim = selected(model, 0.35)  # sorted[5] = 0.4: the bn keeps 1, 2, 3, 5
    assert kept(slim, "bn.weight") == (1, 2, 3, 5)
    assert len(kept(slim, "layer.conv.weight")) == len(kept(slim, "layer.bn.weight")) == 1
    assert set(kept(slim, "stem.weight")) <= {1, 2, 3, 5} | set(kept(slim, "layer.bn.weight"))


def test_an_emptied_batch_norm_leaves_the_constant_of_its_readers() -> None:
    model = with_gammas(seeded(Shared()), branches__0__bn=[1e-3] * 6, branches__1__bn=[1.0, 2, 3, 4, 5, 6])
    slim = selected(model, 0.4)
    assert len(kept(slim, "branches.0.bn.weight")) == 1
    assert torch.count_nonzero(slim.get_submodule("branches.0.conv").weight) == 0
    assert "keep one channel each that nobody hears" in " ".join(fxprune.plan_of(slim).notes)


# ---- other networks ----


def test_a_channel_of_a_sum_of_batch_norms_goes_when_all_its_gammas_are_small() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn1(self.a(x)))
            x = F.relu(x + self.bn2(self.b(x)))
            y: Tensor = self.fc(x.mean((2, 3)))
            return y

    model = with_gammas(seeded(Residual()), bn1=[0.1, 0.1, 0.9, 0.9], bn2=[0.1, 0.9, 0.1, 0.9])
    slim = selected(model, 0.45)
    assert kept(slim, "bn1.weight") == kept(slim, "bn2.weight") == kept(slim, "a.weight") == (1, 2, 3)


def test_depthwise_and_grouped_convolutions() -> None:
    class Mobile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.bn0, self.expand = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)
            self.bn1, self.depthwise = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding=1, groups=12)
            self.bn2, self.grouped = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1, groups=2)
            self.bn3, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.depthwise(F.relu(self.bn1(self.expand(F.relu(self.bn0(x))))))
            x = x + self.grouped(F.relu(self.bn2(y)))
            z: Tensor = self.fc(F.relu(self.bn3(x)).mean((2, 3)))
            return z

    for seed in range(4):
        slim = selected(seeded(Mobile(), seed), 0.4, floor=0.1 * (seed % 2))
        assert slim.get_submodule("grouped").groups == 2


@pytest.mark.parametrize("form", ["functional", "one-dimensional", "shared"])
def test_batch_norms_in_other_forms(form: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(3, 8, 1) if form == "one-dimensional" else nn.Conv2d(3, 8, 1)
            self.bn = nn.BatchNorm1d(8) if form == "one-dimensional" else nn.BatchNorm2d(8)
            kind = nn.Conv1d if form == "one-dimensional" else nn.Conv2d
            self.a, self.b = kind(8, 8, 1), kind(8, 4, 1)

        def norm(self, x: Tensor) -> Tensor:
            bn = self.bn
            if form == "functional":
                return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, bn.eps)
            y: Tensor = bn(x)
            return y

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = x + self.a(F.relu(self.norm(x)))
            y = F.relu(self.norm(y)) if form == "shared" else y
            return torch.cat([self.b(y).flatten(2).mean(2), x.flatten(2).mean(2).sum(1, keepdim=True)], 1)

    x = image(2, 3, 8) if form == "one-dimensional" else image()
    slim = selected(seeded(Net()), 0.5, x)
    assert "_select" in slim.code
    assert len(kept(slim, "bn.weight")) == 3
    assert len(kept(slim, "stem.weight")) == 8


def test_a_batch_norm_of_the_models_input_selects_among_its_channels() -> None:
    model = seeded(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    with_gammas(model, **{"0": [0.1, 2.0, 3.0], "2": [1.0, 0.2, 2, 2, 2, 2]})
    slim = selected(model, 0.2)
    assert kept(slim, "0.weight") == (1, 2)
    assert kept(slim, "2.weight") == (0, 2, 3, 4, 5)


# ---- living with it ----


def test_training_mode_and_gradients() -> None:
    model = seeded(Shared(branches=3, width=12))
    slim = selected(model, 0.5)
    gradients = backward(slim, image())
    assert gradients.keys() == {name for name, _ in slim.named_parameters()}
    assert all(g.isfinite().all() for g in gradients.values())


def test_saving_and_loading(tmp_path: Path) -> None:
    model = seeded(Shared(branches=4, width=12), seed=3)
    slim = selected(model, 0.5)
    second = fxprune.slim(slim, 0.3, image(), layout="selection", absorb=False)
    for number, made in enumerate((slim, second)):
        fxprune.save(made, tmp_path / f"{number}.safetensors")
        for fresh in (copy.deepcopy(model), copy.deepcopy(model).to("meta")):
            loaded = fxprune.load(fresh, tmp_path / f"{number}.safetensors")
            assert torch.equal(run(loaded, image()), run(made, image()))
    coupled = fxprune.plan_of(fxprune.slim(model, 0.5, image(), absorb=False))
    found = fxprune.diff(coupled, fxprune.plan_of(slim))
    assert found
    assert ("layout", "coupled", "selection") in found.fields


def test_a_wrong_select_is_found() -> None:
    model = seeded(Shared(branches=4, width=12), seed=3)
    slim = selected(model, 0.5)
    fxprune.verify(model, slim, image())
    name = next(name for name, _ in slim.named_buffers() if name.startswith("_select_"))
    index = slim.get_buffer(name)
    index[0], index[1] = index[1].item(), index[0].item()
    with pytest.raises(VerificationError):
        fxprune.verify(model, slim, image())


def test_graphs_take_either_layout() -> None:
    model = seeded(Shared())
    graph = fxprune.analyze(model, image())
    plan = fxprune.plan(graph, 0.5, layout="selection", floor=0)
    assert plan.layout == "selection"
    slim = fxprune.apply(model, plan, image(), absorb=False)
    assert fxprune.plan_of(slim) == replace(plan, added=())  # a plan that has made a model says what it added
    assert fxprune.plan(graph, 0.5).layout == "coupled"


# ---- refusals ----


def test_networks_without_batch_norm_are_refused_with_a_reason() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    with pytest.raises(BudgetError, match="needs batch norms to select after"):
        fxprune.slim(model, 0.5, image(), layout="selection")
    with pytest.raises(BudgetError, match="needs batch norms to select after"):
        fxprune.plan(fxprune.analyze(model, image()), 0.5, layout="selection")


def test_eager_modules_are_refused_with_a_reason() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.bn(self.conv(x)))
            return y if float(y.sum()) > 0 else -y

    with pytest.raises(BudgetError, match="eager module"):
        fxprune.slim(seeded(Counting()), 0.5, image(), layout="selection")
    assert "cannot be had" in " ".join(fxprune.plan_of(fxprune.slim(seeded(Counting()), 0.3, image(), layout="auto")).notes)


def test_nothing_to_rank_is_refused() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    with pytest.raises(NothingToPruneError):
        fxprune.slim(model, 0.5, image(), layout="selection")


@pytest.mark.slow
def test_programs_of_torch_export() -> None:
    """Their batch norms are calls of ATen operators."""

    class Matching(Shared):
        def forward(self, x: Tensor) -> Tensor:
            match x.shape:
                case (_, _, _, _):
                    return super().forward(x)
                case _:
                    raise ValueError

    model = seeded(Matching(branches=3, width=12))
    assert "torch.export" in fxprune.analyze(model, image()).program.captured.how
    slim = selected(model, 0.5)
    assert "_select" in slim.code
    assert slim.state_dict().keys() == model.state_dict().keys()
