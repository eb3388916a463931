"""The second tracer: proxies that carry their concrete value.

1. Every node is evaluated on fake tensors (shapes, dtypes, devices; no numbers) while it is recorded. Arithmetic stays symbolic;
   where Python asks a proxy for a truth value, a length, an iterator, an integer or its class, the value answers.
2. Functions that the model hides from tracing (``torch.fx.wrap``) are entered if the caller names them.
3. What Python decided from shapes is decided for these shapes: other input sizes may take another branch in the original model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx._symbolic_trace as symbolic
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.capture.arguments import arguments
from fxprune.capture.clone import clone
from fxprune.capture.inputs import Inputs
from fxprune.capture.tracer import ChannelProxy, ChannelTracer


class ConcreteProxy(ChannelProxy):
    """A proxy with a value (clause 1)."""

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("value", "node"):  # computing them met a missing attribute; asking again would not end
            raise AttributeError(name)
        found = getattr(self.value, name)
        if isinstance(found, (str, bool)):  # names of device types and the like: nothing that shapes could change
            return found
        return ConcreteAttribute(self, name)

    @property
    def value(self) -> Any:
        return self.tracer.values[self.node]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if self.__dict__.get("_busy"):  # being recorded: fx asks what it is
            return type(self)
        value = self.value
        return Tensor if isinstance(value, Tensor) else type(value)

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
            object.__setattr__(self, "_busy", True)
            found = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
            object.__setattr__(self, "_node", found)
            object.__setattr__(self, "_busy", False)
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class ConcreteTracer(ChannelTracer):
    """Traces with values (clauses 1 to 3)."""

    def __init__(self, root: nn.Module, inputs: Inputs, enter: frozenset[Callable[..., Any]]) -> None:
        super().__init__()
        self.values: dict[fx.Node, Any] = {}
        self._enter = enter
        self._busy = False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._shadow = clone(root, lambda _, t: self._fake.from_tensor(t.detach()))
        for module in self._shadow.modules():
            module.__dict__["training"] = False
        self._inputs = inputs.map(self._fake.from_tensor)
        self._feed = iter(self._inputs.args)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        table = symbolic._wrapped_fns_to_patch
        entered = {key: scope for key, scope in table.items() if scope.get(key[1]) in self._enter}
        for key in entered:
            del table[key]
        try:
            return super().trace(root, concrete_args)
        finally:
            table.update(entered)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ConcreteProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        if node not in self.values:
            self.values[node] = self._evaluate(node)
        return proxy

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), fx.Proxy):
            return a.node
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._busy else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._busy or issubclass(type(attr_val), fx.Proxy):  # a buffer that forward assigned to
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return False if "training" in obj.node.meta else bool(self.values[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        proxy: Any = obj
        return ConcreteProxy.__iter__(proxy)

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._argument(node)
        if str(node.target).endswith("training") and node.op == "get_attr":
            return False
        args, kwargs = arguments(node, self._known)
        self._busy = True
        try:
            with self._fake, torch.no_grad():
                return self._run(node, args, kwargs)
        finally:
            self._busy = False

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

    def _argument(self, node: fx.Node) -> Any:
        name = str(node.target).lstrip("*")
        if name in self._inputs.kwargs:
            return self._inputs.kwargs[name]
        default = node.args[0] if node.args else {} if str(node.target).startswith("**") else None
        return next(self._feed, default)
