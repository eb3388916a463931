"""The zeroed network: what a plan's slim network must compute, found without any rewriting.

1. The original network runs as it is, in its own code. Whenever it multiplies by a weight (convolution, linear layer, matrix
   product with a parameter), the entries of that weight whose INPUT-side atom the plan removes count as zero. Nothing else
   is changed: a removed channel is still computed, and nobody hears it.
2. The input side of a weight is dimension 1 of convolutions, linear layers and all matrices of a recurrent layer or cell, dimension 0
   of transposed convolutions, and the contracted dimension of matrix products. Grouped convolutions: a plan numbers the input
   atoms of all groups one after the other (``fxprune.plan``, clause 3).
3. The result equals ``slim(x)`` (``absorb=False``) where every way from a removed channel to an output leads through such a
   weight. That holds for pointwise operators, data movement, batch and instance norm, everything spatial, gates, products of
   branches, channel correlations, and token mixing.
4. It does NOT hold where live elements hear removed ones without a weight in between: layer and group norm, mean, sum,
   maximum or softmax over channels, products of activations that contract channels (attention), and weights that are
   computed from parameters (weight_norm). There the slim network leaves removed channels out, the zeroed one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.plan import Plan

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
RECURRENT = tuple(name + form for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for form in ("", "_cell"))
PRODUCTS = ("matmul", "__matmul__", "mm", "bmm")


class _Zeroing(TorchFunctionMode):
    """Function mode of clause 1."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.names: dict[int, list[str]] = {}
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in tensors:
            self.names.setdefault(id(tensor), []).append(name)
        self.transposes: dict[int, tuple[Tensor, Tensor]] = {}

    def without(self, weight: Any, dim: int, transposed: bool = False) -> Any:
        """The weight with the entries of removed atoms of one dimension zeroed; anything else as it is."""
        if id(weight) in self.transposes:
            origin = self.transposes[id(weight)][1]
            return self.without(origin, (1, 0)[dim]).t()
        name = next((n for n in self.names.get(id(weight), ()) if dim in self.plan.sizes.get(n, {})), None)
        if name is None:
            return weight
        atoms = self.plan.sizes[name][dim]
        live = torch.zeros(atoms, dtype=weight.dtype)
        live[list(self.plan.kept[name][dim])] = 1
        live[list(self.plan.silent.get(name, {}).get(dim, ()))] = 0
        if transposed or dim == 0 or atoms == weight.shape[dim]:
            return weight * live.reshape([-1 if d == dim else 1 for d in range(weight.dim())])
        blocks = atoms // weight.shape[dim]  # clause 2
        assert dim == 1
        assert atoms == blocks * weight.shape[1]
        rows = live.view(blocks, 1, weight.shape[1]).expand(-1, weight.shape[0] // blocks, -1).reshape(weight.shape[0], -1)
        return weight * rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        args = list(args)
        if name in CONVOLUTIONS or name in TRANSPOSED or name == "linear":
            dim = 0 if name in TRANSPOSED else 1
            if len(args) > 1:
                args[1] = self.without(args[1], dim, name in TRANSPOSED)
            else:
                kwargs["weight"] = self.without(kwargs["weight"], dim, name in TRANSPOSED)
        elif name in RECURRENT:
            lists = [[self.without(w, 1) for w in a] if isinstance(a, list) else a for a in args]
            args = [self.without(a, 1) if isinstance(a, Tensor) else a for a in lists]
        elif name in PRODUCTS:
            args[0] = self.without(args[0], args[0].dim() - 1)
            args[1] = self.without(args[1], max(0, args[1].dim() - 2))
        result = func(*args, **kwargs)
        if (name in ("t", "transpose") or func == Tensor.T.__get__) and id(args[0]) in self.names and result.dim() == 2:
            self.transposes[id(result)] = (result, args[0])
        return result


@contextmanager
def zeroing(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Inside, ``model`` computes what the plan's slim network must compute."""
    with _Zeroing(model, plan):
        yield


def zeroed(model: nn.Module, plan: Plan, inputs: Iterable[Tensor] | Tensor) -> Any:
    """Output of the zeroed network (module docstring); the mode of the model is left as it is."""
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    with torch.no_grad(), zeroing(model, plan):
        return model(*args)
