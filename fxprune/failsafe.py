"""Fail safe: what cannot be verified is not cut.

1. A verification that fails names the first node that differs. The groups that lost channels there are under suspicion; all that
   lost channels are, where that node shows none.
2. Suspects are tried: a plan is emitted and verified that cuts one half of them and nothing else (of a budget that one half cannot meet, the
   nearest plan), until the group is found whose channels make it fail. That group is pinned, with a note, and the plan is made anew.
3. A captured program that is not the eager one is no matter of channels: that error is raised. So is every error where ``strict`` is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fxprune.errors import BudgetError, UnfaithfulCaptureError, VerificationError
from fxprune.folds import Absorption
from fxprune.graph.channels import ChannelGraph, ChannelGroup
from fxprune.pipeline import Decide, Subject, emit_settled, verified
from fxprune.plan import Plan
from fxprune.provenance.factor import Ids, Value
from fxprune.solve.plans import removed_channels
from fxprune.verify import Evidence

ROUNDS = 16

Proved = tuple[Subject, Plan, nn.Module, Absorption, Evidence | None]
Check = Callable[[Subject, nn.Module, Plan, Absorption], Evidence | None]
Finish = Callable[[Subject, Plan, nn.Module], tuple[Plan, Absorption]]


def dropped(_subject: Subject, plan: Plan, _module: nn.Module) -> tuple[Plan, Absorption]:
    """What removed channels emit is dropped: nothing to be finished."""
    return plan, Absorption()


def emit_verified(subject: Subject, decide: Decide, *, strict: bool, check: Check = verified, finish: Finish = dropped) -> Proved:
    """A slim module that was verified (clauses 1 to 3), after ``finish`` has put the constants of removed channels into it.

    What the verification saw comes last.

    Raises:
        VerificationError: in strict mode, or where no group can be found whose channels are to blame.
    """
    for _ in range(ROUNDS):
        settled, decided, module = emit_settled(subject, decide, pin=True)
        decided, absorption = finish(settled, decided, module)
        try:
            evidence = check(settled, module, decided, absorption)
        except VerificationError as error:
            if strict or isinstance(error, UnfaithfulCaptureError):
                raise
            subject = _without_blame(settled, decided, decide, check, error)
        else:
            found = absorption if evidence is None else replace(absorption, difference=evidence.difference)
            return settled, decided, module, found, evidence
    raise VerificationError(f"no plan could be verified in {ROUNDS} rounds; please report this model.")


def _without_blame(subject: Subject, decided: Plan, decide: Decide, check: Check, error: VerificationError) -> Subject:
    graph = subject.graph
    removed = np.flatnonzero(removed_channels(graph, decided))
    at_node = np.intersect1d(_met(graph, error.node), removed)
    suspects = at_node if len(at_node) else removed
    kinds = _blamed(subject, [g for g in graph.groups if np.isin(g.channels, suspects).any()], decide, check)
    if not kinds:
        raise error
    return _pinned(subject, kinds, error)


def _met(graph: ChannelGraph, name: str) -> Ids:
    """The coupled channels of a node's result and operands."""
    node = next((n for n in graph.program.captured.graph.nodes if n.name == name), None)
    if node is None:
        return np.zeros(0, np.int64)
    values = [graph.nodes[n.name] for n in (node, *node.all_input_nodes)]
    ids = [f.ravel() for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Value) for f in v.factors]
    return np.unique(graph.closed.component[np.concatenate([np.zeros(0, np.int64), *ids])])


def _blamed(subject: Subject, groups: list[ChannelGroup], decide: Decide, check: Check) -> list[ChannelGroup]:
    """Clause 2: halving, while one half of the groups alone still makes the verification fail."""

    def fails(among: list[ChannelGroup]) -> bool:
        names = {id(g) for g in among}
        others = [g for g in subject.graph.groups if id(g) not in names]
        try:
            check_alone(others)
        except VerificationError:
            return True
        except Exception:  # noqa: BLE001 - a plan that cannot be made of these groups alone says nothing about them
            return False
        return False

    def check_alone(others: list[ChannelGroup]) -> None:
        barred = subject.graph
        if others:
            barred = barred.bar(np.concatenate([g.channels for g in others]), "", "tried without")
        settled, decided, module = emit_settled(replace(subject, graph=barred), _nearest(decide), pin=True)
        check(settled, module, decided, Absorption())

    while len(groups) > 1:
        half = len(groups) // 2
        halves = (groups[:half], groups[half:])
        failing = next((part for part in halves if fails(part)), None)
        if failing is None:
            break
        groups = failing
    return groups


def _nearest(decide: Decide) -> Decide:
    """The same decisions; where what is left to cut cannot meet a budget, the plan that comes nearest."""

    def decided(graph: ChannelGraph) -> Plan:
        try:
            return decide(graph)
        except BudgetError as error:
            if not isinstance(error.nearest, Plan):
                raise
            return error.nearest

    return decided


def _pinned(subject: Subject, groups: list[ChannelGroup], error: VerificationError) -> Subject:
    channels = np.concatenate([g.channels for g in groups])
    reason = "the network without them could not be verified"
    graph = subject.graph.bar(channels, error.node, reason)
    names = ", ".join(g.name for g in groups[:3]) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
    note = f"{len(channels)} channels ({names}) stay because {reason}: {str(error).splitlines()[0]}"
    return replace(subject, graph=replace(graph, notes=(*graph.notes, note)))
