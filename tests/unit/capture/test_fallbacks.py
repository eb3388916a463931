"""Models that tracing refuses: captured by ``torch.export``, or slimmed as eager modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune import sparse
from fxprune.capture.eager import HOW as EAGER
from fxprune.capture.export import HOW as EXPORT
from fxprune.errors import VerificationError

LIMIT = 1e-9


def randomised(model: nn.Module) -> nn.Module:
    """The same weights in every run, norms with random scales, shifts and statistics; in evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Trunk(nn.Module):
    """Convolutions around which the models of this file do something that defeats tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.c(F.relu_(self.b(F.relu(self.bn(self.a(x))))))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean((2, 3)))


class Matching(Trunk):
    """A pattern match on a shape, which no proxy answers; sizes that repeat a width."""

    def forward(self, x: Tensor) -> Tensor:
        match x.shape:
            case (n, _, _, _):
                y = self.features(x)
            case _:
                raise ValueError
        left, right = y[:, :2], y[:, 2:]
        return self.fc(torch.cat([right, left], 1).mean((2, 3)).view(n, 3, 2).transpose(1, 2).reshape(n, 6))


class Exact(Trunk):
    """A test of the exact class."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise TypeError
        return super().forward(F.dropout(x, 0.5, self.training))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Matching, Exact])
def test_export_takes_what_proxies_do_not(make: Callable[[], nn.Module]) -> None:
    model = randomised(make())
    slim = fxprune.slim(model, 0.5, image(2, 3, 6, 6))
    assert isinstance(slim, fx.GraphModule)
    assert fxprune.analyze(model, image(2, 3, 6, 6)).program.captured.how == EXPORT
    assert set(slim.state_dict()) == set(model.state_dict())
    assert any("after train()" in note for note in fxprune.plan_of(slim).notes)
    evidence = fxprune.verify(model, slim, image(5, 3, 6, 6))
    assert evidence.max_relative_error <= LIMIT
    assert slim(image(7, 3, 6, 6)).shape == (7, 4)
    assert slim.get_parameter("a.weight").shape[0] < 8


class Branching(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


class Looping(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        while int(x[0, 0].argmax()) > 3:
            x = x[:, :, 1:]
        return super().forward(x)


class Reading(Trunk):
    """A number read out of an activation of which channels go."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.fc((y * y.mean().item()).mean((2, 3)))


class Picking(Trunk):
    """Masks, positions and writes at positions, as detectors make them."""

    def forward(self, x: Tensor) -> Any:
        y = self.features(x).flatten(2).transpose(1, 2).flatten(0, 1)
        score = self.fc(y)
        rows = torch.where(score[:, 0] > score[:, 0].mean())[0]
        written = torch.zeros(len(rows), y.shape[1])
        written[torch.arange(len(rows))] = y[rows]
        return {"rows": rows, "scores": self.fc(written), "best": score[score[:, 1] > 0].sum(1).topk(2).values}


class Shared(Branching):
    """A module called twice."""

    def features(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.b(F.relu(self.bn(self.a(x))))))


class Literal(Branching):
    """A width written in Python code."""

    def features(self, x: Tensor) -> Tensor:
        y = self.bn(self.a(x))
        return self.c(self.b(y.view(y.shape[0], 4, 2, *y.shape[2:]).flip(1).reshape(y.shape[0], 8, *y.shape[2:])))


class Scaled(Branching):
    """A number computed from a width in Python code."""

    def features(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.c(y * y.shape[1] ** -0.5)


class Held(Branching):
    """The same as literal data."""

    def features(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.c(y / torch.tensor(float(y.size(1))).sqrt())


class Attention(Branching):
    """Attention by hand; ``how`` chooses where its scale comes from."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(6, 24), nn.Linear(8, 6)

    def features(self, x: Tensor) -> Tensor:
        y = super().features(x)
        t = y.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(t.shape[0], t.shape[1], 3, 2, -1).permute(2, 0, 3, 1, 4)
        if self.how == "default":
            found = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = 0.5 if self.how == "constant" else q.shape[-1] ** -0.5
            found = torch.softmax(q @ k.transpose(-1, -2) * scale, -1) @ v
        return self.out(found.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(y.shape)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "branch": (Branching, ("a", "b", "c")),
    "loop": (Looping, ("a", "b", "c")),
    "number": (Reading, ("a", "b", "c")),
    "positions": (Picking, ("a", "b", "c")),
    "shared": (Shared, ("a", "b", "c")),
    "literal": (Literal, ("b", "c")),
    "scale": (Scaled, ("a", "c")),
    "literal data": (Held, ("a", "c")),
    "attention": (lambda: Attention("constant"), ("a", "qkv")),
    "attention, scale from a shape": (lambda: Attention("shape"), ("a", "b")),
    "attention, default scale": (lambda: Attention("default"), ("a", "b")),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_eager_module_is_slimmed_to_its_own_class(name: str) -> None:
    make, thinner = MODELS[name]
    model = randomised(make())
    before = copy.deepcopy(model.state_dict())
    slim: Any = fxprune.slim(model, 0.5, image(2, 3, 6, 6))
    assert type(slim) is type(model)
    for layer in thinner:
        assert slim.get_submodule(layer).weight.shape[0] < model.get_submodule(layer).weight.shape[0], layer
    plan = fxprune.plan_of(slim)
    assert any("eager module" in note for note in plan.notes)
    evidence = fxprune.verify(model, slim, image(3, 3, 6, 6))
    assert evidence.max_relative_error <= LIMIT
    assert evidence.nodes_compared > 5
    assert list(slim.state_dict()) == list(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["literal", "scale", "literal data", "attention, default scale"])
def test_what_python_code_holds_is_pinned_with_its_place(name: str) -> None:
    model = randomised(MODELS[name][0]())
    graph = fxprune.analyze(model, image(2, 3, 6, 6))
    free = graph.prunable()[0]
    slim = fxprune.slim(model, 0.5, image(2, 3, 6, 6))
    notes = [note for note in fxprune.plan_of(slim).notes if "cannot be made smaller" in note]
    assert notes
    assert all("test_fallbacks.py:" in note for note in notes), notes
    assert free > 0


def test_a_plan_of_an_eager_module_is_applied_and_composed() -> None:
    model = randomised(Picking())
    x = image(2, 3, 6, 6)
    slim: Any = fxprune.slim(model, 0.4, x)
    plan = fxprune.Plan.from_json(fxprune.plan_of(slim).to_json())
    fresh: Any = fxprune.apply(randomised(Picking()), plan, x)
    fresh.load_state_dict(slim.state_dict())
    assert torch.equal(fresh(x)["scores"], slim(x)["scores"])
    for copied in (copy.deepcopy(slim), pickle.loads(pickle.dumps(slim))):  # noqa: S301 - its own dump
        assert fxprune.plan_of(copied) == fxprune.plan_of(slim)
    again: Any = fxprune.slim(slim, 0.3, x)
    assert type(again) is Picking
    assert fxprune.verify(model, again, x).max_relative_error <= LIMIT
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in slim.parameters())


class Unread(nn.Module):
    """Hidden channels that no weight reads: their products are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.a(x) * self.b(x)).sum(1)
        return y + 1 if float(y.sum()) > 0 else y


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("merge_duplicates", [True, False])
@pytest.mark.parametrize(("make", "shape"), [(Branching, (2, 3, 6, 6)), (Unread, (3, 4))])
def test_what_is_dead_in_an_eager_module_is_not_known(
    make: type[nn.Module], shape: tuple[int, ...], merge_duplicates: bool, verify: bool
) -> None:
    model = randomised(make())
    with pytest.raises(fxprune.CaptureError, match=rf"{make.__name__} runs as an eager module only: .* Nothing was looked at"):
        fxprune.eliminate_dead_channels(model, image(*shape), merge_duplicates=merge_duplicates, verify=verify)


@pytest.mark.parametrize(("make", "shape"), [(Branching, (2, 3, 6, 6)), (Unread, (3, 4))])
def test_neurons_of_an_eager_module_are_not_known(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = randomised(make())
    sparse.set_masks(model, sparse.by_density(model, 0.1, scope="global"))
    with pytest.raises(fxprune.CaptureError, match=rf"{make.__name__} runs as an eager module only: .* Nothing was looked at"):
        sparse.remove_neurons(model, image(*shape))


def test_a_slim_eager_module_trains() -> None:
    slim: Any = fxprune.slim(randomised(Branching()), 0.5, image(2, 3, 6, 6)).train()
    slim(image(4, 3, 5, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in slim.parameters())
    assert slim.bn.training


@pytest.mark.parametrize(("change", "where"), [("weight", "b.conv2d"), ("order", "fc.linear"), ("threshold", "gt")])
def test_a_damaged_slim_module_is_found_at_its_first_call(change: str, where: str) -> None:
    model = randomised(Thresholded())
    slim: Any = fxprune.slim(model, 0.5, image(2, 3, 6, 6))
    with torch.no_grad():
        if change == "weight":
            slim.b.weight[0] *= 1.01
        elif change == "order":
            slim.fc.weight.copy_(slim.fc.weight.flip(1))
        else:
            slim.threshold = 1e9
    with pytest.raises(VerificationError) as caught:
        fxprune.verify(model, slim, image(2, 3, 6, 6))
    assert where in caught.value.node


class Thresholded(Branching):
    threshold = -1e9

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where(y > self.threshold, y, y * 0.5)


class Tying(Branching):
    """Which of two equal scores comes first is up to rounding."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        same = torch.cat(
            [y.sum(1, keepdim=True), y.flip(1).sum(1, keepdim=True), y[:, :1] + (y[:, 3:] + y[:, 1:3].sum(1, keepdim=True))], 1
        )
        return same.argsort(1), same.topk(1).indices, same


def test_a_tie_is_decided_once() -> None:
    model = randomised(Tying())
    slim = fxprune.slim(model, 0.5, image(64, 3, 6, 6), verify=False)
    evidence = fxprune.verify(model, slim, image(64, 3, 6, 6))
    assert evidence.max_relative_error <= LIMIT
    assert set(evidence.nodes_settled) <= {"argsort", "topk"}
    assert evidence.nodes_settled, "no tie was met: the test shows nothing"


class Boxed:
    def __init__(self, inside: Tensor) -> None:
        self.inside = inside


class Boxing(Branching):
    """An output in an object of an unknown class."""

    def forward(self, x: Tensor) -> Any:
        y = self.features(-x if x.sum() > 0 else x)
        return Boxed(y)


def test_outputs_in_unknown_objects_keep_their_shape() -> None:
    model = randomised(Boxing())
    slim: Any = fxprune.slim(model, 0.5, image(2, 3, 6, 6))
    assert slim(image(2, 3, 6, 6)).inside.shape == (2, 6, 6, 6)
    assert slim.a.weight.shape[0] < 8
    assert fxprune.verify(model, slim, image(2, 3, 6, 6)).outputs_compared == 1


class Empty(Branching):
    """Finds nothing."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y[y[:, 0] > 1e6]


def test_an_empty_output_is_no_evidence() -> None:
    model = randomised(Empty())
    evidence = fxprune.verify(model, fxprune.slim(model, 0.5, image(2, 3, 6, 6)), image(2, 3, 6, 6))
    assert evidence.outputs_empty == 1
    assert "1 of them empty" in str(evidence)
    assert evidence.nodes_compared > 5


class Unused(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 8, 1)


def test_what_the_inputs_do_not_reach_is_named_and_left() -> None:
    slim: Any = fxprune.slim(randomised(Unused()), 0.5, image(2, 3, 6, 6))
    assert slim.other.weight.shape == (8, 8, 1, 1)
    assert any("not reached" in note and "other.weight" in note for note in fxprune.plan_of(slim).notes)


class Listed(Trunk):
    """A detector in small: a list of images of any size."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for x in images:
            scores = self.fc(self.features(x[None]).flatten(2).transpose(1, 2)[0])
            found.append({"scores": scores[scores[:, 0] > 0], "all": scores})
        return found


def test_a_list_of_images_is_inferred() -> None:
    model = randomised(Listed())
    slim: Any = fxprune.slim(model, 0.5)
    assert type(slim) is Listed
    assert fxprune.verify(model, slim).outputs_compared == 4
    assert slim([image(3, 5, 7)])[0]["all"].shape == (35, 4)
    assert fxprune.analyze(model).program.captured.how == EAGER
    assert "the eager module" in str(fxprune.summary(slim))
