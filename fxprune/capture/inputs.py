"""Example inputs: what the user gives, or what the model lets one infer.

Inference tries shapes on the meta device, so it costs no arithmetic: the model's own configuration first (``input_size``,
``default_cfg``, ``config.image_size``), then common sizes for the first convolution or linear layer; numbers of tokens where an embedding
comes before these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import InputError

SIZES = {1: (16000, 1024, 256, 64), 2: (224, 32, 64, 96, 128, 256, 299, 28, 8), 3: (16, 32, 64, 112)}


@dataclass(frozen=True, slots=True)
class Inputs:
    """Positional and keyword arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inferred: bool = False

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with every tensor changed."""
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.inferred)

    def doubled(self) -> Inputs | None:
        """The same call with two samples in the place of one; None if no tensor has a leading dimension of 1."""
        tensors = [x for x in torch.utils._pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(x, Tensor)]
        if not any(x.dim() > 1 and x.shape[0] == 1 for x in tensors):
            return None
        return self.map(lambda x: torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x)

    def on_meta(self) -> Inputs:
        return self.map(lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))


def given(example: Any) -> Inputs:
    """A tensor, a tuple or list of arguments, or a dict of keyword arguments.

    Raises:
        InputError: anything else, or an empty tensor.
    """
    if isinstance(example, Inputs):
        return example
    for leaf in torch.utils._pytree.tree_leaves(example):
        if isinstance(leaf, Tensor) and leaf.numel() == 0:
            raise InputError(
                f"example_inputs holds a tensor of shape {tuple(leaf.shape)}, which is empty. Give at least one sample.",
                got=tuple(leaf.shape),
            )
    if isinstance(example, Tensor):
        return Inputs((example,), {})
    if isinstance(example, Sequence) and len(example) > 1 and all(type(part) is int for part in example):
        raise InputError(
            f"example_inputs={tuple(example)} are numbers, not tensors. Did you mean torch.randn{tuple(example)}?",
            got=tuple(example),
        )
    if isinstance(example, Mapping):
        return Inputs((), dict(example))
    if isinstance(example, Sequence) and not isinstance(example, (str, bytes)):
        return Inputs(tuple(example), {})
    raise InputError(
        f"example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, got {type(example).__name__}.",
        got=type(example).__name__,
    )


def infer(model: nn.Module, works: Callable[[Inputs], Exception | None]) -> Inputs:
    """The first candidate that ``works`` accepts (returns None for).

    Raises:
        InputError: nothing fits; the message names what was tried.
    """
    tried: list[str] = []
    last: Exception | None = None
    examples: Iterable[Tensor | tuple[int, ...]] = () if _takes_list(model) else chain(_tokens(model), _candidates(model))
    for example in examples:
        values = example if isinstance(example, Tensor) else _random(example, model)
        candidate = Inputs((values,), {}, inferred=True)
        last = works(candidate)
        if last is None:
            return candidate
        tried.append("x".join(map(str, values.shape)) + ("" if values.is_floating_point() else " whole numbers"))
    if isinstance(_first(model), nn.Conv2d):
        images = [_random(shape, model) for shape in _images(model)]
        last = works(Inputs((images,), {}, inferred=True))
        if last is None:
            return Inputs((images,), {}, inferred=True)
        tried.append("a list of images")
    raise InputError(
        f"example inputs for {type(model).__name__} could not be inferred (tried {', '.join(tried) or 'nothing: no conv or linear layer'}"
        + (f"; the last attempt failed with: {_first_line(last)}" if last is not None else "")
        + "). Pass example_inputs=: a tensor, a tuple of arguments, or a dict of keyword arguments.",
        got=tuple(tried),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _random(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    return numbers.to(dtype=like.dtype, device=like.device)


def _candidates(model: nn.Module) -> Iterator[tuple[int, ...]]:
    first = _first(model)
    for size in _configured(model):
        yield (2, *size)
    if isinstance(first, nn.modules.conv._ConvNd):
        rank = len(first.kernel_size)
        for side in SIZES[rank]:
            yield (2, first.in_channels, *(side,) * rank)
    elif isinstance(first, nn.Linear):
        yield (2, first.in_features)
        yield (2, 16, first.in_features)
        for side in (28, 32, 8):
            if first.in_features % (side * side) == 0:
                yield (2, first.in_features // (side * side), side, side)


def _first(model: nn.Module) -> nn.Module | None:
    """The first convolution or linear layer."""
    return next((m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))), None)


def _tokens(model: nn.Module) -> list[Tensor]:
    """Numbers of tokens, if the model's first layer is an embedding: sentences, or one token per sample."""
    kinds = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.Linear)
    first = next((m for m in model.modules() if isinstance(m, kinds)), None)
    if not isinstance(first, (nn.Embedding, nn.EmbeddingBag)):
        return []
    generator = torch.Generator().manual_seed(0)
    made = (torch.randint(first.num_embeddings, shape, generator=generator, device="cpu") for shape in ((2, 16), (2,)))
    return [numbers.to(first.weight.device) for numbers in made]


def _takes_list(model: nn.Module) -> bool:
    """The first argument is annotated as a list, as detectors annotate their images."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    return bool(parameters) and str(parameters[0].annotation).removeprefix("typing.").lower().startswith("list[")


def _images(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Two images of different sizes, with as many channels as the first convolution reads."""
    channels = int(getattr(_first(model), "in_channels", 3))
    return (channels, 96, 128), (channels, 128, 96)


def _configured(model: nn.Module) -> Iterator[tuple[int, ...]]:
    size = getattr(model, "input_size", None)
    if isinstance(size, (tuple, list)) and all(isinstance(s, int) for s in size):
        yield tuple(size)
    config = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        yield tuple(config["input_size"])
    config = getattr(model, "config", None)
    image, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if isinstance(image, int):
        yield (channels, image, image)
