"""Readers: the nodes at which channels meet weights, and what constant inputs contribute to their outputs.

1. A reader is a convolution, a linear layer or a matrix product whose weight is a parameter (or buffer) as it stands. A weight that is computed
   (weight norm) makes none.
2. The *kernel* of constants c is ``K[o, *window] = sum_a W[o, a, *window] c[a]``, float64, over the original's output channels. A reader that sees
   a constant as a constant has the correction ``K.sum(window)``; one that pads with zeros has it in the interior.
3. Padding with values of the image (reflect, replicate, circular) keeps a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.absorb.operators import CONTRACTION, Operation
from fxprune.provenance.factor import Ids

SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 16, 1 << 20  # numbers of a weight that are looked at at once


def chunk(weight: Tensor) -> int:
    """How many numbers of a weight are looked at at once: memory stays a small share of the weight's."""
    return min(max(weight.numel() // 64, SMALLEST_CHUNK), LARGEST_CHUNK)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Clause 1.

    Attributes:
        node: the node that reads.
        name: name of the weight; ``weight``: the original's.
        dim: the weight's input side; ``out``: its output side.
        blocks: groups of a convolution.
        channel: the dimension of the input that is read, and ``made``: of the output that is written.
        bias: name of the bias, empty if there is none.
        module: name of the module that is called, empty for a function.
        window: stride, padding, dilation, output padding; None for products.
        transposed: a transposed convolution.
    """

    node: fx.Node
    name: str
    weight: Tensor
    dim: int
    out: int
    blocks: int
    channel: int
    made: int
    bias: str
    module: str
    window: tuple[tuple[int, ...], ...] | None = None
    transposed: bool = False

    @property
    def width(self) -> int:
        """Output channels of the original."""
        return self.weight.shape[self.out] * (self.blocks if self.transposed else 1)

    @property
    def depthwise(self) -> bool:
        """A row hears one channel, and goes with it: nothing is ever read of a removed one."""
        return self.blocks > 1 and (self.weight.shape[1] == 1 if self.dim == 1 else self.weight.shape[0] == self.blocks)

    @property
    def uneven(self) -> bool:
        """A constant input does not give a constant output: zero padding, or a transposed convolution (clause 2)."""
        if self.window is None:
            return False
        return self.transposed or any(self.window[1])


def reader(
    node: fx.Node,
    operation: Operation,
    module: nn.Module | None,
    names: Mapping[int, str],
    rank: int,
    held: Mapping[fx.Node, Any],
) -> Reader | None:
    """The reader that a contraction's node is, or None where its weight is computed. ``rank``: dimensions of its input."""
    if operation.name not in CONTRACTION:
        return None
    if module is not None:
        return _of_module(node, module, names, rank)
    arguments = dict(enumerate(node.args))
    weight = held.get(_node(node.kwargs.get("weight", arguments.get(1))))
    if not isinstance(weight, Tensor) or id(weight) not in names or node.args[1:2] == (node.args[0],):
        return None
    name = names[id(weight)]
    if operation.name in ("matmul", "mm"):
        return Reader(node, name, weight, 0, 1, 1, rank - 1, rank - 1, "", "") if weight.dim() == 2 and rank > 1 else None
    given = node.kwargs.get("bias", arguments.get(2))
    bias = held.get(_node(given))
    if given is not None and (not isinstance(bias, Tensor) or id(bias) not in names):
        return None
    bias_name = "" if bias is None else names[id(bias)]
    if operation.name == "linear":
        return Reader(node, name, weight, 1, 0, 1, rank - 1, rank - 1, bias_name, "") if weight.dim() == 2 else None
    return _functional(node, operation.name, name, weight, bias_name, rank)


def _node(argument: Any) -> Any:
    return argument if isinstance(argument, fx.Node) else None


def _of_module(node: fx.Node, module: nn.Module, names: Mapping[int, str], rank: int) -> Reader | None:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or id(weight) not in names or module._forward_pre_hooks or module._forward_hooks:
        return None
    held = "" if bias is None else names.get(id(bias), "")
    common = (held, str(node.target))
    if isinstance(module, nn.Linear):
        return Reader(node, names[id(weight)], weight, 1, 0, 1, rank - 1, rank - 1, *common)
    assert isinstance(module, _ConvNd)
    padding = _padding(module, weight)
    if padding is None:
        return None
    window = (_numbers(module.stride), padding, _numbers(module.dilation), _numbers(module.output_padding))
    spatial = weight.dim() - 2
    transposed = isinstance(module, _ConvTransposeNd)
    sides = (0, 1) if transposed else (1, 0)
    channel = rank - spatial - 1
    return Reader(node, names[id(weight)], weight, *sides, module.groups, channel, channel, *common, window, transposed)


def _padding(module: _ConvNd, weight: Tensor) -> tuple[int, ...] | None:
    """Zeros on each side; None where "same" pads one side more than the other."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return (0,) * (weight.dim() - 2)
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(_numbers(module.dilation), weight.shape[2:], strict=True)]
        return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)
    return _numbers(module.padding)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value)


def _functional(node: fx.Node, kind: str, name: str, weight: Tensor, bias: str, rank: int) -> Reader | None:
    spatial, transposed = weight.dim() - 2, kind.startswith("conv_transpose")
    order = (
        ("stride", "padding", "output_padding", "groups", "dilation")
        if transposed
        else ("stride", "padding", "dilation", "groups")
    )
    defaults: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    found = {
        **defaults,
        **dict(zip(order, node.args[3:], strict=False)),
        **{k: v for k, v in node.kwargs.items() if k in defaults},
    }
    if found["padding"] == "valid":
        found["padding"] = 0
    if any(isinstance(v, (str, fx.Node)) for v in found.values()):
        return None
    try:
        spread = {key: _wide(found[key], spatial) for key in ("stride", "padding", "dilation", "output_padding")}
    except (TypeError, ValueError):
        return None
    window = (spread["stride"], spread["padding"], spread["dilation"], spread["output_padding"])
    sides = (0, 1) if transposed else (1, 0)
    channel = rank - spatial - 1
    return Reader(node, name, weight, *sides, int(found["groups"]), channel, channel, bias, "", window, transposed)


def _wide(value: Any, spatial: int) -> tuple[int, ...]:
    numbers = _numbers(value) if isinstance(value, (tuple, list)) else (int(value),)
    return numbers * spatial if len(numbers) == 1 else numbers


def kernel(reader: Reader, atoms: Ids, values: Tensor, rows: Tensor) -> Tensor:
    """Clause 2: ``(rows, *window)``, for the output channels that ``rows`` names."""
    found, _ = products(reader, atoms, values, None, rows)
    return found


def gross(reader: Reader, atoms: Ids, values: Tensor, rows: Tensor) -> Tensor:
    """``sum_a |sum_window W[o, a]|**2 values[a]`` ``(rows,)``, with the windows' magnitudes: 0 where a row hears none of these inputs."""
    _, found = products(reader, atoms, torch.zeros_like(values), values, rows, magnitude=True)
    return found


def products(
    reader: Reader, atoms: Ids, values: Tensor, squares: Tensor | None, rows: Tensor, *, magnitude: bool = False
) -> tuple[Tensor, Tensor]:
    """The kernel of constants, and the variance of the correction for independent inputs with variances ``squares``, in pieces."""
    weight, window = reader.weight.detach(), tuple(reader.weight.shape[2:])
    used = values != 0 if squares is None else (values != 0) | (squares != 0)
    index = torch.from_numpy(atoms)[used]
    constants = values[used].to(torch.float64)
    spread = torch.zeros_like(constants) if squares is None else squares[used].to(torch.float64)
    result, variance = (
        torch.zeros(len(rows), *window, dtype=torch.float64, device="cpu"),
        torch.zeros(len(rows), dtype=torch.float64, device="cpu"),
    )
    if not len(index):
        return result, variance

    def both(part: Tensor, constants: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """``part``: (rows, inputs, *window); ``constants`` and ``spread``: (inputs,), or (rows, inputs)."""
        part = part.reshape(*part.shape[:2], -1).cpu()
        wide = part.to(torch.float64)
        plain = wide.shape[2] == 1 and constants.dim() == 1
        total = wide.squeeze(2) @ constants if plain else (constants.unsqueeze(-2) @ wide).squeeze(-2)
        if squares is None:
            return total.reshape(len(part), *window), variance[:0]
        own = part if part.dtype == torch.float32 else wide  # an estimate, in the weight's own precision
        own = own.abs() if magnitude else own
        heard = (own.sum(2) if own.shape[2] > 1 else own.squeeze(2)).square()
        spread = spread.to(heard.dtype)
        return total.reshape(len(part), *window), heard @ spread if spread.dim() == 1 else (heard * spread).sum(1)

    if reader.blocks > 1:
        by_block = torch.zeros(
            2, reader.blocks * weight.shape[1] if reader.dim == 1 else weight.shape[0], dtype=torch.float64, device="cpu"
        )
        by_block[0, index], by_block[1, index] = constants, spread
        constants, spread = by_block.view(2, reader.blocks, -1)
    if reader.blocks > 1 and reader.dim == 0:
        wide = weight.cpu().to(torch.float64)
        summed = (wide.abs() if magnitude else wide).flatten(2).sum(2) if window else wide
        result = _grouped(reader, wide, constants).reshape(reader.width, *window)[rows]
        return result, _grouped(reader, summed.square(), spread).reshape(reader.width)[rows]
    of_rows = weight if reader.out == 0 else weight.transpose(0, 1)
    step = max(1, chunk(weight) // max(1, of_rows[0].numel()))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        if reader.blocks > 1:
            block = some // (reader.width // reader.blocks)
            total, more = both(of_rows.index_select(0, some.to(weight.device)), constants[block], spread[block])
        else:
            part = of_rows.index_select(0, some.to(weight.device)).index_select(1, index.to(weight.device))
            total, more = both(part, constants, spread)
        result[start : start + step] = total
        if squares is not None:
            variance[start : start + step] = more
    return result, variance


def hears(reader: Reader, atoms: Ids, rows: Tensor) -> bool:
    """Some of these rows has a weight for some of these inputs."""
    if reader.blocks == 1 and len(atoms) and len(rows):
        column = reader.weight.detach().select(reader.dim, int(atoms[0])).flatten(1) if reader.weight.dim() > 2 else None
        if column is not None and bool((column[rows.to(column.device)] != 0).any()):
            return True  # settles it nearly always
    return bool(gross(reader, atoms, torch.ones(len(atoms), dtype=torch.float64, device="cpu"), rows).any())


def _grouped(reader: Reader, weight: Tensor, constants: Tensor) -> Tensor:
    """The kernel of a grouped transposed convolution, of constants ``(blocks, inputs)``: ``(blocks, rows, *window)``."""
    blocks = weight.reshape(reader.blocks, weight.shape[0] // reader.blocks, *weight.shape[1:])
    return (blocks * constants.reshape(*constants.shape, *[1] * (blocks.dim() - 2))).sum(1)


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def image(reader: Reader, kernels: Tensor, sides: Sequence[int]) -> Tensor:
    """What kernels ``(rows, *window)`` give on an image of ones with these sides: ``(rows, *image)``."""
    assert reader.window is not None
    stride, padding, dilation, more = reader.window
    spatial = len(stride)
    ones = torch.ones(1, 1, *sides, dtype=torch.float64, device="cpu")
    if reader.transposed:
        call: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        result: Tensor = call(ones, kernels.unsqueeze(0), None, stride, padding, more, 1, dilation)
    else:
        call = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        weight = kernels.unsqueeze(1)
        result = call(ones, weight, None, stride, padding, dilation)
    return result[0]


def interior(reader: Reader, kernels: Tensor) -> Tensor:
    """Clause 2: the correction where the window sees no padding, ``(rows,)``; of a transposed convolution, the mean over its phases."""
    total = kernels.flatten(1).sum(1) if kernels.dim() > 1 else kernels
    if reader.transposed and reader.window is not None:
        return total / _count(reader.window[0])
    return total
