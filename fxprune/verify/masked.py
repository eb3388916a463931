"""The masked program: an operator-level interpreter of the reference semantics of a plan.

1. Parameters and buffers get the masks the plan gives them; the program's inputs exist in full.
2. Every ATen call without a dead or wild operand runs as it is. Every other one goes, in this order, to the rule of its name, to
   the pointwise rule by its tag, to data movement by its schema, to its own decomposition; what is left has no masked semantics.
3. An operator without masked semantics is an error if an operand has a dead element.
4. An in-place operator that changes its operand's mask changes it in every live tensor that shares the storage: masks are laid
   out in storage order, written, and read back through each alias.
   An in-place rule may compute its result elsewhere: it is copied into the operand.
5. Everything floating is computed in one dtype, also where the program names another one.
6. Random numbers come from a stream of the program's own: two programs that draw equally many get the same ones.
7. An operator that reads an unknown value is an error. What an operator leaves unwritten, and the views of it, are flagged until
   they are written to (clause 6 of ``existence``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.plan import Plan
from fxprune.precision import home
from fxprune.verify import (
    rules_attention,
    rules_contraction,
    rules_indexing,
    rules_movement,
    rules_norm,
    rules_pointwise,
    rules_reduction,
    rules_spatial,
    rules_vision,
)
from fxprune.verify.call import RULES, Call, Rule, operator_name, returns_view, tensors, writes_self
from fxprune.verify.existence import (
    ALIVE,
    from_storage,
    in_storage,
    is_unknown,
    is_unwritten,
    mark,
    mark_unwritten,
    mask_of,
    no_semantics,
    plan_mask,
    same_mask,
)
from fxprune.verify.rules_movement import SOURCES, UNWRITTEN, move, move_in_place
from fxprune.verify.rules_pointwise import pointwise

FAMILIES = (
    *(rules_attention, rules_contraction, rules_indexing, rules_movement, rules_norm, rules_pointwise, rules_reduction),
    rules_spatial,
    rules_vision,
)
_BEGINS = frozenset((*SOURCES, "constant_pad_nd"))  # they make wild elements out of operands without a mask
_SILENT = frozenset(("_local_scalar_dense", "item", "_assert_async", "_assert_tensor_metadata", "sym_size", "size", "is_nonzero"))


class OneDtype(TorchDispatchMode):
    """Clauses 5 and 6: what the slim program runs under.

    Attributes:
        random: the state of the program's stream of random numbers.
        drawn: True if the program has drawn from it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.random = torch.get_rng_state()
        self.drawn = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator in the one dtype."""
        kwargs = dict(kwargs or {})
        named = kwargs.get("dtype")
        if isinstance(named, torch.dtype) and named.is_floating_point:
            kwargs["dtype"] = self.dtype
        if isinstance(kwargs.get("device"), torch.device):
            kwargs["device"] = home(kwargs["device"], self.dtype)
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        result = (self.draw if seeded else self.call)(func, args, kwargs)
        made = isinstance(result, Tensor) and not tensors([args, kwargs])
        if made and result.is_floating_point() and result.dtype != self.dtype:
            result = mark(result.to(self.dtype), mask_of(result))
        self.note(func, args, result)
        return result

    def draw(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator, drawing from the program's own stream if it draws at all (clause 6)."""
        before = self.random
        torch.set_rng_state(before)
        result = self.call(func, args, kwargs)
        self.random = torch.get_rng_state()
        elsewhere = kwargs.get("generator") is not None or any(t.device.type != "cpu" for t in tensors(result))
        self.drawn = self.drawn or elsewhere or not torch.equal(before, self.random)
        return result

    def call(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator itself."""
        return func(*args, **kwargs)

    def note(self, func: OpOverload, args: tuple[Any, ...], result: Any) -> None:
        """What the operator gave."""


class Masked(OneDtype):
    """Clauses 2 to 4 and 7.

    Attributes:
        flight: tensors made since the caller last cleared it; together with ``known`` they are searched for aliases.
        known: gives the tensors that the caller keeps.
    """

    def __init__(self, dtype: torch.dtype, selection: bool, known: Callable[[], Iterable[Tensor]]) -> None:
        super().__init__(dtype)
        self.selection = selection
        self.known = known
        self.flight: list[Tensor] = []

    def call(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Clauses 2 and 7."""
        call = Call(func, args, kwargs, self, self.selection)
        if any(is_unknown(operand) for operand in call.operands):
            raise no_semantics(call.name, "it reads positions that were found among removed channels")
        if not call.masked and call.name not in _BEGINS:
            return func(*args, **kwargs)
        return self.in_place(call) if writes_self(func) else rule_of(func)(call)

    def note(self, func: OpOverload, args: tuple[Any, ...], result: Any) -> None:
        """Keep the tensors of this node in sight (clause 4), and flag what is unwritten (clause 7)."""
        found = tensors(result)
        self.flight.extend(found)
        viewed = returns_view(func) or torch.Tag.inplace_view in func.tags
        bare = operator_name(func) in UNWRITTEN or (viewed and any(is_unwritten(t) for t in tensors(args)))
        for tensor in found:
            mark_unwritten(tensor, bare)

    def in_place(self, call: Call) -> Any:
        """Clause 4: the rule marks the result, which is the operand itself or is copied into it."""
        target: Tensor = call["self"]
        before = mask_of(target)
        result = rule_of(call.func)(call)
        if result is not target:
            mark(target.copy_(result), mask_of(result))
        if not same_mask(before, mask_of(target)):
            self.spread(target)
        return target

    def spread(self, target: Tensor) -> None:
        """Write the target's new mask into every alias of it."""
        place = target.untyped_storage().data_ptr()
        aliases = {id(t): t for t in (*self.flight, *self.known()) if t.untyped_storage().data_ptr() == place and t is not target}
        if aliases and place:
            states = in_storage([*aliases.values(), target])
            for alias in aliases.values():
                mark(alias, from_storage(states, alias).clone())


def rule_of(func: OpOverload) -> Rule:
    """The rule of an operator (clause 2); for one that has none, a rule that says so (clause 3)."""
    name = operator_name(func)
    if name == "copy" and writes_self(func):
        return pointwise
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in func.tags:
        return pointwise
    if torch.Tag.inplace_view in func.tags and not func._can_decompose():
        return move_in_place
    if returns_view(func):
        return move
    if func._can_decompose():
        return Call.decomposed
    return unknown


def unknown(call: Call) -> Any:
    """Clause 3."""
    if call.removed and call.name not in _SILENT:
        raise no_semantics(str(call.func))
    return call.run()


def mask_state(module: torch.nn.Module, plan: Plan, copies: dict[int, Any]) -> None:
    """Give the copies of a module's parameters and buffers the masks of a plan (clause 1)."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if name in plan.kept:
            copied: Tensor = copies[id(tensor)]
            mark(copied, plan_mask(name, copied, plan.kept[name], plan.sizes[name]))
            for dim, atoms in plan.silent.get(name, {}).items():
                silent = plan_mask(name, copied, {dim: atoms}, plan.sizes[name])
                if silent is not None:
                    copied.masked_fill_(silent == ALIVE, 0)
