"""The third capture: ``torch.export``.

1. The model (a legalized structural clone of it, in evaluation mode) is exported with the first dimension of every tensor left open where
   export can prove that to be right, and with the example's sizes where it cannot.
2. The exported graph reads parameters and buffers under their original names, from the same structural clone. What the graph does not
   read (a batch norm's counter) is read nevertheless, so that state-dict keys stay what they were.
3. Its calls are ATen operators. Those that have arguments which repeat a size become the Python functions of the same meaning, so that one
   table of literals serves all captures. Assertions and guards are dropped: they were true for the original's sizes.
4. What it costs: train mode (dropout and batch statistics are exported as they are in evaluation), and open sizes other than the batch's.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_map

from fxprune.capture.attention import legalize
from fxprune.capture.clone import clone, named_tensors, same, walk
from fxprune.capture.inputs import Inputs
from fxprune.capture.tracer import Captured
from fxprune.errors import CaptureError

HOW = "torch.export"
TRAIN = "captured by torch.export: the slim model computes as in evaluation, also after train()"
STATIC = "captured by torch.export with the example's batch size, which the slim model is fixed to"
SAME = (
    "view reshape expand split chunk tensor_split unflatten new_zeros new_ones new_empty new_full narrow select index_select roll"
)
METHODS = {**{name: name for name in SAME.split()}, "sym_size": "size", "sym_numel": "numel", "sym_stride": "stride"}
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(torch, name) for name in "zeros ones empty full rand randn".split()},
    **{name: getattr(F, name) for name in "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d pad".split()},
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
    "split_with_sizes": torch.split,
}
# Guards would refuse other batch sizes than they allow for; older torch (2.6) has none and does not know the word.
UNGUARDED = {"check_guards": False} if "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters else {}
DROPPED = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size")


def export(model: nn.Module, inputs: Inputs) -> Captured:
    """Capture a model with ``torch.export`` (clauses 1 to 3).

    Raises:
        CaptureError: export refuses the model, or its graph holds what is not a call on tensors (control flow).
    """
    root = clone(model, same)
    legalize(root)
    for _, module in walk(root):
        module.__dict__["training"] = False
    program, open_batch = _exported(root, inputs)
    for (_, new), (_, old) in zip(walk(root), walk(model), strict=True):
        new.__dict__["training"] = old.training
    graph = _graph(program, root)
    notes = (TRAIN,) if open_batch else (TRAIN, STATIC)
    return Captured(root, graph, type(model).__name__, HOW, notes)


def _exported(root: nn.Module, inputs: Inputs) -> tuple[fx.GraphModule, bool]:
    """The exported graph module, and whether its batch size is open (clause 1)."""
    args, kwargs = inputs.map(torch.clone).args, dict(inputs.kwargs)
    named = {**dict(zip(inspect.signature(root.forward).parameters, args, strict=False)), **kwargs}
    sizes = tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.dim() and x.shape[0] > 1 else None, named)
    last: Exception | None = None
    for dynamic in (sizes, None):
        try:
            with warnings.catch_warnings(), torch.no_grad(), _silence():
                warnings.simplefilter("ignore")
                program = torch.export.export(root, args, kwargs, dynamic_shapes=dynamic, strict=False)
                module = program.module(**UNGUARDED)
        except Exception as error:  # noqa: BLE001 - whatever export raises, it refuses
            last = error
            continue
        return module, _is_open(module)
    line = str(last).strip().splitlines()[0] if str(last).strip() else type(last).__name__
    raise CaptureError(f"torch.export refuses it: {type(last).__name__}: {line}", got=type(last).__name__) from last


@contextmanager
def _silence() -> Iterator[None]:
    """A refusal of export is no news: it would log the whole program."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _is_open(module: fx.GraphModule) -> bool:
    tensors = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), Tensor)]
    return any(isinstance(x.shape[0], torch.SymInt) for x in tensors if x.dim())


def _graph(program: fx.GraphModule, root: nn.Module) -> fx.Graph:
    """Clauses 2 and 3."""
    graph = fx.Graph()
    graph.set_codegen(program.graph._codegen)
    table: dict[fx.Node, fx.Node] = {}
    names = {id(t): name for name, t in named_tensors(walk(root)).items()}
    read: set[str] = set()
    result: Any = None
    for node in program.graph.nodes:
        if node.op == "output":
            result = fx.node.map_arg(node.args[0], lambda n: table[n])
            continue
        if node.op == "call_module" or _dropped(node):
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(f"torch.export's graph has control flow at node {node.name!r} ({node.target}).", node=node.name)
        copy = graph.node_copy(node, lambda n: table[n])
        copy.name = node.name
        if node.op == "get_attr":
            value = _attribute(program, str(node.target))
            copy.target = names.get(id(value)) or _held(root, str(node.target), value)
            read.add(str(copy.target))
        elif isinstance(node.target, torch._ops.OpOverload):
            _as_python(copy)
        table[node] = copy
    for node in graph.nodes:
        node.meta = {}
    for name in named_tensors(walk(root)):
        if name not in read:
            graph.get_attr(name)
    graph.output(result)
    return graph


def _dropped(node: fx.Node) -> bool:
    name = getattr(getattr(node.target, "_schema", None), "name", "").rpartition("::")[2] or getattr(node.target, "__name__", "")
    return not node.users and (name in DROPPED or name.startswith("_assert"))


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _held(root: nn.Module, name: str, value: Any) -> str:
    """A constant that export lifted out of Python code, as an attribute of the clone."""
    own = "_exported_" + name.replace(".", "_")
    if isinstance(value, Tensor):
        root._buffers[own] = value
        root._non_persistent_buffers_set.add(own)
    else:
        root.__dict__[own] = value
    return own


def _as_python(node: fx.Node) -> None:
    """Clause 3, in place."""
    overload: Any = node.target
    name = overload._schema.name.rpartition("::")[2]
    if name in METHODS:
        node.op, node.target = "call_method", METHODS[name]
    elif name in FUNCTIONS:
        node.target = FUNCTIONS[name]
        node.kwargs = {
            key: value for key, value in node.kwargs.items() if key not in ("pin_memory", "layout") or value is not None
        }
    elif name in REWRITTEN:
        REWRITTEN[name](node)


def _slice(node: fx.Node) -> None:
    """``slice(x, dim, start, end, step)`` as ``x[..., start:end:step]``."""
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    value, dim, start, end, step = given
    places: Any = dim
    if places < 0:
        places += value.meta["val"].dim() if isinstance(value, fx.Node) and "val" in value.meta else 0
    stop = None if isinstance(end, int) and end >= 2**62 else end
    first = None if start == 0 else start
    key = slice(first, stop, None if step == 1 else step)
    node.target, node.args, node.kwargs = operator.getitem, (value, (*(slice(None),) * places, key)), {}


def _layer_norm(node: fx.Node) -> None:
    node.target, node.args = F.layer_norm, node.args[:5]


def _padded(node: fx.Node) -> None:
    value: Any = node.args[2] if len(node.args) > 2 else 0.0
    node.target, node.args, node.kwargs = F.pad, (node.args[0], node.args[1], "constant", value), {}


REWRITTEN: dict[str, Callable[[fx.Node], None]] = {"slice": _slice, "layer_norm": _layer_norm, "constant_pad_nd": _padded}
