"""Tracing with concrete shapes: signatures, inputs and outputs that plain symbolic tracing has no words for."""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.capture.binding import slots
from fxprune.capture.concrete import ConcreteTracer
from fxprune.capture.inputs import given
from fxprune.capture.objects import assemble, held, importable
from fxprune.capture.tracer import trace, users_frames
from fxprune.errors import CaptureError, InputError
from tests.reference.zeroed import zeroing
from tests.unit.api.nets import image, run, seeded

EXACT = 1e-9


class Body(nn.Module):
    """conv (8) - relu - out; subclasses differ in how they are called and in what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(x)))


def checked(model: nn.Module, inputs: Any) -> Any:
    """Slim, verify, hold against the zeroed network (tests/reference), and see that something went; returns the slim module."""
    slim = fxprune.slim(model, 0.5, inputs)
    call = given(inputs)
    with zeroing(model, fxprune.plan_of(slim)), torch.no_grad():
        expected = held(model(*call.args, **call.kwargs))
    got = held(slim(*call.args, **call.kwargs))
    assert len(got) == len(expected)
    assert all((a - b).abs().max() <= EXACT * b.abs().max() for a, b in zip(got, expected, strict=True))
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    return slim


# -- the call ----------------------------------------------------------------------------------------------------------


def defaults(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that looks at what it is given and adds to it."""

    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        scale = kwargs.pop("scale", None)
        assert len(args) + len(kwargs) < 3, "looked at"
        for name in ("flag",):
            if kwargs.get(name) is None:
                kwargs[name] = True
        result = function(self, *args, **kwargs)
        return result if scale is None else result * scale

    return wrapper


class Decorated(Body):
    @defaults
    def forward(self, x: Tensor, flag: bool | None = None, **kwargs: Any) -> Tensor:
        assert not kwargs
        return self.body(x) if flag else x


def test_a_decorated_forward_keeps_its_signature() -> None:
    slim = checked(seeded(Decorated()), image())
    assert list(inspect.signature(slim.forward).parameters) == ["x", "flag"]


def test_arguments_that_go_through_keywords_are_placeholders() -> None:
    model = seeded(Decorated())
    inputs = {"x": image(), "scale": torch.full((1,), 3.0, dtype=torch.float64)}
    slim = checked(model, inputs)
    assert torch.allclose(run(slim, inputs["x"], inputs["scale"] * 2), 2 * run(slim, inputs["x"], inputs["scale"]))


class Starred(Body):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.predict(x, *args, **kwargs)

    def predict(self, x: Tensor, more: Tensor | None = None, again: int = 1) -> Tensor:
        for _ in range(again):
            x = x if more is None else x + more
        return self.body(x)


@pytest.mark.parametrize(
    "inputs",
    [image(), (image(), image(seed=3)), {"x": image(), "more": image(seed=3), "again": 2}],
    ids=["none", "args", "kwargs"],
)
def test_stars_hold_what_the_example_gives(inputs: Any) -> None:
    checked(seeded(Starred()), inputs)


class Keyword(Body):
    def forward(self, x: Tensor, shift: float = 0.5, *, y: Tensor, mode: str = "sum", table: Any = operator) -> Tensor:
        assert table is operator
        return self.body(x + shift + y if len(mode) == 3 and len(x.shape) == len(y.shape) else x)


def test_a_required_keyword_stands_before_what_has_a_default() -> None:
    model = seeded(Keyword())
    inputs = {"x": image(), "y": image(seed=2)}
    found = slots(model, given(inputs))
    assert [slot.name for slot in found] == ["x", "y", "shift", "mode", ""]
    slim = checked(model, inputs)
    assert run(slim, *inputs.values()).shape == (2, 2, 8, 8)
    more = slim(**inputs, shift=0.75)  # a number that is left to its default stays an argument
    assert not torch.allclose(more, slim(**inputs))


def test_arguments_that_a_model_does_not_take_are_named() -> None:
    with pytest.raises(InputError, match="takes no input 'z'"):
        slots(Keyword(), given({"x": image(), "y": image(), "z": 1}))
    with pytest.raises(InputError, match="more example inputs"):
        slots(Keyword(), given((image(), 1.0, image(), 2)))


class Batch(Body):
    """Takes a dict and a list, and looks at both."""

    def forward(self, batch: dict[str, Tensor], others: list[Tensor]) -> dict[str, Tensor]:
        x = sum(value for key, value in batch.items() if key.startswith("image"))
        assert isinstance(batch, dict)
        assert set(batch.keys()) == {"image_a", "image_b"}
        assert len(list(batch.values())) == 2
        for other in others:
            x = x + other
        return {"out": self.body(x)}


def test_dicts_and_lists_of_tensors_are_inputs() -> None:
    slim = checked(seeded(Batch()), ({"image_a": image(), "image_b": image(seed=3)}, [image(seed=4)]))
    assert run(slim, {"image_a": image(3, 3, 4, 4), "image_b": image(3, 3, 4, 4)}, [image(3, 3, 4, 4)])["out"].shape == (
        3,
        2,
        4,
        4,
    )  # type: ignore[arg-type]


# -- what is returned --------------------------------------------------------------------------------------------------


@dataclass
class Prediction:
    """Not known to torch's pytree."""

    logits: Tensor
    features: tuple[Tensor, ...] | None = None


class Named(OrderedDict[str, Any]):
    """A mapping of its own class."""


class Cache:
    """An object that a method fills."""

    def __init__(self, size: int) -> None:
        self.size, self.kind, self.layers = size, Prediction, [None]

    def update(self, x: Tensor) -> Tensor:
        self.layers[0] = x  # type: ignore[call-overload]
        return x


class Returning(Body):
    def __init__(self, what: str, hidden: bool = False) -> None:
        super().__init__()
        self.what, self.hidden = what, hidden

    def forward(self, x: Tensor) -> Any:
        if self.hidden and x.shape[0] == 0:  # only a proxy with a value knows
            return None
        cache = Cache(3)
        y = cache.update(self.conv(x)) if self.what == "cache" else self.conv(x)
        z = self.out(F.relu(y))
        if self.what == "dataclass":
            return Prediction(z)
        if self.what == "nested":
            return {"first": Prediction(z, (z.mean((2, 3)),)), "second": [z]}
        return Named(logits=z) if self.what == "mapping" else (z, cache)


@pytest.mark.parametrize("hidden", [False, True], ids=["symbolic", "concrete"])
@pytest.mark.parametrize(("what", "kind"), [("dataclass", Prediction), ("nested", dict), ("mapping", Named)])
def test_the_class_of_the_output_stays(what: str, kind: type, hidden: bool) -> None:
    model = seeded(Returning(what, hidden))
    assert ("concrete" in fxprune.analyze(model, image()).program.captured.how) is hidden
    slim = checked(model, image())
    got = run(slim, image())
    assert type(got) is kind
    if what == "nested":
        assert type(got["first"]) is Prediction
        assert len(held(got)) == 3


def test_what_an_object_in_an_output_holds_is_an_output() -> None:
    model = seeded(Returning("cache"))
    graph = fxprune.analyze(model, image())
    assert graph.prunable()[0] == 0  # the cache shows the only channels there are
    slim = fxprune.apply(model, fxprune.Plan({}, {}, layout="coupled"), image())
    z, cache = run(slim, image())
    own, other = run(model, image())
    assert type(cache) is Cache
    assert (cache.size, cache.kind) == (3, Prediction)
    assert torch.equal(cache.layers[0], other.layers[0])
    assert torch.equal(z, own)
    assert fxprune.verify(model, slim, image()).outputs_compared == 2


def test_held_finds_every_tensor_once_and_assemble_makes_an_object() -> None:
    x, y = torch.ones(1), torch.zeros(2)
    cache = Cache(1)
    cache.update(x)
    cache.itself = cache  # type: ignore[attr-defined]
    assert [t is x for t in held({"a": cache, "b": nn.Linear(2, 2), "c": Prediction})] == [True]
    assert [t.numel() for t in held([Prediction(x, (y,)), Named(z=y)])] == [1, 2, 2]
    assert importable(Cache)
    assert not importable(type("Gone", (), {"__module__": __name__}))
    made = assemble(__name__, "Cache", {"size": 9})
    assert type(made) is Cache
    assert vars(made) == {"size": 9}


# -- what Python asks --------------------------------------------------------------------------------------------------


class Curious(Body):
    """Asks what models ask, and makes tensors out of sizes, dtypes and devices."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or not torch.is_tensor(x):
            raise RuntimeError("unreachable")
        assert isinstance(x, Tensor)
        assert x.ndim == 4
        assert x.dtype in (torch.float32, torch.float64)
        n, _, h, w = x.shape
        rows = torch.arange(h, device=x.device)
        seen = rows[:, None] >= torch.arange(w, device=x.device)[None, :]
        mask = torch.full((n, 1, h, w), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
        y = self.conv(x)
        y = torch.pow(y, 3.0) if y.shape[-2:] == x.shape[-2:] else y  # 3.0 makes torch look for an overload with two numbers
        weight = torch.where(seen, torch.zeros((n, 1, h, w), dtype=x.dtype), mask).flatten(2).softmax(-1).view(n, 1, h, w)
        return self.out(y * weight)


def test_sizes_dtypes_and_devices_stay_symbolic() -> None:
    model = seeded(Curious())
    slim = checked(model, image())
    assert run(slim, image(5, 3, 4, 6)).shape == (5, 2, 4, 6)
    whole = fxprune.analyze(model, image()).program.captured.module().eval()
    assert torch.equal(run(whole, image(5, 3, 4, 6)), run(model, image(5, 3, 4, 6)))
    assert run(slim.float(), image(5, 3, 4, 6, dtype=torch.float32)).isfinite().all()


def test_tracing_leaves_python_and_torch_alone() -> None:
    class Broken(Body):
        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            assert builtins.isinstance is not before[0]
            return self.body(x) if x.sum() > 0 else x

    before = (builtins.isinstance, torch.arange, torch.finfo, torch.zeros)
    with pytest.raises(
        CaptureError, match="the model fails on these example inputs"
    ):  # as it does without the tracer's isinstance
        fxprune.analyze(Broken(), image())
    assert before == (builtins.isinstance, torch.arange, torch.finfo, torch.zeros)


class Positions(Body):
    """One row of positions, laid out for the batch only where there are several."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        table = torch.arange(x.shape[2], device=x.device).unsqueeze(0)
        if x.shape[0] != table.shape[0]:
            table = table.expand(x.shape[0], -1)
        rows = torch.arange(x.shape[0], device=x.device)
        return self.body(x * (1 + table[rows][:, None, :, None]))


def test_one_sample_decides_nothing_about_many() -> None:
    model = seeded(Positions())
    slim = checked(model, image(1, 3, 8, 8))
    assert run(slim, image(4, 3, 8, 8)).shape == (4, 2, 8, 8)
    found = trace(model, lambda root: ConcreteTracer(root, given(image(1, 3, 8, 8)), frozenset()), given(image(1, 3, 8, 8)))
    with pytest.raises(IndexError):  # what it would be otherwise
        run(found.module(), image(4, 3, 8, 8))


class Single(Body):
    """Computes something else for one sample."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.body(x) * (2 if x.shape[0] == 1 else 3)


def test_what_one_sample_decides_on_purpose_is_kept() -> None:
    model = seeded(Single())
    slim = checked(model, image(1, 3, 8, 8))
    whole = fxprune.analyze(model, image(1, 3, 8, 8)).program.captured.module()
    assert torch.equal(run(whole, image(1, 3, 8, 8)), run(model, image(1, 3, 8, 8)))
    assert slim is not None


class Columns(nn.Module):
    """Linear layers that view by a shape computed as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(6, 8)), nn.Parameter(torch.empty(8, 2))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        for weight, width in ((self.first, 8), (self.second, 2)):
            shape = operator.add(x.size()[:-1], (width,))
            x = torch.mm(x.view(-1, x.size(-1)), weight).view(shape).tanh()
        return x


def test_a_shape_computed_as_a_whole_keeps_its_batch() -> None:
    slim = checked(seeded(Columns()), image(2, 5, 6))
    assert run(slim, image(3, 4, 6)).shape == (3, 4, 2)


class Table(Body):
    """Adds the first rows of a table of positions, as many as there are."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key, self.table = key, nn.Parameter(torch.empty(1, 1, 20, 1) if key == "ellipsis" else torch.empty(20))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2]
        if self.key == "ellipsis":
            return self.body(x + self.table[..., :n, :])
        if self.key == "index":
            return self.body(x + self.table[torch.arange(n, device=x.device)][:, None])
        return self.body(x + (self.table[0 : 0 + n] if self.key == "plain" else self.table[None, :n])[..., None])


@pytest.mark.parametrize("key", ["plain", "tuple", "ellipsis", "index"])
def test_a_table_keeps_the_rows_that_other_sizes_take(key: str) -> None:
    model = seeded(Table(key))
    slim = checked(model, image())
    assert slim.get_parameter("table").numel() == 20
    assert run(slim, image(2, 3, 20, 8)).shape == (2, 2, 20, 8)


class Loss(Body):
    """Makes a loss and a dropout while it runs."""

    def forward(self, x: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        y = self.body(x)
        loss = None if labels is None else nn.CrossEntropyLoss()(y.flatten(2), labels)
        return {"loss": loss, "logits": y}


def test_modules_that_forward_makes_are_recorded_by_what_they_do() -> None:
    inputs = {"x": image(), "labels": torch.randint(0, 2, (2, 64), generator=torch.Generator().manual_seed(0))}
    slim = checked(seeded(Loss()), inputs)
    assert slim(**inputs)["loss"].requires_grad


class Scaled(nn.Module):
    """Attention whose scale is a tensor made out of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scale = torch.sqrt(torch.tensor(q.size(-1), dtype=torch.float64) * 3)
        return self.o((q @ (k.transpose(-1, -2) / scale)).softmax(-1) @ v)


def test_a_number_out_of_a_size_stays_when_it_becomes_a_tensor() -> None:
    model, x = seeded(Scaled()), image(2, 5, 8)
    slim = fxprune.slim(model, 0.5, x)
    kept = fxprune.plan_of(slim).kept
    dead = {name: sorted(set(range(8)) - set(kept[f"{name}.weight"][0])) for name in ("q", "k", "v")}
    assert dead["q"] == dead["k"]
    assert dead["q"]
    with torch.no_grad():
        for name, rows in dead.items():
            getattr(model, name).weight[rows] = 0
    assert (run(slim, x) - run(model, x)).abs().max() <= EXACT * run(model, x).abs().max()


@torch.fx.wrap
def shrunk(sizes: list[int], limits: list[int]) -> list[int]:
    """Changes what it is given, as code that knows its own callers does."""
    for i, size in enumerate(limits):
        sizes[i] = min(sizes[i], size)
    return sizes


class Changing(Body):
    def forward(self, x: Tensor) -> Tensor:
        h, w = shrunk([5, 9], [x.shape[2], x.shape[3]])
        return self.body(F.pad(x, (0, w, 0, h)))


def test_a_function_may_change_the_lists_it_is_given() -> None:
    slim = checked(seeded(Changing()), image())
    assert run(slim, image()).shape == (2, 2, 13, 16)


@torch.fx.wrap
def looked_up(table: Tensor, index: Tensor, size: int) -> Tensor:
    """Takes some rows of a table by numbers that no node of the program shows."""
    return table[index[:size].flatten()].view(size, -1, 2)


class Hidden(Body):
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(20, 2))
        self.register_buffer("index", torch.tensor([[6, 3], [4, 5], [7, 8]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * looked_up(self.table, self.index, 2).sum((0, 1))[:, None, None]


def test_a_table_that_a_function_indexes_keeps_its_rows() -> None:
    slim = checked(seeded(Hidden()), image())
    assert slim.get_parameter("table").shape[0] == 20


def test_an_error_with_positions_that_python_cannot_read() -> None:
    """Torch 2.6 makes such frames of a ``forward(*args)``."""

    def fails() -> None:
        raise KeyError("here")

    code = fails.__code__
    unreadable = FunctionType(code.replace(co_linetable=b""), {}, "fails")
    with pytest.raises(KeyError) as caught:
        unreadable()
    assert [frame.name for frame in users_frames(caught.value)][-1] == "fails"
    assert traceback.format_exception(caught.value)[-1] == "KeyError: 'here'\n"
