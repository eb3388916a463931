"""repair: weights refitted, structure given."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxprune
from fxprune import reconstruct
from tests.unit.reconstruct.nets import Chain, Dense, Grouped, Residual, Shared, outputs, pictures, ready
from tests.unit.reconstruct.test_channel_prune import apart, with_copies


@pytest.mark.parametrize("make", [Chain, Residual, Shared, Grouped, Dense])
def test_any_plan_can_be_repaired(make: type[nn.Module]) -> None:
    model, images = ready(make()), pictures()
    slim = fxprune.slim(model, 0.4, images[0][:2], score="random")
    before = copy.deepcopy(slim.state_dict())
    fixed = reconstruct.repair(model, slim, images)
    assert all(torch.equal(value, before[name]) for name, value in slim.state_dict().items())
    assert fixed.state_dict().keys() == before.keys()
    assert fxprune.plan_of(fixed) == fxprune.plan_of(slim)
    report = reconstruct.report_of(fixed)
    assert all(layer.after <= layer.before + 1e-12 for layer in report.layers)
    wanted = outputs(model, images)
    # The network's own error need not fall with every layer's; on the images it was fitted on it does by far.
    assert (outputs(fixed, images) - wanted).norm() < 0.7 * (outputs(slim, images) - wanted).norm()


@pytest.mark.parametrize("parts", [2, 3])
def test_copies_are_made_up_for_exactly(parts: int) -> None:
    model, images = with_copies(parts), pictures()
    graph = fxprune.analyze(model, images[0], keep=["conv2"])
    plan = fxprune.plan(graph, 1 - 1 / parts, score=lambda group: torch.arange(len(group), 0, -1))
    assert plan.kept["conv1.weight"][0] == tuple(range(6))
    slim = fxprune.apply(model, plan, images[0])
    fixed = reconstruct.repair(model, slim, images)
    assert apart(outputs(model, pictures(seed=9)), outputs(slim, pictures(seed=9))) > 1e-3
    assert apart(outputs(model, pictures(seed=9)), outputs(fixed, pictures(seed=9))) <= 1e-6


def test_layers_to_be_kept_keep_their_weights() -> None:
    model, images = ready(Residual()), pictures()
    slim = fxprune.slim(model, 0.4, images[0][:2], score="random")
    whole = reconstruct.repair(model, slim, images)
    (*_, last) = reconstruct.report_of(whole).layers
    fixed = reconstruct.repair(model, slim, images, keep=[f"{last.name[:-1]}?"])
    assert not torch.equal(slim.get_parameter(f"{last.name}.weight"), whole.get_parameter(f"{last.name}.weight"))
    assert torch.equal(slim.get_parameter(f"{last.name}.weight"), fixed.get_parameter(f"{last.name}.weight"))
    assert (
        reconstruct.report_of(fixed).layers == reconstruct.report_of(fixed).layers[: len(reconstruct.report_of(whole).layers) - 1]
    )
    assert (last.name, "it is kept") in reconstruct.report_of(fixed).skipped
    with pytest.raises(fxprune.InputError, match="matches no layer"):
        reconstruct.repair(model, slim, images, keep=["nothing*"])


def test_repair_equals_the_refit_of_channel_prune() -> None:
    """The same channels, the same rows: given structure or chosen makes no difference."""
    model, images = ready(Chain()), pictures()
    pruned = reconstruct.channel_prune(model, images, ratio=0.5, positions=64)
    bare = fxprune.apply(model, fxprune.plan_of(pruned), images[0])
    fixed = reconstruct.repair(model, bare, images, positions=64)
    for name, value in pruned.state_dict().items():
        assert torch.allclose(value, fixed.state_dict()[name], rtol=0, atol=1e-8), name


def test_what_was_learned_since_is_kept_in_norms() -> None:
    """Other statistics behind a refitted layer: it is asked for what gives the original's normalised values."""
    model, images = ready(Chain()), pictures()
    slim = fxprune.slim(model, 0.4, images[0][:2])
    with torch.no_grad():
        slim.get_submodule("bn2").weight.mul_(2)
        slim.get_submodule("bn2").bias.add_(0.3)
        slim.get_submodule("bn2").running_var.mul_(3)
    plain = reconstruct.repair(model, fxprune.apply(model, fxprune.plan_of(slim), images[0][:2]), images)
    fixed = reconstruct.repair(model, slim, images)
    assert apart(outputs(plain, images), outputs(fixed, images)) <= 1e-8


def test_modes_dtypes_and_silent_channels() -> None:
    model, images = ready(Chain()).float().train(), [batch.float() for batch in pictures()]
    nn.init.zeros_(model.bn1.weight)
    slim = fxprune.slim(model, 0.55, images[0][:2], floor=0)
    assert fxprune.plan_of(slim).silent
    fixed = reconstruct.repair(model, slim, images)
    assert fixed.training
    assert not fixed.get_submodule("conv2").weight.any()
    assert fixed.get_submodule("conv2").weight.dtype == torch.float32


def test_repaired_networks_are_saved_and_loaded(tmp_path: object) -> None:
    model, images = ready(Residual()), pictures()
    fixed = reconstruct.repair(model, fxprune.slim(model, 0.4, images[0][:2]), images)
    path = f"{tmp_path}/fixed.fxp"
    fxprune.save(fixed, path)
    assert torch.equal(outputs(fxprune.load(ready(Residual(), 3), path), images), outputs(fixed, images))


def test_refusals() -> None:
    model, images = ready(Chain()), pictures(16)
    slim = fxprune.slim(model, 0.4, images[0][:2])
    with pytest.raises(fxprune.PlanMismatchError, match="no plan"):
        reconstruct.repair(model, model, images)  # type: ignore[arg-type]
    with pytest.raises(fxprune.PlanMismatchError, match="belong"):
        reconstruct.repair(ready(Residual()), slim, images)
    with pytest.raises(fxprune.NothingToPruneError, match="takes no inputs away"):
        reconstruct.repair(model, reconstruct.channel_prune(model, images, ratio=0.0), images)
    with pytest.raises(fxprune.NothingToPruneError, match="memory"):
        reconstruct.repair(model, slim, images, memory=1)
