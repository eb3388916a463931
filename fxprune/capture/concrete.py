"""The second tracer: proxies that carry their concrete value.

1. Every node is evaluated on fake tensors (shapes, dtypes, devices; no numbers) while it is recorded. Arithmetic stays symbolic;
   where Python asks a proxy for a truth value, a length, an iterator, an integer or whether it is an instance, the value answers.
2. Functions that the model hides from tracing (``torch.fx.wrap``) are entered if the caller names them.
3. What Python decided from shapes is decided for these shapes: other input sizes may take another branch in the original model.
4. The call is the one that the example inputs make (binding.py): decorators, ``*args`` and ``**kwargs`` are Python's own business.
5. Functions of torch that make tensors out of sizes, dtypes and devices do not ask proxies first; while tracing, they do.
6. An object that the model returns and that no call of its class makes (a cache that a method filled) is assembled (objects.py).
"""

from __future__ import annotations

import builtins
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.fx._symbolic_trace as symbolic
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.capture import remembered
from fxprune.capture.arguments import arguments
from fxprune.capture.binding import EMPTY, call, slots
from fxprune.capture.clone import clone
from fxprune.capture.inputs import Inputs
from fxprune.capture.objects import assemble, importable
from fxprune.capture.remembered import UNKNOWN
from fxprune.capture.tracer import ChannelProxy, ChannelTracer

FACTORIES = (
    *("arange", "zeros", "ones", "full", "empty", "eye", "linspace", "tensor", "as_tensor", "rand", "randn", "randint"),
    *("randperm", "scalar_tensor", "logspace", "broadcast_shapes", "is_floating_point", "is_complex", "finfo", "iinfo"),
)
PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    slice,
    torch.Tensor,
    torch.dtype,
    torch.device,
    torch.Size,
    nn.Module,
    type(None),
    type(...),
)
IS_INSTANCE = isinstance


def _is_instance(x: Any, kind: Any) -> bool:
    """``isinstance`` that asks the value of a proxy too. A proxy that lied about its class would crash torch's C++ argument parser."""
    if IS_INSTANCE(x, kind):
        return True
    return issubclass(type(x), ConcreteProxy) and IS_INSTANCE(x.value, kind)


class ConcreteProxy(ChannelProxy):
    """A proxy with a value (clause 1)."""

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("value", "node"):  # computing them met a missing attribute; asking again would not end
            raise AttributeError(name)
        value = self.value
        if isinstance(value, Mapping) and name in ("items", "values"):
            proxy: Any = self
            return lambda: [(key, proxy[key]) if name == "items" else proxy[key] for key in value]
        found = getattr(value, name)
        if isinstance(found, (str, bool)):  # names of device types and the like: nothing that shapes could change
            return found
        return ConcreteAttribute(self, name)

    @property
    def value(self) -> Any:
        return self.tracer.values[self.node]

    def __bool__(self) -> bool:
        return bool(self.tracer.to_bool(self))

    def __len__(self) -> int:
        return len(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __contains__(self, item: Any) -> bool:
        return item in self.value

    def __iter__(self) -> Iterator[Any]:
        value = self.value
        if isinstance(value, dict):
            return iter(value)
        proxy: Any = self
        return iter([proxy[i] for i in range(len(value))])

    def __eq__(self, other: object) -> Any:
        return self.tracer.create_proxy("call_function", operator.eq, (self, other), {})

    def __hash__(self) -> int:
        return id(self)

    def keys(self) -> Any:
        return self.value.keys()


class ConcreteAttribute(ConcreteProxy):
    """``x.name``: a node of its own only if it is used as a value, a method call otherwise."""

    def __init__(self, root: ConcreteProxy, name: str) -> None:
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "attr", name)
        object.__setattr__(self, "tracer", root.tracer)
        object.__setattr__(self, "_node", None)

    @property
    def node(self) -> Any:  # type: ignore[override]
        if self._node is None:
            found = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
            object.__setattr__(self, "_node", found)
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class ConcreteTracer(ChannelTracer):
    """Traces with values (clauses 1 to 6).

    Attributes:
        of_one: a branch was decided because some size is 1, as that of a batch of one sample is by chance.
    """

    binds = True

    def __init__(self, root: nn.Module, inputs: Inputs, enter: frozenset[Callable[..., Any]]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Any] = {}
        self._enter = enter
        self._busy = False
        self.of_one = False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._remembered: dict[Any, Any] = {}
        self._shadow = clone(root, lambda _, t: self._faked(t))
        for module in self._shadow.modules():
            module.__dict__["training"] = False
        self._inputs = inputs.map(self._fake.from_tensor)

    def _faked(self, tensor: torch.Tensor) -> Any:
        """A fake tensor like this one; one for all that are alike (remembered.py)."""
        key = ("held", remembered.kind(tensor))
        if key not in self._remembered or type(tensor) not in (torch.Tensor, nn.Parameter):
            self._remembered[key] = self._fake.from_tensor(tensor.detach())
        return self._remembered[key]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Clause 4: the inputs say what fx would read out of the function."""
        del root_fn, is_module, concrete_args
        found = slots(self.root, self._inputs)
        placed: dict[str, Any] = {}
        for slot in found:
            if slot.name:
                proxy = self.create_proxy("placeholder", slot.name, () if slot.default is EMPTY else (slot.default,), {})
                self.values[proxy.node] = slot.value
                placed[slot.name] = proxy

        def forward(root: nn.Module) -> Any:
            return self._returned(call(root.forward, found, placed))

        return forward, [self.root]

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        table = symbolic._wrapped_fns_to_patch
        entered = {key: scope for key, scope in table.items() if scope.get(key[1]) in self._enter}
        for key in entered:
            del table[key]
        try:
            with self._asking():
                return super().trace(root, concrete_args)
        finally:
            table.update(entered)
            for held in (
                self.values,
                self._remembered,
                self._shadow._modules,
            ):  # in cycles, which the garbage collector would have to find
                held.clear()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Clause 5."""
        own = {name: getattr(torch, name) for name in FACTORIES}
        try:
            for name, function in own.items():
                setattr(torch, name, self._asked(function))
            builtins.isinstance = _is_instance
            yield
        finally:
            builtins.isinstance = IS_INSTANCE
            for name, function in own.items():
                setattr(torch, name, function)

    def _asked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            found = torch.utils._pytree.tree_leaves((args, kwargs))
            if any(issubclass(type(leaf), fx.Proxy) for leaf in found):
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return wrapper

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ConcreteProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        asking, builtins.isinstance = builtins.isinstance, IS_INSTANCE  # nobody in here has to be told what a proxy stands for
        try:
            proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
            node = proxy.node
            if node not in self.values:
                self.values[node] = self._evaluate(node)
        finally:
            builtins.isinstance = asking
        return proxy

    def _returned(self, a: Any) -> Any:
        """Clause 6, for all that is in an output."""
        kind = type(a)
        if issubclass(kind, (fx.Proxy, *PLAIN)):
            return a
        if kind in (tuple, list):
            return kind(self._returned(item) for item in a)
        if kind is dict:
            return {key: self._returned(item) for key, item in a.items()}
        if issubclass(kind, (tuple, list)):
            return a
        if is_dataclass(kind) or issubclass(kind, Mapping):
            return self.record_object(a, self._returned)
        if not importable(kind) or not hasattr(a, "__dict__"):
            return self._constant(a)
        attributes = {key: self._returned(item) for key, item in vars(a).items()}
        return self.create_proxy("call_function", assemble, (kind.__module__, kind.__qualname__, attributes), {})

    def _constant(self, a: Any) -> Any:
        """Something that is no part of the computation (a class, a function), read from an attribute of the module."""
        name = self.get_fresh_qualname("_returned_object")
        self.root.__dict__[name] = a
        return self.create_proxy("get_attr", name, (), {})

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._busy else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._busy or issubclass(type(attr_val), fx.Proxy):  # a buffer that forward assigned to
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Clause 3; notes where a size of 1 decided."""
        if obj.node.target in (operator.eq, operator.ne):
            sides = fx.node.map_arg(tuple(obj.node.args), self._known)
            self.of_one = self.of_one or all(type(side) is int and side == 1 for side in sides)
        return False if "training" in obj.node.meta else bool(self.values[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        proxy: Any = obj
        return ConcreteProxy.__iter__(proxy)

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return None  # the caller knows
        if str(node.target).endswith("training") and node.op == "get_attr":
            return False
        args, kwargs = arguments(node, self._known)
        asking, self._busy = builtins.isinstance, True
        builtins.isinstance = IS_INSTANCE  # no proxies in here, and torch asks a lot
        try:
            module = self._shadow.get_submodule(str(node.target)) if node.op == "call_module" else None
            key = remembered.signature(node, module, args, kwargs)
            if key is not UNKNOWN and key in self._remembered:
                return self._remembered[key]
            with self._fake, torch.no_grad():
                if node.op == "call_method" and node.target in remembered.RESHAPING:
                    self._own(node, args[0])
                    args, kwargs = arguments(node, self._known)
                result = self._run(node, args, kwargs)
        finally:
            self._busy = False
            builtins.isinstance = asking
        if key is not UNKNOWN and remembered.described(result) is not UNKNOWN:
            self._remembered[key] = result
        return result

    def _own(self, node: fx.Node, value: Any) -> None:
        """Give the operand of a method that changes its shape a tensor of its own (remembered.py, clause 3)."""
        if any(value is other for other in self._remembered.values()):
            self.values[node.all_input_nodes[0]] = value.view_as(value)

    def _known(self, node: fx.Node) -> Any:
        if node not in self.values:
            self.values[node] = self._evaluate(node)
        return self.values[node]

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return self._shadow.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        found: Any = self._shadow
        for part in str(node.target).split("."):
            found = self.root.__dict__.get(part) if found is self._shadow and not hasattr(found, part) else getattr(found, part)
        return found
