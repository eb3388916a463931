"""Dead-channel elimination: everything that cannot influence the output goes, and nothing else.

1. Masks are made permanent on a copy first: those of ``torch.nn.utils.prune``, and those of ``fxprune.sparse``.
2. Optionally duplicates are merged (absorb/duplicates.py), also on a copy: readers hear the first for the others, which leaves these unheard.
3. Dead channels (absorb/dead.py) make a plan; it is emitted, what they emit is absorbed exactly, and the result is verified like any slim model.
4. Then outputs are compared with the given model's own, in float64, on the example inputs and on random ones: they agree to 1e-6 relative to the
   largest, to 1e-9 for a float64 model, to a few roundings of a half-precision one (biases that take constants are rounded); otherwise it is an
   error and nothing is returned. Where a large constant meets a norm with a small deviation behind the bias that takes it, one rounding is more than
   that, in the model's own outputs too: in its precision these are off, and what is left may be off by ``ROUNDINGS`` times as much.
"""

from __future__ import annotations

import copy
import gc
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune

from fxprune.absorb.dead import dead_channels
from fxprune.absorb.duplicates import merged
from fxprune.absorb.stage import Asked, absorbed
from fxprune.capture.inputs import Inputs
from fxprune.errors import VerificationError
from fxprune.folds import EXACT
from fxprune.graph.channels import ChannelGraph
from fxprune.pipeline import Subject, emit_settled, study, verified
from fxprune.plan import Plan
from fxprune.precision import doubled
from fxprune.provenance.factor import Mask
from fxprune.record import attach, extended
from fxprune.solve.plans import removed_channels, to_plan
from fxprune.solve.ratio import Solution
from fxprune.sparse.masks import mask_of, permanent
from fxprune.sparse.neurons import apart, double, outputs, randomised
from fxprune.sparse.removal import settle

ROUNDINGS = 4.0
NOTHING = "no channel is dead: the program is the model's"


def eliminate_dead_channels(
    model: nn.Module, example_inputs: Any = None, *, merge_duplicates: bool = False, verify: bool = True
) -> fx.GraphModule:
    """A smaller model that computes the same: channels that cannot influence the output are removed, cascading.

    Dead are channels with gamma = 0, filters of zeros and what only these feed (their constants go into biases and border maps, exactly); channels
    that nobody has a weight for; and what ``torch.nn.utils.prune`` masked. It is the lossless end of the scale, and the way in for models that other
    tools have masked. Outputs are those of evaluation mode.

    Args:
        model: any module that ``fxprune.slim`` takes; only read.
        example_inputs: as for ``fxprune.slim``.
        merge_duplicates: also merge channels that are multiples of another one: by any factor in linear parts, by a positive one through relu and
            its like.
        verify: prove the result equal to the masked program, and its outputs to the model's.

    Returns:
        A ``GraphModule`` like those of ``fxprune.slim``: ``plan_of``, ``absorption_of``, ``save`` and the rest take it. Where nothing is dead
        it is an equal program, and the plan's notes say so. A model that held masks has lost them: its parameters are ``weight``, not
        ``weight_orig``.

    Raises:
        FxpruneError: what ``fxprune.analyze`` raises.
        CaptureError: a model that only runs as an eager module (detectors): it was not looked at.
        VerificationError: the result does not compute what the model computes.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        bare = unmasked(model)
        subject = study(bare, example_inputs)
        if merge_duplicates:
            changed, count = merged(bare, subject.graph)
            try:
                if count:
                    note = f"{count} duplicate channels were merged into the ones they repeat"
                    return _eliminated(bare, study(changed, subject.inputs), (note,), verify=verify)
            except VerificationError:
                return _eliminated(bare, subject, ("duplicates were not merged: outputs would have differed",), verify=verify)
        return _eliminated(bare, subject, (), verify=verify)
    finally:
        if was:
            gc.enable()


def _eliminated(bare: nn.Module, subject: Subject, notes: tuple[str, ...], *, verify: bool) -> fx.GraphModule:
    """Clauses 3 and 4."""
    mute = np.zeros(0, np.bool_)

    def decide(graph: ChannelGraph) -> Plan:
        nonlocal mute
        removed, mute = dead_channels(graph, _settled)
        total = sum(len(group) for group in graph.groups)
        share = int(removed.sum()) / max(1, total)
        plan = to_plan(graph, Solution(removed, share, share), "dead")
        return replace(plan, notes=(*plan.notes, *notes, *(() if removed.any() else (NOTHING,))))

    subject, plan, slim = emit_settled(subject, decide, pin=True)
    plan, absorption = absorbed(subject.graph, subject.inputs, plan, slim, Asked(EXACT), mute)
    if verify:
        verified(subject, slim, plan, absorption)
        absorption = replace(absorption, difference=_check(bare, slim, subject, plan))
    attach(slim, extended(bare, subject.graph, subject.inputs, plan, subject.entered, absorption))
    return cast("fx.GraphModule", slim)


def _settled(graph: ChannelGraph, wanted: Mask) -> Mask:
    return settle(graph, wanted)[0]


def unmasked(model: nn.Module) -> nn.Module:
    """Clause 1: a copy with the zeros in its weights; the model itself where it holds no mask."""
    pruned = any(isinstance(hook, prune.BasePruningMethod) for m in model.modules() for hook in m._forward_pre_hooks.values())
    sparse = any(mask_of(m) is not None for m in model.modules())
    if not pruned and not sparse:
        return model
    # What a pruning hook computed is no leaf, and deepcopy refuses it; it is computed anew.
    computed = {id(t): t.detach() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf}
    bare = copy.deepcopy(model, computed)
    bare = permanent(bare) if sparse else bare
    for module in bare.modules():
        held = [h for h in module._forward_pre_hooks.values() if isinstance(h, prune.BasePruningMethod)]
        masked = {hook._tensor_name for hook in held}
        order = [name if (name := key.removesuffix("_orig")) in masked else key for key in module._parameters]
        for hook in held:
            prune.remove(module, hook._tensor_name)
        if held:
            module._parameters = {key: module._parameters[key] for key in order}
    return bare


def _check(model: nn.Module, slim: nn.Module, subject: Subject, plan: Plan) -> float:
    """Clause 4."""
    eps = max([torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()], default=1e-16)
    allowed = max(1e-6, 8 * eps) if eps > 1e-12 else 1e-9  # constants are stored in the model's precision
    inputs: Inputs = subject.inputs
    whole, small, worst = double(model), double(slim), 0.0
    calls = (inputs, *randomised(inputs))
    for call in calls:
        worst = max(worst, apart(outputs(whole, call), outputs(small, call)))
    if worst > allowed and eps > 1e-12:
        allowed = max(allowed, ROUNDINGS * max(_rounded(model, whole, call) for call in calls))
    if not worst <= allowed:
        count = int(np.count_nonzero(removed_channels(subject.graph, plan)))
        raise VerificationError(
            f"without {count} channels taken for dead the outputs differ by {worst:.3g} (relative); nothing was removed. Please report this model.",
            node="output",
            expected=allowed,
            got=worst,
        )
    return worst


def _rounded(model: nn.Module, whole: nn.Module, call: Inputs) -> float:
    """How far a model's outputs in its own precision are from those in float64; 0 where that cannot be told."""
    own = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = call.map(torch.clone)
        found = torch.utils._pytree.tree_leaves(own(*given.args, **given.kwargs))
    exact = outputs(whole, call)
    error = apart([x.cpu() for x in exact], [doubled(x).cpu() for x in found if isinstance(x, Tensor)])
    return error if math.isfinite(error) else 0.0
