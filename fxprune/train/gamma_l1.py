"""Sparsity on the scale factors of normalization layers, and on weights where there are none.

1. Network Slimming (Liu et al. 2017, eq. 1, arXiv:1708.06519) adds ``strength * sum |gamma|`` to the training loss, so that the
   gammas of channels that matter little go to zero.
2. The paper optimizes this term by its subgradient ``strength * sign(gamma)``, 0 at gamma = 0: ``add_gradient``. ``penalty`` and ``shrink``
   are the other two ways (penalty.py, clause 1).
3. A gamma is the affine weight of a batch or instance norm. One that several modules share counts once. ``GammaL1`` takes all of them, as the paper's
   code does, unless it is given the channel graph: then those of channels that can go. A norm right in front of an output cannot lose channels, and
   small gammas are only a burden there.
4. ``GroupL1`` goes by coupled channels: a channel that passes several norms (a residual stream) goes only as a whole, so its gammas go to
   zero together. Gammas of channels that cannot go are left alone. In a network without couplings it is ``GammaL1``.
5. ``WeightL1`` and ``WeightL2`` are for networks without norms, and for comparison: parameters with two dimensions or more. L2 makes no zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.errors import NothingToPruneError
from fxprune.graph.channels import ChannelGraph
from fxprune.train.forms import L1, L2, Classes
from fxprune.train.penalty import Penalty, Schedule


def gammas(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name and scale of every affine batch and instance norm, each parameter once, in the order of the modules."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in model.named_modules():
        # batch and instance norms and their subclasses; their common base has no public name
        if isinstance(module, _NormBase) and isinstance(module.weight, nn.Parameter):
            found.setdefault(id(module.weight), (f"{name}.weight" if name else "weight", module.weight))
    return dict(found.values())


def _trained(model: nn.Module, init: float | None) -> dict[str, nn.Parameter]:
    """The gammas that require a gradient, set to ``init`` if given.

    Raises:
        NothingToPruneError: there is none.
    """
    found = {name: gamma for name, gamma in gammas(model).items() if gamma.requires_grad}
    if not found:
        raise NothingToPruneError(
            f"{type(model).__name__} has no batch or instance norm with a trained scale: there is no gamma to make sparse. "
            "Train it without GammaL1 and prune it by magnitude."
        )
    if init is not None:
        with torch.no_grad():
            for gamma in found.values():
                gamma.fill_(init)
    return found


class GammaL1(Penalty):
    """The sparsity term of Network Slimming for one model.

    Usage::

        sparsity = GammaL1(model, strength=1e-4)
        ...
        loss.backward()
        sparsity.add_gradient()
        optimizer.step()

    Attributes:
        strength: the factor lambda of the paper; 1e-4 and 1e-5 there, more for short trainings of small networks.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float | Schedule = 1e-4,
        init: float | None = None,
        *,
        graph: ChannelGraph | None = None,
    ) -> None:
        """Collect the gammas of ``model`` that are trained.

        Args:
            model: any module with batch or instance norms; wrapped for several devices or not.
            strength: not negative; or a schedule.
            init: if given, every gamma is set to this value first; the paper uses 0.5.
            graph: what ``fxprune.analyze`` returned for the model; if given, norms none of whose channels can go are left alone.

        Raises:
            ValueError: ``strength`` is negative or not finite.
            NothingToPruneError: the model has no trained gamma, or none of a channel that can go.
        """
        found = _trained(model, None)
        if graph is not None:
            free = {_known(graph, found, name) for group in graph.groups for name in group.gammas}
            found = {name: gamma for name, gamma in found.items() if name in free}
            if not found:
                raise _nothing(model)
        super().__init__(found, L1(), strength)
        if init is not None:
            _trained(model, init)


def _nothing(model: nn.Module) -> NothingToPruneError:
    return NothingToPruneError(
        f"no trained gamma of {type(model).__name__} belongs to a channel that can go: there is nothing to make sparse. "
        "Was the graph made from this model?"
    )


def _known(graph: ChannelGraph, trained: Mapping[str, nn.Parameter], name: str) -> str:
    """What a graph's gamma is called in the model that is trained (a wrapper adds to names, a copy has other tensors); or nothing."""
    own = graph.tensors[name]
    return next((given for given, gamma in trained.items() if gamma is own), name if name in trained else "")


class GroupL1(Penalty):
    """The sparsity term over coupled channels (clause 4): their gammas go to zero together.

    Usage::

        sparsity = GroupL1(model, fxprune.analyze(model, images), strength=1e-4)
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, strength: float | Schedule = 1e-4, init: float | None = None
    ) -> None:
        """Collect the trained gammas of channels that can go.

        Args:
            model: the module that is trained; wrapped for several devices or not.
            graph: what ``fxprune.analyze`` returned for it, before it was wrapped.
            strength: not negative; or a schedule.
            init: if given, every gamma of the model is set to this value first.

        Raises:
            ValueError: ``strength`` is negative or not finite.
            NothingToPruneError: no trained gamma belongs to a channel that can go.
        """
        trained = _trained(model, None)
        numbers: dict[str, torch.Tensor] = {}
        for group in graph.groups:
            for member in group.members:
                name = _known(graph, trained, member.name)
                if name and member.name in group.gammas:
                    own = numbers.setdefault(name, torch.zeros(len(trained[name]), dtype=torch.int64, device="cpu"))
                    own[torch.from_numpy(member.atom)] = torch.from_numpy(group.channels[member.channel]) + 1
        if not numbers:
            raise _nothing(model)
        flat, classes = np.unique(np.concatenate([[0], *(n.numpy() for n in numbers.values())]), return_inverse=True)
        pieces = torch.from_numpy(classes[1:]).split([len(n) for n in numbers.values()])
        super().__init__({name: trained[name] for name in numbers}, Classes(tuple(pieces), len(flat)), strength)
        if init is not None:
            _trained(model, init)


def _weights(model: nn.Module) -> Mapping[str, nn.Parameter]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    if not found:
        raise NothingToPruneError(f"{type(model).__name__} has no trained weight with two dimensions or more to penalize.")
    return found


class WeightL1(Penalty):
    """``strength * sum |w|`` over the trained weights (clause 5)."""

    def __init__(self, model: nn.Module, strength: float | Schedule = 1e-5) -> None:
        super().__init__(_weights(model), L1(), strength)


class WeightL2(Penalty):
    """``strength / 2 * sum w^2`` over the trained weights (clause 5): the gradient of weight decay, without that on biases and norms."""

    def __init__(self, model: nn.Module, strength: float | Schedule = 1e-4) -> None:
        super().__init__(_weights(model), L2(), strength)
