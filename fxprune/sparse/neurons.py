"""Coupled channels that single-weight pruning has cut off, and their removal from the weights, cascading.

1. A free coupled channel is *unheard* if every weight that reads it is zero. It may go, and so its producers' weights may be zeroed, which
   can leave other channels unheard: the cascade upstream.
2. It is *unfed* if every weight of two dimensions or more that produces it is zero. Its value is then a constant, bias and norm included:
   the same at every position of every input. A constant is *folded*: zero needs nothing; another number times the reading weights goes
   into the readers' biases. Either way the reading weights become zero and the channel is unheard. Readers whose other weights are zero
   become unfed: the cascade downstream.
3. Folding is exact for linear layers and for convolutions that see a constant as a constant: without padding, or padded with values of the
   image. Where a reader pads with zeros, is transposed, has no bias, or is no module, a constant other than zero stays, with the reason.
4. Two things are not taken from the structure but seen on float64 runs: that an unfed channel is a constant where it is read (several
   inputs), and that nobody hears an unheard one: its producers are replaced by large random numbers and no output moves. So a channel
   that a norm, a softmax or a mean mixes with others stays, whatever the operator is called.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fxprune.capture.inputs import Inputs
from fxprune.graph.channels import ChannelGraph, Member
from fxprune.precision import double as exactly
from fxprune.precision import doubled, home
from fxprune.provenance.factor import Ids, Mask
from fxprune.sparse.layers import kind, parameter

SAME = 1e-12
LOUD = 1e3
PADS = "a reader pads with zeros, so the constant is another one at the border"


@dataclass(slots=True)
class Cut:
    """What the cascade did. ``removable``: components that nobody hears; ``folded``: those whose constant went into biases."""

    removable: Mask
    unheard: int = 0
    unfed: int = 0
    folded: int = 0
    left: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, eq=False)
class Touch:
    """The atoms that some coupled channels have in one axis; ``component[i]`` is the channel of ``atom[i]``."""

    member: Member
    component: Ids
    atom: Ids

    def of(self, chosen: Mask) -> Ids:
        """The atoms of the chosen components."""
        return self.atom[chosen[self.component]]


def touches(graph: ChannelGraph) -> list[Touch]:
    """Every axis of every group."""
    return [Touch(m, group.channels[m.channel], m.atom) for group in graph.groups for m in group.members]


def by_atom(tensor: Tensor, member: Member) -> Tensor:
    """A view of a tensor with the atoms of an axis first (plan.py, clause 3): ``(atoms, ...)``, or ``(blocks, atoms, ...)``."""
    if member.blocks > 1:
        blocks: Tensor = tensor.unflatten(0, (member.blocks, -1))
        return blocks.movedim(member.dim + 1, 1)
    return tensor.movedim(member.dim, 0)


def zero_atoms(tensor: Tensor, member: Member) -> Mask:
    """Per atom: all its elements are zero."""
    view = by_atom(tensor.detach(), member)
    rest = view.flatten(2) if member.blocks > 1 else view.reshape(len(view), -1)
    zeros: Mask = (rest == 0).all(-1).flatten().cpu().numpy()
    return zeros


def write_atoms(tensor: Tensor, member: Member, atoms: Ids, values: Callable[[Tensor], Tensor]) -> None:
    """Replace the elements of some atoms by ``values(elements)``, in place."""
    view = by_atom(tensor, member)
    chosen = torch.from_numpy(atoms).to(tensor.device)
    with torch.no_grad():
        if member.blocks > 1:
            size = view.shape[1]
            block, column = chosen // size, chosen % size
            view[block, column] = values(view[block, column])
        else:
            view[chosen] = values(view[chosen])


def cascade(model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> Cut:
    """Clauses 1 to 4: zero and fold in ``model``, in place, until nothing more is cut off."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    weights = {f"{name}.weight" if name else "weight" for name, module in model.named_modules() if kind(module)}
    known = [touch for touch in touches(graph) if touch.member.name in tensors]
    foreign = np.zeros(graph.closed.count, np.bool_)
    for touch in touches(graph):
        if touch.member.name not in tensors and touch.member.reads:
            foreign[touch.component] = True  # read by a tensor that is no parameter of the model: nothing to zero
    cut = Cut(np.zeros(graph.closed.count, np.bool_))
    mixed, stuck = foreign.copy(), np.zeros(graph.closed.count, np.bool_)
    while True:
        heard, fed = _state(known, tensors, graph.closed.count)
        new = ~heard & ~cut.removable & ~mixed
        if new.any():
            loud = _loud(model, known, new, inputs)
            mixed |= loud
            for label in graph.axes_of(np.flatnonzero(loud).tolist())[:1]:
                cut.left[label, "an operator mixes it with other channels (a norm, a softmax, a mean)"] += int(loud.sum())
            new &= ~loud
            cut.removable |= new
            cut.unheard += int((new & fed).sum())
            # Only what a layer multiplies by: other tensors may be divided by, and what they hold does not feed the cascade.
            for touch in known:
                if not touch.member.reads and touch.member.name in weights and (atoms := touch.of(new)).size:
                    write_atoms(tensors[touch.member.name], touch.member, atoms, torch.zeros_like)
            continue
        candidates = ~fed & heard & ~stuck & ~foreign & ~cut.removable
        if not candidates.any():
            return cut
        _fold(model, known, tensors, candidates, inputs, cut, stuck)
        stuck |= candidates  # each is looked at once: it was folded, has a reason to stay, or is read by no weight at all


def _state(known: Sequence[Touch], tensors: Mapping[str, Tensor], count: int) -> tuple[Mask, Mask]:
    """Per component: a weight that is not zero reads it; one of two dimensions or more produces it. Without any reader or producer: True."""
    reads, makes = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    heard, fed = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    for touch in known:
        tensor = tensors[touch.member.name]
        alive = ~zero_atoms(tensor, touch.member)[touch.atom]
        if touch.member.reads:
            reads[touch.component] = True
            heard[touch.component[alive]] = True
        elif tensor.dim() > 1:
            makes[touch.component] = True
            fed[touch.component[alive]] = True
    return heard | ~reads, fed | ~makes


def _loud(model: nn.Module, known: Sequence[Touch], chosen: Mask, inputs: Inputs) -> Mask:
    """Clause 4: of the chosen components, those that an output depends on; by halves where it is not none of them."""
    if not _moves(model, known, chosen, inputs):
        return np.zeros_like(chosen)
    members = np.flatnonzero(chosen)
    if len(members) == 1:
        return chosen.copy()
    found = np.zeros_like(chosen)
    for half in np.array_split(members, 2):
        part = np.zeros_like(chosen)
        part[half] = True
        found |= _loud(model, known, part, inputs)
    return found


def _moves(model: nn.Module, known: Sequence[Touch], chosen: Mask, inputs: Inputs) -> bool:
    reference = outputs(double(model), inputs)
    for seed in (0, 1):
        changed = double(model)
        tensors = dict(changed.named_parameters(remove_duplicate=False))
        generator = torch.Generator().manual_seed(seed)

        def noise(old: Tensor, generator: torch.Generator = generator) -> Tensor:
            return LOUD * torch.randn(old.shape, generator=generator, dtype=torch.float64, device="cpu").to(old)

        for touch in known:
            if not touch.member.reads and (atoms := touch.of(chosen)).size:
                write_atoms(tensors[touch.member.name], touch.member, atoms, noise)
        if apart(reference, outputs(changed, inputs)) > SAME:
            return True
    return False


def double(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, where there is float64."""
    twin = copy.deepcopy(model)
    if any(home(t.device) != t.device for t in (*twin.parameters(), *twin.buffers())):
        twin = twin.cpu()
    return twin.double().eval()


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a float64 model returns, for inputs of any floating dtype."""
    call = inputs.map(lambda x: doubled(x.clone()))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = model(*call.args, **call.kwargs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def apart(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest magnitude of ``left``; infinite where it is no number in one alone."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            difference = exactly(torch.where(a == b, torch.zeros_like(a), a - b).abs())
            both = a.isnan() & b.isnan()
            top = float(difference.masked_fill(both, 0).nan_to_num(nan=float("inf")).max())
            worst = max(worst, top / max(1e-30, float(exactly(a).abs().nan_to_num(0, 0, 0).max())) if top else 0.0)
    return worst


def _fold(
    model: nn.Module,
    known: Sequence[Touch],
    tensors: Mapping[str, Tensor],
    candidates: Mask,
    inputs: Inputs,
    cut: Cut,
    stuck: Mask,
) -> None:
    """Clauses 2 and 3 for the candidates: each becomes unheard, or ``stuck`` with a reason."""
    readers = [touch for touch in known if touch.member.reads and touch.of(candidates).size]
    owners = {touch.member.name: _owners(model, tensors[touch.member.name]) for touch in readers}
    seen = _arriving(model, {name: module for found in owners.values() for name, module in found}, inputs)
    why: dict[int, str] = {}
    constant: dict[int, bool] = {}
    for touch in readers:
        alive = ~zero_atoms(tensors[touch.member.name], touch.member)
        chosen = candidates[touch.component] & alive[touch.atom]
        for component, atom in zip(touch.component[chosen].tolist(), touch.atom[chosen].tolist(), strict=True):
            reason, value = _verdict(owners[touch.member.name], seen, atom)
            if reason:
                why.setdefault(component, reason)
            constant[component] = constant.get(component, False) or value != 0
    for component, reason in why.items():
        stuck[component] = True
        touch = next(t for t in known if not t.member.reads and component in t.component)
        cut.left[f"{touch.member.name}[{touch.member.dim}]", reason] += 1
    folding = candidates & ~stuck
    cut.unfed += int(folding.sum())
    cut.folded += sum(constant.get(component, False) for component in np.flatnonzero(folding).tolist())
    for touch in readers:
        atoms = touch.of(folding)
        for name, module in owners[touch.member.name]:
            if module.bias is not None and name in seen:  # not called itself: what it reads of these channels is zero (_verdict)
                _absorb(module, touch.member, atoms, seen[name][0])
        write_atoms(tensors[touch.member.name], touch.member, atoms, torch.zeros_like)


def _owners(model: nn.Module, tensor: Tensor) -> list[tuple[str, Any]]:
    """The prunable modules whose weight this is; empty if somebody else reads it too."""
    found = [(n, m, k) for n, m in model.named_modules() for k, p in m._parameters.items() if p is tensor]
    return [(n, m) for n, m, _ in found] if all(kind(m) and k == "weight" for _, m, k in found) else []


def _arriving(model: nn.Module, readers: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
    """Per reading module: the smallest and the largest value of each input channel over several runs."""
    copied = double(model)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, dim: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].movedim(dim, 0).flatten(1)
            low, high = x.amin(1), x.amax(1)
            if name in seen:
                low, high = torch.minimum(low, seen[name][0]), torch.maximum(high, seen[name][1])
            seen[name] = (low, high)

        return hook

    for name, module in copied.named_modules():
        if name in readers:
            # Images may come without a batch: channels are then counted from the end.
            dim = -1 if kind(module) == "linear" else -(parameter(module).dim() - 1)
            module.register_forward_pre_hook(watch(name, dim))
    for call in (inputs, *randomised(inputs)):
        outputs(copied, call)
    return seen


def randomised(inputs: Inputs, count: int = 2) -> list[Inputs]:
    """The same call with random numbers in the floating tensors."""
    generator = torch.Generator().manual_seed(0)

    def random(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x) if x.is_floating_point() else x

    return [inputs.map(random) for _ in range(count)]


def _verdict(owners: Sequence[tuple[str, Any]], seen: Mapping[str, tuple[Tensor, Tensor]], atom: int) -> tuple[str, float]:
    """Why an input channel of these modules cannot be folded (""), and its value."""
    if not owners or any(name not in seen for name, _ in owners):
        return "it is read by something else than a linear layer or a convolution", 0.0
    for name, module in owners:
        if not type(module).__module__.startswith("torch.nn."):
            return f"a reader is a {type(module).__name__}, which may not use its weight as it is", 0.0
        low, high = (float(bound[atom]) for bound in seen[name])
        if not high - low <= SAME * max(1.0, abs(low)):
            return "its value is not a constant where it is read", 0.0
        if low == 0 and high == 0:
            continue
        if module.bias is None:
            return "a reader has no bias that could take the constant", low
        padded = kind(module) == "conv" and (module.padding == "same" or any(p != 0 for p in module.padding if p != "valid"))
        if isinstance(module, _ConvTransposeNd):
            return "a reader is transposed: its borders see fewer terms", low
        if padded and module.padding != "valid" and module.padding_mode == "zeros":
            return PADS, low
    name = owners[0][0]
    return "", float(seen[name][0][atom])


def _absorb(module: Any, member: Member, atoms: Ids, values: Tensor) -> None:
    """Add what constant input channels contribute to a module's bias, in float64."""
    weight = by_atom(exactly(module.weight.detach()), member)
    chosen = torch.from_numpy(atoms)
    with torch.no_grad():
        if member.blocks > 1:
            size = weight.shape[1]
            rows = weight[chosen // size, chosen % size].flatten(2).sum(-1) * values[chosen, None]  # atoms, rows of the block
            more = rows.new_zeros(member.blocks, rows.shape[1]).index_add_(0, (chosen // size).to(rows.device), rows).flatten()
        else:
            more = (
                (weight[chosen].flatten(2).sum(-1) * values[chosen, None]).sum(0)
                if weight.dim() > 2
                else values[chosen] @ weight[chosen]
            )
        module.bias.copy_((exactly(module.bias) + more).to(module.bias.dtype))
