"""A checkpoint held against the model it belongs to.

1. Names in the checkpoint are those of the model's state dict. A tied weight may stand in it under any of its names, or under several.
2. Every parameter and persistent buffer of the model is there, in the model's shape. What the model does not have is *unknown*.
3. For an analysis, a *stand-in* has the place of every tensor: vectors of floating point have their numbers; other tensors of the
   checkpoint have their shape only. What is not in the checkpoint stays what it is in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fxprune.capture.clone import hollow
from fxprune.errors import FileFormatError, PlanMismatchError
from fxprune.io.container import Container
from fxprune.io.layout import Entry


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint and the model it belongs to.

    Attributes:
        files: its shards by name.
        tensors: every tensor's shard and entry, by its name in the checkpoint.
        first: the model's first name of every tensor that it has.
        names: the other way round.
        parameters: first names of the model's parameters.
    """

    files: Mapping[str, Container]
    tensors: Mapping[str, tuple[Container, Entry]]
    first: Mapping[str, str]
    names: Mapping[str, str]
    parameters: frozenset[str]

    @classmethod
    def match(cls, model: nn.Module, files: Mapping[str, Container]) -> Checkpoint:
        """Hold the names and shapes of a checkpoint against a model's.

        Raises:
            FileFormatError: it lacks a tensor.
            PlanMismatchError: a tensor has another shape.
        """
        tensors: dict[str, tuple[Container, Entry]] = {}
        for container in files.values():
            for name, entry in container.entries.items():
                if name in tensors:
                    raise FileFormatError(f"{name!r} stands in two files of the checkpoint.", node=name)
                tensors[name] = (container, entry)
        first: dict[str, str] = {}
        seen: dict[int, str] = {}
        state = model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            if not isinstance(tensor, Tensor):
                continue
            own = seen.setdefault(id(tensor), name)
            if name in tensors:
                first[name] = own
                shape = tensors[name][1].shape
                if shape != tuple(tensor.shape):
                    raise PlanMismatchError(
                        f"the checkpoint has {name!r} with shape {shape}, and the model with {tuple(tensor.shape)}.",
                        node=name,
                        expected=tuple(tensor.shape),
                        got=shape,
                    )
        there = set(first.values())
        missing = [name for name in seen.values() if name not in there]
        if missing:
            raise FileFormatError(
                f"the checkpoint has no tensor {missing[0]!r}"
                + (f", nor {len(missing) - 1} more" if len(missing) > 1 else "")
                + f", which the model has; it has {', '.join(map(repr, list(tensors)[:3]))}, ...",
                node=missing[0],
                expected=missing[0],
            )
        parameters = frozenset(name for name, _ in model.named_parameters())
        return cls(files, tensors, first, {own: name for name, own in first.items()}, parameters)

    def stand_in(self, name: str, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the model in the analysis (clause 3)."""
        if name not in self.names and not tensor.is_meta:
            return tensor
        if name not in self.names or tensor.dim() != 1 or not tensor.is_floating_point():
            return hollow(name, tensor)
        container, entry = self.tensors[self.names[name]]
        numbers = container.tensor(entry)
        return nn.Parameter(numbers, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else numbers
