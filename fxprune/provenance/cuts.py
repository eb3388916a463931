"""Layers cut from what they read: the analysis behind the selection layout.

1. A *cut* stands in front of a batch norm with a scale. Behind it the channels are new atoms, ``own``; position i of them reads the atom
   ``source[i]`` of the value that arrives. Cutting couples nothing: a channel behind the cut can go while its source stays. It cannot
   stay without its source.
2. A batch norm is cut where its input has channels along dimension 1 and nothing else that could go. Where it does not, it is coupled.
3. Beside the cuts, the run takes down what *else* hears a channel (``heard``): operators that mix channels or end them, such as a mean
   over channels, a softmax, a product of two activations. Layers with weights are not among them: their input columns say who reads.
   A pair (x, w) says that x is heard through w; whether w is such a column is known when all is recorded (graph/selection.py).
4. A convolution that is asked for by its weight is cut in the same way: what is behind the cut are its input columns.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture.clone import module_at
from fxprune.capture.tracer import Captured
from fxprune.provenance.factor import Ids, support
from fxprune.provenance.ledger import Recorder
from fxprune.provenance.rules import find
from fxprune.provenance.rules.hearing import NO_IDS, Pair, heard
from fxprune.provenance.tracker import Tracker


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A cut (clauses 1 and 4).

    Attributes:
        node: the node of the batch norm or convolution.
        gamma: the name of its scale; of a convolution, of its weight.
        source: clause 1.
        own: clause 1.
        dim: the dimension of that tensor that is behind the cut.
        given: the node of what arrives.
    """

    node: str
    gamma: str
    source: Ids
    own: Ids
    dim: int = 0
    given: str = ""


def norm_of(captured: Captured, node: fx.Node, gammas: frozenset[str]) -> tuple[str, fx.Node] | None:
    """The scale of the batch norm that a node calls, and the node of its input; None for any other node."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(given, fx.Node):
        return None
    if node.op == "call_module":
        name = f"{node.target}.weight"
        module = module_at(captured.root, str(node.target))
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not isinstance(module.weight, Tensor):
            return None
        found = name if name in gammas else next((n for n, t in captured.tensors.items() if t is module.weight), "")
        return (found, given) if found in gammas else None
    called = str(getattr(node.target, "__name__", node.target))
    if node.op != "call_function" or "batch_norm" not in called:
        return None
    scales = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr" and str(n.target) in gammas]
    return (scales[0], given) if scales else None


def convolution_of(captured: Captured, node: fx.Node, weights: frozenset[str]) -> tuple[str, fx.Node] | None:
    """The weight of the convolution that a node calls, if it is one of these, and the node of its input."""
    given = node.args[0] if node.args else node.kwargs.get("input")
    if not weights or node.op != "call_module" or not isinstance(given, fx.Node):
        return None
    module = module_at(captured.root, str(node.target))
    if not isinstance(module, nn.modules.conv._ConvNd) or module.transposed or module.groups != 1:
        return None
    found = next((name for name in weights if captured.tensors[name] is module.weight), "")
    return (found, given) if found else None


@dataclass(slots=True)
class Cutter:
    """One run with cuts (clauses 1, 2 and 4)."""

    captured: Captured
    gammas: frozenset[str]
    weights: frozenset[str] = frozenset()
    cuts: list[Cut] = field(default_factory=list)
    heard: list[Pair] = field(default_factory=list)

    def tracker(self, recorder: Recorder) -> Tracker:
        """The tracker of such a run."""
        return _Listening(recorder, self.heard)

    def before(self, node: fx.Node, env: Mapping[fx.Node, Any], tracker: Tracker) -> Mapping[fx.Node, Any]:
        """What a node sees of the values before it."""
        if node.op == "call_module" and isinstance(module_at(self.captured.root, str(node.target)), nn.RNNBase):
            given_all = [env[n] for n in node.all_input_nodes if isinstance(env[n], Tensor)]
            self.heard += [(ids.ravel(), NO_IDS) for x in given_all for ids in tracker.value(x).factors]
        convolution = convolution_of(self.captured, node, self.weights)
        found = convolution or norm_of(self.captured, node, self.gammas)
        if found is None:
            return env
        name, given = found
        x = env[given]
        least = 2 if convolution is None else self.captured.tensors[name].dim()  # a single image has no channels at dimension 1
        if not isinstance(x, Tensor) or x.dim() < least:
            return env
        factors = tracker.value(x).factors
        recorder = tracker.ledger
        assert isinstance(recorder, Recorder)
        if x.shape[1] < 2 or any(support(ids) != (1,) for ids in factors) or len(factors) > 1:
            return env
        source = factors[0].ravel() if factors else np.zeros(x.shape[1], np.int64)
        own = recorder.take(x.shape[1])
        self.cuts.append(Cut(node.name, name, source, own, 0 if convolution is None else 1, given.name))
        cut = tracker.new(x.shape, x, [own.reshape((1, -1) + (1,) * (x.dim() - 2))])
        return ChainMap({given: cut}, env)  # type: ignore[arg-type]


class _Listening(Tracker):
    """Clause 3."""

    def __init__(self, recorder: Recorder, taken: list[Pair]) -> None:
        super().__init__(recorder, find)
        self._taken = taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        before = [(x, self.value(x).factors) for x in operands]
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if any(factors for _, factors in before):
            after = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
            left = [np.unique(ids) for x in after for ids in self.value(x).factors]
            carried = np.unique(np.concatenate(left)) if left else NO_IDS
            self._taken += heard(self._find(func), func, args, before, carried)
        return result
