"""Training state carried over to a slim model by the index maps of its plan.

1. The maps go from the model that was slimmed to the slim one. If that model was slim already, they are those of the rounds since (record.py,
   clause 2), which know what earlier rounds added; or else the difference of the two plans, both in the coordinates of the first original: ``step``.
2. A tensor that belongs to a parameter or buffer is cut as that one was: for every axis the surviving atoms, in the slim order; axes with blocks of
   rows (plan.py, clause 3) per row block.
3. An optimizer's state of a parameter may hold tensors of the parameter's rank in which every dimension has the parameter's size or 1
   (momentum, second moments, factored ones as in Adafactor): these are cut along what they have. Single numbers are copied. Anything else
   cannot be cut safely and is refused, unless nothing of the parameter went.
4. Parameter groups keep their options and their order, also where nothing is left of them; membership goes by name. A parameter that slimming added
   (a bias) has no state and joins the group of its module's other parameters; one that vanished is left out.
5. A learning-rate scheduler is copied as it is, for the new optimizer. Made anew it would take a first step, which changes rates.
6. Either model may be wrapped (``DataParallel``, ``DistributedDataParallel``, ``torch.compile``): names are those of the module inside, and names of
   a state are read without what wrappers put before them. Two models, or a model and a state, that share no name do not belong together.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fxprune.errors import FxpruneError, PlanMismatchError
from fxprune.plan import Plan
from fxprune.record import compose, record_of

Rows = dict[int, tuple[int, ...]]
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
PREFIXES = ("module.", "_orig_mod.")


def bare(model: nn.Module) -> nn.Module:
    """The module inside what wraps it for several devices or compiled it (clause 6)."""
    while True:
        inner = model.module if isinstance(model, WRAPPERS) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _plain(name: str, known: Mapping[str, Tensor]) -> str:
    """A name without what wrappers put before it (clause 6)."""
    while name not in known and name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def step(model: nn.Module, slim: nn.Module) -> Plan:
    """The plan that makes ``slim`` of ``model``, in the coordinates of ``model`` (clause 1).

    Raises:
        PlanMismatchError: ``slim`` was not made by fxprune, or not from ``model``.
    """
    model, slim = bare(model), bare(slim)
    after, before = record_of(slim), record_of(model)
    if after is None:
        raise PlanMismatchError(
            f"this {type(slim).__name__} carries no plan: it was not made by fxprune.", got=type(slim).__name__
        )
    if before is None:
        return after.plan
    done = len(before.rounds)
    if len(after.rounds) > done and after.rounds[:done] == before.rounds:
        return reduce(compose, after.rounds[done:])
    return _difference(before.plan, after.plan, {name for name, _ in model.named_parameters()})


def _difference(before: Plan, after: Plan, names: set[str]) -> Plan:
    """What is left of what was left, for a slim model that was not made in further rounds from the other one."""
    kept: dict[str, Rows] = {}
    sizes: dict[str, dict[int, int]] = {}
    silent: dict[str, Rows] = {}
    for name, dims in after.kept.items():
        for dim, rows in dims.items():
            had = before.kept.get(name, {}).get(dim, tuple(range(after.sizes[name][dim])))
            place = {atom: i for i, atom in enumerate(had)}
            if not set(rows) <= place.keys():
                raise PlanMismatchError(
                    f"the slim model keeps channels of {name!r} that the model no longer has: it was made from another one.",
                    node=name,
                )
            kept.setdefault(name, {})[dim] = tuple(place[atom] for atom in rows)
            sizes.setdefault(name, {})[dim] = len(had)
            quiet = after.silent.get(name, {}).get(dim)
            if quiet is not None:
                silent.setdefault(name, {})[dim] = tuple(place[atom] for atom in quiet if atom in place)
    added = tuple(addition for addition in after.added or () if addition.name not in names)
    return replace(after, kept=kept, sizes=sizes, silent=silent, added=added)


def cut(tensor: Tensor, shape: tuple[int, ...], kept: Mapping[int, tuple[int, ...]], sizes: Mapping[int, int]) -> Tensor:
    """A copy of what is left of a tensor (clause 2) of the given original ``shape``, or one with size 1 in some dimensions (clause 3)."""
    result = tensor.detach().clone()
    blocked = [dim for dim in kept if sizes[dim] != shape[dim]]
    first = torch.tensor(kept.get(0, range(shape[0] if shape else 0)), device=tensor.device)
    if shape and 0 in kept and tensor.shape[0] > 1:
        result = result.index_select(0, first)
    for dim, rows in kept.items():
        if dim == 0 or tensor.shape[dim] == 1:
            continue
        index = torch.tensor(rows, dtype=torch.int64, device=tensor.device)
        if dim not in blocked:
            result = result.index_select(dim, index)
            continue
        if tensor.shape[0] == 1:
            raise ValueError("rows of different blocks keep different entries, and here the rows are one")
        columns = _columns(index, first, shape, dim, sizes[dim] // shape[dim])
        columns = columns.view(columns.shape[0], *(-1 if d == dim else 1 for d in range(1, len(shape))))
        result = result.gather(dim, columns.expand(*(columns.shape[dim] if d == dim else s for d, s in enumerate(result.shape))))
    return result


def _columns(index: Tensor, first: Tensor, shape: tuple[int, ...], dim: int, blocks: int) -> Tensor:
    """Per surviving row, the entries of its block that stay; shape (rows, entries)."""
    block = index // shape[dim]
    live = block.unique()
    per_block = (index % shape[dim]).view(len(live), -1)
    mine = torch.searchsorted(live, first // (shape[0] // blocks))
    return per_block[mine]


class Remap:
    """The maps between the parameters and buffers of a model and of the slim model made from it.

    Raises:
        PlanMismatchError: the two do not belong together.
    """

    def __init__(self, model: nn.Module, slim: nn.Module) -> None:
        model, slim = bare(model), bare(slim)
        plan = step(model, slim)
        kept, sizes = plan.kept, plan.sizes
        self.old = _tensors(model)
        # A plan names a tied tensor once; here it answers to every name.
        listed = {id(self.old[name]): name for name in kept if name in self.old}
        names = {name: listed[id(tensor)] for name, tensor in self.old.items() if id(tensor) in listed}
        self.kept = {name: kept[first] for name, first in names.items()}
        self.sizes = {name: sizes[first] for name, first in names.items()}
        self.new = _tensors(slim)
        if self.old and not self.old.keys() & self.new.keys():
            raise PlanMismatchError(
                f"the slim model was not made from this model: they share no name. {type(model).__name__} has {next(iter(self.old))!r}, ...; "
                f"the slim one has {next(iter(self.new), 'nothing')!r}, ...",
                expected=next(iter(self.old)),
                got=next(iter(self.new), ""),
            )
        for name in self.old.keys() & self.new.keys():
            self._check_sizes(name)
            found = self.cut(name, self.old[name])
            if found.shape != self.new[name].shape:
                raise PlanMismatchError(
                    f"the slim model was not made from this model: {name!r} of shape {tuple(self.old[name].shape)} becomes {tuple(found.shape)} "
                    f"by the plan, but is {tuple(self.new[name].shape)}.",
                    node=name,
                    expected=tuple(found.shape),
                    got=tuple(self.new[name].shape),
                )

    def _check_sizes(self, name: str) -> None:
        shape = tuple(self.old[name].shape)
        for dim, size in self.sizes.get(name, {}).items():
            whole = dim < len(shape) and (size == shape[dim] or (dim > 0 and size > shape[dim] > 0 and size % shape[dim] == 0))
            if not whole:
                raise PlanMismatchError(
                    f"the slim model was not made from this model: its plan has {size} channels for {name!r}, dimension {dim}; the shape is {shape}.",
                    node=name,
                    expected=size,
                    got=shape,
                )

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor that belongs to the tensor of that name (clauses 2 and 3)."""
        return cut(tensor, tuple(self.old[name].shape), self.kept.get(name, {}), self.sizes.get(name, {}))

    def whole(self, name: str) -> bool:
        """Nothing of the tensor of that name went."""
        return all(rows == tuple(range(self.sizes[name][dim])) for dim, rows in self.kept.get(name, {}).items())

    def state(self, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state of one parameter (clause 3).

        Raises:
            FxpruneError: an entry that cannot be cut.
        """
        shape = self.old[name].shape
        result: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                fits = value.dim() == len(shape) > 0 and all(s in (1, full) for s, full in zip(value.shape, shape, strict=True))
                if fits and not (value.numel() == 1 and self.old[name].numel() > 1):
                    try:
                        result[key] = self.cut(name, value)
                    except ValueError as error:
                        raise _uncuttable(name, key, value, str(error)) from error
                elif value.numel() == 1 or self.whole(name):
                    result[key] = value.detach().clone()
                else:
                    raise _uncuttable(name, key, value, f"the parameter's shape is {tuple(shape)}")
            elif value is None or isinstance(value, (bool, int, float, str)):
                result[key] = value
            else:
                raise _uncuttable(name, key, value, "only tensors and numbers can be carried over")
        return result


def _uncuttable(name: str, key: str, value: object, reason: str) -> FxpruneError:
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    return FxpruneError(
        f"the optimizer's state {key!r} of parameter {name!r} ({got}) cannot be carried over: {reason}. Start the slim model with a new optimizer.",
        node=name,
        target=key,
        got=got,
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name they have."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def remap_state(state: Mapping[str, Tensor], model: nn.Module, slim: nn.Module) -> dict[str, Tensor]:
    """A state dict in ``model``'s shapes (a moving average, a checkpoint) in those of ``slim``; names that the slim model lacks are left out.

    What wrappers put before names (``module.``, ``_orig_mod.``) is dropped: the names that come back are those of the bare slim model.
    What ``slim`` folded into biases and running means (``absorb``) is not in it; ``fxprune.apply`` with the plan computes that anew for
    the weights of an average.

    Raises:
        PlanMismatchError: the models do not belong together, or the state is not the model's.
    """
    maps = Remap(model, slim)
    given, state = state, {_plain(name, maps.old): tensor for name, tensor in state.items()}
    if state and not state.keys() & maps.old.keys():
        raise PlanMismatchError(
            f"this state shares no name with the model: it has {next(iter(given))!r}, ...; the model has {next(iter(maps.old), 'nothing')!r}, ...",
            expected=next(iter(maps.old), ""),
            got=next(iter(given)),
        )
    for name, tensor in state.items():
        if name in maps.old and tensor.shape != maps.old[name].shape:
            raise PlanMismatchError(
                f"{name!r} has shape {tuple(tensor.shape)} in this state and {tuple(maps.old[name].shape)} in the model.",
                node=name,
                expected=tuple(maps.old[name].shape),
                got=tuple(tensor.shape),
            )
    return {name: maps.cut(name, tensor) for name, tensor in state.items() if name in maps.old and name in maps.new}


def remap_optimizer(optimizer: Optimizer, model: nn.Module, slim: nn.Module) -> Optimizer:
    """A new optimizer of the same class for ``slim`` with the state that ``optimizer`` has for ``model``; both arguments stay as they are.

    For any optimizer whose state obeys clause 3: SGD, Adam, AdamW, RMSprop, Adagrad, Adafactor, ... A learning-rate scheduler belongs to the old
    optimizer: ``remap_scheduler`` makes one for the new.

    Args:
        optimizer: trains (some of) the parameters of ``model``.
        model: what was slimmed, as it was then; wrapped for several devices or compiled, or not.
        slim: what ``fxprune.slim`` or ``apply`` made of it; likewise.

    Raises:
        PlanMismatchError: the models do not belong together.
        FxpruneError: a parameter that is not the model's, state that cannot be cut, or a class that cannot be made anew.
    """
    model, slim = bare(model), bare(slim)
    maps = Remap(model, slim)
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    new = dict(slim.named_parameters(remove_duplicate=False))
    groups: list[dict[str, Any]] = []
    moved: dict[str, Tensor] = {}
    homes: dict[str, int] = {}
    for number, group in enumerate(optimizer.param_groups):
        own: dict[int, nn.Parameter] = {}
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                raise FxpruneError(
                    f"parameter group {number} of this {type(optimizer).__name__} holds a parameter of shape {tuple(parameter.shape)} that is not "
                    f"{type(model).__name__}'s. Pass the model that the optimizer trains.",
                    got=tuple(parameter.shape),
                )
            if name in new:
                own[id(new[name])] = new[name]
                moved[name] = parameter
                homes.setdefault(name.rpartition(".")[0], number)
        groups.append({**{k: v for k, v in group.items() if k not in ("params", "param_names")}, "params": list(own.values())})
    known = {id(new[name]) for name in names.values() if name in new}
    for name, parameter in slim.named_parameters():
        home = homes.get(name.rpartition(".")[0])
        if name not in maps.old and id(parameter) not in known and home is not None:
            groups[home]["params"].append(parameter)
    result = _anew(optimizer, groups)  # groups without parameters too: schedulers count groups
    for name, parameter in moved.items():
        if parameter in optimizer.state:
            result.state[new[name]] = maps.state(name, optimizer.state[parameter])
    return result


def _anew(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """An optimizer of the same class with other groups, which carry all options."""
    kind = type(optimizer)
    takes = inspect.signature(kind.__init__).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in takes}
    try:
        result = kind(groups, **options)
    except TypeError as error:
        raise FxpruneError(
            f"a {kind.__name__} cannot be made anew from its defaults ({error}). Make one for the slim model and fill its state from "
            "fxprune.train.Remap(model, slim).state(name, state).",
            got=kind.__name__,
        ) from error
    return result


def remap_scheduler(scheduler: LRScheduler, optimizer: Optimizer) -> LRScheduler:
    """A copy of a learning-rate scheduler that goes on with another optimizer (clause 5); the given one stays as it is.

    Args:
        scheduler: any of ``torch.optim.lr_scheduler``, chained and sequential ones too.
        optimizer: what ``remap_optimizer`` made of the scheduler's optimizer.

    Raises:
        FxpruneError: the optimizer has another number of parameter groups.
    """
    old: Optimizer = scheduler.optimizer
    if len(old.param_groups) != len(optimizer.param_groups):
        raise FxpruneError(
            f"this {type(scheduler).__name__} schedules {len(old.param_groups)} parameter groups, and the optimizer has "
            f"{len(optimizer.param_groups)}. Pass what remap_optimizer made of the scheduler's own optimizer.",
            expected=len(old.param_groups),
            got=len(optimizer.param_groups),
        )
    _tracked(optimizer)
    return copy.deepcopy(scheduler, {id(old): optimizer})


def _tracked(optimizer: Optimizer) -> None:
    """Note the optimizer's steps, as schedulers do when they are made: they warn where they are stepped before it."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    step_ = optimizer.step

    def tracked(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return step_(*args, **kwargs)

    tracked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = tracked  # type: ignore[method-assign]
