"""Structural clones, example inputs, and what the tracer records."""

from __future__ import annotations

import operator
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.clone import clone, same, to_meta
from fxprune.capture.inputs import Inputs, given, infer
from fxprune.capture.tracer import trace
from fxprune.errors import CaptureError, InputError
from tests.reference.compare import Snapshot
from tests.unit.api.nets import Chain, image, run, seeded

# -- clones ------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One module under two names, one weight in two layers, containers and a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.again = self.a
        self.missing = None
        self.register_buffer("nothing", None)
        self.table = {"key": 1}
        self.loose = torch.ones(3)
        self.ordered = OrderedDict(x=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.b(self.a(x)))


def test_a_clone_has_new_modules_and_keeps_what_is_shared() -> None:
    model = Tied()
    before = Snapshot(model)
    new = clone(model, same)
    assert type(new) is Tied
    assert new is not model
    assert new.a is new.again
    assert new.a is not model.a
    assert new.a.weight is new.b.weight is model.a.weight
    assert list(new.state_dict()) == list(model.state_dict())
    new.table["key"], new.ordered["x"], new.extra = 2, 2, nn.ReLU()
    new.a.in_features = 9
    del new._modules["b"]
    assert (model.table, model.ordered, model.a.in_features) == ({"key": 1}, OrderedDict(x=1), 4)
    assert not hasattr(model, "extra")
    assert not before.differences(model)


def test_every_tensor_is_mapped_once_and_by_its_first_name() -> None:
    seen: list[str] = []

    def note(name: str, old: Tensor) -> Tensor:
        seen.append(name)
        return old.clone()

    new = clone(Tied(), note)
    assert sorted(seen) == ["a.bias", "a.weight", "b.bias", "loose"]
    assert new.a.weight is new.b.weight


def test_a_clone_on_meta_costs_nothing_and_keeps_shapes() -> None:
    new = clone(seeded(Chain()), to_meta)
    assert {t.device.type for t in [*new.parameters(), *new.buffers()]} == {"meta"}
    assert {n: tuple(t.shape) for n, t in new.state_dict().items()} == {
        n: tuple(t.shape) for n, t in Chain().state_dict().items()
    }


def test_a_module_that_holds_itself_is_cloned() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].__dict__["parent"] = model
    assert clone(model, same)[0].parent is model


# -- example inputs ----------------------------------------------------------------------------------------------------


def test_given() -> None:
    x = image()
    assert given(x) == Inputs((x,), {})
    assert given((x, 2)).args == (x, 2)
    assert given([x]).args == (x,)
    assert given({"x": x}).kwargs == {"x": x}
    assert given(given(x)) == Inputs((x,), {})
    for bad in ("x", b"x", 3, None):
        with pytest.raises(InputError, match=f"got {type(bad).__name__}"):
            given(bad)


def test_inputs_on_meta_keep_shapes_dtypes_and_everything_else() -> None:
    found = Inputs((image(), [torch.arange(3), 2]), {"flag": True, "deep": {"x": image(1, 2)}}).on_meta()
    assert found.args[0].device.type == "meta"
    assert found.args[1][0].dtype == torch.int64
    assert found.args[1][1] == 2
    assert found.kwargs["flag"] is True
    assert found.kwargs["deep"]["x"].shape == (1, 2)


class Sized(nn.Module):
    """Works for one image size only."""

    def __init__(self, side: int, **attributes: Any) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * (side - 2) ** 2, 5)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    "model",
    [
        Sized(224), Sized(32), Sized(28), Sized(17, input_size=(3, 17, 17)), Sized(19, default_cfg={"input_size": (3, 19, 19)}),
        nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2)), nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 3)),
        nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 2)),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_slim_alone_infers_example_inputs(model: nn.Module) -> None:
    slim = fxprune.slim(model, 0.4, verify=False)
    assert not fxprune.plan_of(slim).empty


def test_inference_is_on_meta_and_tells_what_was_tried() -> None:
    tried: list[Any] = []

    def never(candidate: Inputs) -> Exception:
        tried.append(candidate)
        return ValueError("too small\nmore")

    with pytest.raises(InputError, match=r"2x3x224x224.*too small.*Pass example_inputs=") as caught:
        infer(Sized(20), never)
    assert len(caught.value.got) == len(tried) > 3
    assert "more" not in str(caught.value)


def test_inferred_inputs_have_the_models_dtype_and_are_the_same_every_time() -> None:
    one, two = (infer(seeded(Sized(32)), lambda _candidate: None) for _ in range(2))
    assert one.args[0].dtype == torch.float64
    assert torch.equal(one.args[0], two.args[0])
    assert one.inferred


# -- the tracer --------------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Item and augmented assignment, also through a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = x
        y += 1.0
        y *= 0.5
        x[:, :, 0] = 2.0
        z = x[:, :, 1:3]
        z -= 3.0
        return self.head(x)


def test_assignments_are_recorded_as_what_they_are() -> None:
    model = seeded(Writes())
    traced = trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert {operator.setitem, operator.iadd, operator.imul, operator.isub} <= set(targets)
    assert torch.equal(run(traced.module(), image()), run(model, image()))


def test_the_trace_leaves_the_model_alone() -> None:
    model = seeded(Chain()).train()
    before = Snapshot(model)
    traced = trace(model)
    assert not before.differences(model)
    assert type(model) is Chain
    assert model.training is True
    assert traced.root is not model
    assert traced.root.conv1.weight is model.conv1.weight
    assert traced.name == "Chain"
    assert "symbolic" in traced.how


class Branches(nn.Module):
    """Python branches on the training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            x = x * 2.0
        return self.head(F.dropout(x, 0.5, self.training))


def test_where_python_branches_on_training_the_evaluation_branch_is_taken() -> None:
    model = seeded(Branches())
    traced = trace(model.train()).module()
    assert torch.equal(run(traced.eval(), image()), run(model.eval(), image()))
    assert "training" in traced.code


def test_an_unused_training_flag_leaves_no_node() -> None:
    class Looks(Chain):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x + 0.0
            return super().forward(x)

    assert not [node for node in trace(seeded(Looks())).graph.nodes if "training" in str(node.target)]


def test_leaf_modules_keep_their_names() -> None:
    traced = trace(seeded(nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 1), head=nn.Sequential(nn.Conv2d(4, 2, 1))))))
    assert [str(n.target) for n in traced.graph.nodes if n.op == "call_module"] == ["stem", "head.0"]


def test_a_graph_module_is_taken_as_it_is() -> None:
    model = fx.symbolic_trace(seeded(Chain()))
    traced = trace(model)
    assert [n.name for n in traced.graph.nodes] == [n.name for n in model.graph.nodes]
    assert traced.graph is not model.graph


def test_the_line_that_cannot_be_traced_is_named() -> None:
    class Depends(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.mean() > 0 else x

    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+, \"return super\(\)\.forward\(x\) if x\.mean\(\) > 0 else x\""):
        trace(Depends())


@pytest.mark.parametrize("count", [1, 2, 5, 300])
def test_unpacking_takes_as_many_items_as_there_are_names(count: int) -> None:
    names = ", ".join(f"a{i}" for i in range(count))
    source = f"def forward(self, x):\n    {names}, = x.unbind(1)\n    return a0 + a{count - 1}\n"
    space: dict[str, Any] = {}
    exec(source, space)  # noqa: S102 - made here
    model = type("Unpacking", (nn.Module,), {"forward": space["forward"]})()
    x = torch.randn(2, count)
    captured = trace(model)
    assert torch.equal(captured.module()(x), model(x))
    assert {node.args[1] for node in captured.graph.nodes if node.target is operator.getitem} == {0, count - 1}


def test_a_proxy_in_a_loop_is_refused() -> None:
    class Looping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sum(x)  # type: ignore[return-value]

    with pytest.raises(fxprune.CaptureError):
        trace(Looping())


class Tagger(nn.Module):
    """Tokens in, three numbers per sentence out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers, self.head = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x))[0][:, -1])


def test_tokens_are_inferred_where_an_embedding_comes_first() -> None:
    model = seeded(Tagger())
    slim = fxprune.slim(model, 0.5)
    assert slim.layers.hidden_size < 24
    assert fxprune.summary(slim).parameters < fxprune.summary(model).parameters


def test_images_are_inferred_where_an_embedding_is_only_declared_first() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes, self.conv, self.last = nn.Embedding(5, 8), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
            x = self.conv(x).relu()
            return self.last(x if label is None else x + self.classes(label)[:, :, None, None])

    assert fxprune.slim(seeded(Conditional()), 0.5, score="random").conv.out_channels < 8


def test_a_graph_introduces_itself_in_one_line() -> None:
    graph = fxprune.analyze(seeded(Tagger()))
    assert str(graph) == repr(graph) == "<ChannelGraph of Tagger: 2 groups, 208 of 261 channels can go; explain(name) tells why>"


def test_inputs_on_another_device_than_the_model_are_told_so() -> None:
    with pytest.raises(InputError, match=r"The model is on cpu, the example inputs are on meta: give them as x.to\('cpu'\)"):
        fxprune.slim(seeded(Sized(32)), 0.5, torch.empty(1, 3, 32, 32, device="meta"))
