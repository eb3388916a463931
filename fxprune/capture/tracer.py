"""Symbolic tracing with leaf nn modules.

1. The trace runs over a structural clone; the user's model is only read.
2. Item assignment and augmented assignment are recorded as what they are (plain fx refuses the first and turns the second into
   an out-of-place operation, which is wrong where the tensor has a second name).
3. ``self.training`` is recorded as a read of that flag, so functional dropout follows ``train()`` and ``eval()`` of the result;
   where Python itself branches on it, the branch of evaluation mode is taken.
4. Buffers are read by name, like parameters. Attention is legalized first (attention.py). Assertions about shapes are dropped: they
   were true for the original's sizes.
5. An argument that the call leaves to its default is that default while tracing (``if mask is not None`` takes the branch it would take);
   it stays in the signature.
6. A dataclass or a mapping of a class of its own is recorded as a call of its class, so the program returns the same class.
"""

from __future__ import annotations

import dis
import inspect
import math
import operator
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict

from fxprune.capture.assigned import stores, take_back
from fxprune.capture.attention import legalize
from fxprune.capture.clone import clone, named_tensors, same, walk
from fxprune.capture.inputs import Inputs
from fxprune.errors import CaptureError, InputError

AUGMENTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")


DECIDING = frozenset(
    {
        getattr,
        math.sqrt,
        operator.getitem,
        *(
            getattr(operator, name)
            for name in "add sub mul truediv floordiv mod pow eq ne lt le gt ge and_ or_ not_ neg matmul".split()
        ),
    }
)
UNPACK = dis.opmap["UNPACK_SEQUENCE"]
CONSTANTS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, type(...)})
PURE_METHODS = frozenset({"size", "dim", "softmax", "mean", "transpose", "numel"})


@dataclass(frozen=True)
class Captured:
    """A graph and the modules it calls (a structural clone that shares the model's tensors)."""

    root: nn.Module
    graph: fx.Graph
    name: str
    how: str
    notes: tuple[str, ...] = ()
    entered: frozenset[Callable[..., Any]] = frozenset()

    @cached_property
    def modules(self) -> list[tuple[str, nn.Module]]:
        """Every distinct module by its first name."""
        return walk(self.root)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every distinct parameter and buffer by its first name."""
        return named_tensors(self.modules)

    def module(self) -> fx.GraphModule:
        """The captured program as a module that shares the model's tensors."""
        return fx.GraphModule(self.root, self.graph, self.name)


class ChannelProxy(fx.Proxy):
    """A proxy that records assignments (clause 2)."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __iter__(self) -> Iterator[Any]:
        """The same as fx's, which disassembles the calling function each time: an assignment to n names takes n items."""
        frame = sys._getframe(1)
        code, at = frame.f_code.co_code, frame.f_lasti
        if code[at] != UNPACK:
            return self.tracer.iter(self)
        proxy: Any = self
        more = code[at - 1] << 8 if at and code[at - 2] == dis.EXTENDED_ARG else 0
        return iter([proxy[i] for i in range(code[at + 1] + more)])


def _augmented(name: str) -> Any:
    target = getattr(operator, "i" + name)

    def assign(self: ChannelProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return assign


for _name in AUGMENTED:
    setattr(ChannelProxy, f"__i{_name}__", _augmented(_name))


OPAQUE_LAYERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


class ChannelTracer(fx.Tracer):
    """``fx.Tracer`` with clauses 2 to 4."""

    proxy_buffer_attributes = True
    binds = False  # True where a tracer makes the placeholders itself

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, OPAQUE_LAYERS)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ChannelProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if "training" in obj.node.meta:
            return False
        return bool(super().to_bool(obj))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module that ``forward`` makes (a loss) belongs to no path: what it does is recorded in its place."""
        if self.submodule_paths is not None and m not in self.submodule_paths:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The same as fx's, which looks through all names for every read."""
        if issubclass(type(attr_val), Tensor):
            if not hasattr(self, "_names"):
                self._names = {id(t): (name, t) for name, t in named_tensors(walk(self.root)).items()}
            name, known = self._names.get(id(attr_val), ("", None))
            if known is attr_val:
                if name not in parameter_proxy_cache:
                    parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                return parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Clause 6; plain arguments are not asked whether they are something special."""
        kind = type(a)
        if issubclass(kind, fx.Proxy):
            return a.node
        if kind in CONSTANTS:
            return a
        if kind is tuple or kind is list:
            return kind([self.create_arg(item) for item in a])
        if is_dataclass(kind) or (issubclass(kind, Mapping) and kind not in (dict, OrderedDict, immutable_dict)):
            return self.record_object(a).node
        return super().create_arg(a)

    def record_object(self, a: Any, change: Callable[[Any], Any] = lambda item: item) -> fx.Proxy:
        """Clause 6."""
        if is_dataclass(type(a)):
            named = {field.name: change(getattr(a, field.name)) for field in fields(a) if field.init}
            return self.create_proxy("call_function", type(a), (), named)
        return self.create_proxy("call_function", type(a), ({key: change(item) for key, item in a.items()},), {})

    def training_flag(self, path: str) -> fx.Proxy:
        proxy = self.create_proxy("get_attr", f"{path}.training" if path else "training", (), {})
        proxy.node.meta["training"] = True
        return proxy


def absent_arguments(model: nn.Module, inputs: Inputs | None) -> dict[str, Any]:
    """The defaults of the arguments that a call does not give (clause 5); without inputs, of all that have one."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = set() if inputs is None else {p.name for p in plain[: len(inputs.args)]} | set(inputs.kwargs)
    constant = (type(None), bool, str)  # what decides branches; numbers stay arguments
    return {p.name: p.default for p in plain if isinstance(p.default, constant) and p.name not in given}


def _restore_names(graph: fx.Graph, absent: dict[str, Any]) -> None:
    """Fx numbers the placeholders of absent arguments and asserts their values; both would change the signature."""
    for node in list(graph.nodes):
        if node.op == "placeholder":
            name, _, number = str(node.target).rpartition("_")
            if number.isdigit() and name in absent and str(node.target) not in absent:
                node.target = name
                node.args = (absent[name],)
                for user in list(node.users):
                    graph.erase_node(user) if not user.users else _erase_chain(graph, user)


def _erase_chain(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_chain(graph, user)
    graph.erase_node(node)


def trace(model: nn.Module, make: Callable[[nn.Module], ChannelTracer] | None = None, inputs: Inputs | None = None) -> Captured:
    """Capture a model by symbolic tracing, or with the tracer that ``make`` makes for a structural clone of it.

    Raises:
        CaptureError: the model's control flow depends on numbers or shapes, or it is a ScriptModule.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: TorchScript hides its Python code. Hand over the nn.Module it was made from.",
            got=type(model).__name__,
        )
    root = clone(model, same)
    if isinstance(model, fx.GraphModule):
        graph = fx.Graph()
        graph.set_codegen(model.graph._codegen)
        output = graph.graph_copy(model.graph, {}, return_output_node=True)
        if output is not None:
            value: Any = output
            graph.output(value[0], getattr(value[1], "type", None))
        return Captured(root, _renamed(graph, model.graph), type(model).__name__, "fx graph of the given GraphModule")
    legalize(root)
    modules = walk(root)
    before = stores(modules)
    tracer = ChannelTracer() if make is None else make(root)
    classes = _flagged(modules, tracer)
    try:
        absent = absent_arguments(model, inputs)
        graph = tracer.trace(root, absent or None)
        if not tracer.binds:
            _restore_names(graph, absent)
    except (CaptureError, InputError):
        raise
    except Exception as error:
        raise _explained(error, model) from error
    finally:
        for module, original in classes:
            module.__class__ = original
            del module.__dict__["_fxprune_traced"]
        take_back(before)
    _tidy(graph)
    how = "torch.fx symbolic tracing" if make is None else "torch.fx tracing with concrete shapes"
    fixed = [node.target for node in graph.nodes if node.op == "placeholder" and node.target in absent]
    notes = (f"arguments fixed at their defaults: {', '.join(map(str, fixed))}",) if fixed else ()
    return Captured(root, graph, type(model).__name__, how, notes)


def _tidy(graph: fx.Graph) -> None:
    """Drop assertions and what nobody reads: flags, shapes that decided a branch, attention weights (clause 4)."""
    for node in reversed(graph.nodes):
        pure = node.op == "get_attr" or (node.op == "call_function" and node.target in DECIDING)
        if (
            node.target is torch._assert
            or (pure and not node.users)
            or (node.op == "call_method" and node.target in PURE_METHODS and not node.users)
        ):
            graph.erase_node(node)


def _renamed(graph: fx.Graph, source: fx.Graph) -> fx.Graph:
    for new, old in zip(graph.nodes, source.nodes, strict=True):
        new.name = old.name
        new.meta = dict(old.meta)
    return graph


def _read_flag(module: nn.Module) -> fx.Proxy:
    tracer, path = module.__dict__["_fxprune_traced"]
    flag: fx.Proxy = tracer.training_flag(path)
    return flag


_FLAGGED: dict[type[nn.Module], type[nn.Module]] = {}


def _flagged_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose ``training`` is a recorded read; made once for every class."""
    found = _FLAGGED.get(original)
    if found is None:
        found = type(original.__name__, (original,), {"training": property(_read_flag), "__module__": original.__module__})
        _FLAGGED[original] = found
    return found


def _flagged(modules: list[tuple[str, nn.Module]], tracer: ChannelTracer) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Make ``training`` of every module that is traced into a recorded read (clause 3); returns what to undo."""
    changed = []
    for path, module in modules:
        if path and tracer.is_leaf_module(module, path):
            continue
        original = type(module)
        try:
            module.__class__ = _flagged_class(original)
        except TypeError:
            continue
        module.__dict__["_fxprune_traced"] = (tracer, path)
        changed.append((module, original))
    return changed


def users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an error passed through the user's own code, outermost first.

    torch.fx of older versions gives a ``forward(*args)`` other variables without telling its table of positions, which Python then cannot
    read: an error with such a frame loses its traceback here, since nobody could print it.
    """
    walked = [
        traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    try:
        traceback.extract_tb(error.__traceback__)
    except RuntimeError:
        error.__traceback__ = None
    return [f for f in walked if "/torch/" not in f.filename and "/fxprune/" not in f.filename]


def _explained(error: Exception, model: nn.Module) -> CaptureError:
    frames = users_frames(error)
    place = f' at {frames[-1].filename}:{frames[-1].lineno}, "{frames[-1].line}"' if frames else ""
    return CaptureError(
        f"{type(model).__name__} cannot be traced{place}: {error}. Its control flow depends on values that exist only at run time. "
        "Make the branch depend on a constructor argument, or wrap that function with torch.fx.wrap.",
        node=frames[-1].name if frames else "",
        got=type(error).__name__,
    )
