"""Property 1: the slim network computes what its plan says, for every plan that the solver emits.

Two oracles: the zeroed network (tests.reference.zeroed), exact where nothing mixes channels without a weight in between, and
``fxprune.verify``, the masked program, for everything.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from hypothesis import given, settings
from torch import nn

import fxprune
from tests.property.compiling import TOLERANCE, Compiled, compiled, network, options, run
from tests.property.profile import share
from tests.property.strategies import Case, cases
from tests.reference.compare import Snapshot, backward, parameters, relative_error
from tests.reference.zeroed import zeroed, zeroing


def check_weights(c: Compiled) -> None:
    """Every weight of the slim network is the original's, indexed by what the plan keeps, zero where it reads silent atoms."""
    slim = dict(c.slim.named_parameters())
    for name, weight in c.model.named_parameters():
        sizes = c.plan.sizes.get(name, {})
        if name not in slim or any(sizes[dim] != weight.shape[dim] for dim in sizes):
            continue
        expected = weight.detach()
        for dim, silent in c.plan.silent.get(name, {}).items():
            expected = expected.index_fill(dim, torch.tensor(silent, dtype=torch.long), 0.0)
        for dim in sizes:
            expected = expected.index_select(dim, torch.tensor(c.plan.kept[name][dim], dtype=torch.long))
        assert slim[name].shape == expected.shape, name
        assert torch.equal(slim[name], expected), name
        assert slim[name].requires_grad == weight.requires_grad


@share(3)
@given(cases(mixing=False))
def test_slim_equals_the_zeroed_network(case: Case) -> None:
    c = compiled(case)
    if c is None:
        return
    assert relative_error(run(c.slim, c.inputs), zeroed(c.model, c.plan, c.inputs)) <= TOLERANCE
    assert c.plan.empty or parameters(c.slim) < parameters(c.model)
    check_weights(c)


@share(1.5)
@given(cases())
def test_slim_equals_the_masked_program(case: Case) -> None:
    c = compiled(case, verify=True)
    if c is not None:
        fxprune.verify(c.model, c.slim, c.inputs)


@share(0.6)
@given(cases(setitem=True, mixing=False, most=5))
def test_slice_assignment(case: Case) -> None:
    c = compiled(case)
    if c is not None:
        assert relative_error(run(c.slim, c.inputs), zeroed(c.model, c.plan, c.inputs)) <= TOLERANCE


@share(0.6)
@given(cases(mixing=False, most=5))
def test_batch_size_stays_open(case: Case) -> None:
    c = compiled(case)
    if c is not None:
        more = tuple(torch.cat([x, x.flip(0), 2 * x[:1]]) for x in c.inputs)
        assert relative_error(run(c.slim, more), zeroed(c.model, c.plan, more)) <= TOLERANCE


@share(0.8)
@given(cases())
def test_the_input_model_is_left_alone(case: Case) -> None:
    """Also where slim raises, and whatever its mode and flags."""
    model, inputs = network(case)
    model.train(case.seed % 2 == 0)
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 2)
    before, random_state = Snapshot(model), torch.get_rng_state()
    try:
        slim = fxprune.slim(model, case.ratio, inputs, **options(case), verify=case.seed % 3 == 0)
    except fxprune.FxpruneError:
        slim = None
    assert not before.differences(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    if slim is not None:
        assert slim.training == model.training
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        assert all(p.requires_grad == flags.get(name, p.requires_grad) for name, p in slim.named_parameters())
        assert not {p.data_ptr() for p in slim.parameters() if p.numel()} & {p.data_ptr() for p in model.parameters()}


@share(1)
@given(cases())
def test_one_step_of_training(case: Case) -> None:
    """Forward and backward in train mode: every parameter that had a gradient has one."""
    c = compiled(case)
    if c is None:
        return
    got = backward(c.slim, *c.inputs)
    reference = backward(copy.deepcopy(c.model), *c.inputs)
    left = {name for name, _ in c.slim.named_parameters()}
    assert reference.keys() & left <= got.keys()
    assert all(g.isfinite().all() for g in got.values())


@share(0.6)
@given(cases(mixing=False, most=6))
def test_train_mode_updates_the_same_statistics(case: Case) -> None:
    """Batch statistics are per channel, so the zeroed network in train mode is an oracle for the slim one."""
    c = compiled(case)
    if c is None or case.floor == 0 or any(isinstance(m, nn.Dropout) for m in c.model.modules()):
        return
    model = copy.deepcopy(c.model).train()
    with torch.no_grad(), zeroing(model, c.plan):
        expected = model(*c.inputs)
    c.slim.train()
    assert relative_error(run(c.slim, c.inputs), expected) <= 1e-7  # batch variances near zero magnify rounding
    wanted = model.state_dict()
    for name, value in c.slim.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            kept = c.plan.kept.get(name, {}).get(0)
            reference = wanted[name] if kept is None else wanted[name][list(kept)]
            assert torch.allclose(value, reference, rtol=1e-7, atol=1e-9), name


def test_most_networks_can_be_pruned() -> None:
    """A compiler that pinned everything would pass the properties above."""
    gone: list[bool] = []

    @settings(share(1), derandomize=True, database=None)
    @given(cases(mixing=False))
    def collect(case: Case) -> None:
        # The drawn floors, multiples and names to keep often leave these small networks nothing that may go.
        c = compiled(replace(case, ratio=0.5, floor=0.1, round_to=1, keep=()))
        gone.append(c is not None and not c.plan.empty)

    collect()
    assert sum(gone) / len(gone) >= 0.7
