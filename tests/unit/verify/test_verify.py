"""Slim modules made by hand pass; mutations of them are caught at the right node."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from handmade import channels, literal, merged, plan_for, poisoned, randomised, sliced
from torch import Tensor, fx, nn

from fxprune.errors import VerificationError
from fxprune.plan import Plan
from fxprune.verify import verify_slim

KEPT = (0, 2, 3, 6)
IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@dataclass
class Case:
    net: fx.GraphModule
    slim: fx.GraphModule
    plan: Plan
    kept: dict[str, Any]
    inputs: tuple[Tensor, ...] = IMAGE

    def check(self) -> Any:
        return verify_slim(self.net, self.slim, self.plan, self.inputs)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))


def chain() -> Case:
    net = randomised(Chain())
    kept = channels("conv1", "bn1:norm", "conv2:in", rows=KEPT)
    return Case(net, sliced(net, kept), plan_for(net, kept), kept)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = self.bn1(self.conv1(x))
        y += x
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


def residual() -> Case:
    net = randomised(Residual())
    kept = merged(channels("stem:rows", "bn0:norm", "conv1:rows", "conv1:in", "bn1:norm", "head:in", rows=KEPT))
    return Case(net, sliced(net, kept), plan_for(net, kept), kept)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.deep = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.hardswish(self.bn(self.deep(F.relu6(self.conv1(x))))))


def depthwise() -> Case:
    net = randomised(Depthwise())
    kept = channels("conv1", "deep:rows", "bn:norm", "conv2:in", rows=KEPT)
    return Case(net, sliced(net, kept, deep__groups=4), plan_for(net, kept), kept)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mid, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.mid(F.silu(self.conv1(x)))))


def grouped() -> Case:
    """Clause 3 of the plan: 8 atoms in the second dimension of a weight of shape (6, 4, 3, 3)."""
    net = randomised(Grouped())
    first, second = (0, 3, 5, 6), (0, 2, 3, 4)
    kept = merged(channels("conv1", rows=first), channels("mid", "conv2:in", rows=second))
    plan = plan_for(net, merged(kept, {"mid.weight": {1: first}}), sizes={"mid.weight": {1: 8}})
    slim = sliced(net, kept)
    weight = net.mid.weight.data
    slim.mid.weight = nn.Parameter(torch.cat([weight[[0, 2]][:, [0, 3]], weight[[3, 4]][:, [1, 2]]]))
    return Case(net, slim, plan, kept)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(torch.cat([self.left(x), self.right(x)], 1))
        return self.conv(torch.cat([y, x], 1))


def concat() -> Case:
    net = randomised(Concat())
    kept = merged(
        channels("left", rows=(1, 2)),
        channels("right", rows=(0, 2, 3)),
        channels("bn:norm", rows=(1, 2, 4, 6, 7)),
        channels("conv:in", rows=(1, 2, 4, 6, 7, 8, 9, 10)),
    )
    return Case(net, sliced(net, kept), plan_for(net, kept), kept)


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x))
        return self.fc(x.view(2, 16))


def flatten() -> Case:
    net = randomised(Flatten())
    kept = merged(channels("conv", rows=(0, 3)), channels("fc:in", rows=(0, 1, 2, 3, 12, 13, 14, 15)))
    return Case(net, literal(sliced(net, kept), "view", (2, 8)), plan_for(net, kept), kept)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(x))
        return F.softmax(self.down(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), -1)


def mlp() -> Case:
    net = randomised(Mlp())
    kept = channels("up", "norm:affine", "down:in", rows=KEPT)
    slim = sliced(net, kept, norm__normalized_shape=(4,))
    return Case(net, slim, plan_for(net, kept), kept, (torch.randn(2, 7, 5),))


class OptionA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.bn(self.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def option_a() -> Case:
    """Stem channels 0..3 arrive at 2..5; kept are 0, 2, 3, 5, 6 of the sum: pad 1 before and 1 behind."""
    net = randomised(OptionA())
    kept = merged(
        channels("stem", "conv:in", rows=(0, 1, 3)),
        channels("conv", "bn:norm", "head:in", rows=(0, 2, 3, 5, 6)),
    )
    return Case(net, literal(sliced(net, kept), "pad", ((0, 0, 0, 0, 1, 1),)), plan_for(net, kept), kept)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)
        return self.conv2(F.relu(self.bn(x)))


def shuffle(rows: tuple[int, ...] = (0, 2, 5, 7)) -> Case:
    """Ragged but balanced: 0, 2 of the first block, 1, 3 of the second; they arrive as (0, 5), (2, 7), not as 0, 3, 4, 7."""
    net = randomised(Shuffle())
    left, right = [r for r in rows if r < 4], [r for r in rows if r >= 4]
    order = [r for pair in zip(left, right, strict=True) for r in pair]
    after = [2 * (r % 4) + r // 4 for r in order]
    kept = merged(channels("conv1", rows=rows), channels("bn:norm", "conv2:in", rows=after))
    slim = literal(literal(sliced(net, kept), "view", (2, 2, 2, 8, 8)), "reshape", (2, 4, 8, 8))
    return Case(net, slim, plan_for(net, kept), kept)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 8) for _ in range(4))
        self.out = nn.Linear(8, 6)
        self.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(2, 5, 2, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).reshape(2, 5, 8))


def attention() -> Case:
    """Each head keeps its own d of q and k, and its own d of v."""
    net = randomised(Attention())
    qk, v = (0, 2, 3, 4, 5, 6), (1, 2, 4, 7)
    kept = merged(channels("q", "k", rows=qk), channels("v", "out:in", rows=v))
    slim = sliced(net, kept)
    for name, width in (("view", 3), ("view_1", 3), ("view_2", 2)):
        literal(slim, name, (2, 5, 2, width))
    return Case(net, literal(slim, "reshape", (2, 5, 4)), plan_for(net, kept), kept, (torch.randn(2, 5, 6),))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.fc = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(x)[0]
        return self.fc(self.gru(x)[0])


def recurrent() -> Case:
    net = randomised(Recurrent())
    rows = (0, 2, 3)
    parts: dict[str, Any] = {}
    for name, gates in (("lstm", 4), ("gru", 3)):
        all_gates = tuple(4 * g + r for g in range(gates) for r in rows)
        parts[f"{name}.weight_hh_l0"] = {0: all_gates, 1: rows}
        parts[f"{name}.weight_ih_l0"] = {0: all_gates}
        parts[f"{name}.bias_hh_l0"] = parts[f"{name}.bias_ih_l0"] = {0: all_gates}
    parts["gru.weight_ih_l0"][1] = rows
    parts["fc.weight"] = {1: rows}
    slim = sliced(net, parts, lstm__hidden_size=3, gru__hidden_size=3, gru__input_size=3)
    return Case(net, slim, plan_for(net, parts), parts, (torch.randn(2, 5, 3),))


CASES = (chain, residual, depthwise, grouped, concat, flatten, mlp, option_a, shuffle, attention, recurrent)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_right_slim_module_is_verified(case: Any) -> None:
    evidence = case().check()
    assert evidence.max_relative_error < 1e-12
    assert evidence.outputs_compared == 1
    assert evidence.nodes_compared >= 4
    assert "verified" in str(evidence)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_removed_weights_are_never_used(case: Any) -> None:
    made = case()
    made.net = poisoned(made.net, made.kept)
    assert made.check().max_relative_error < 1e-12


def without(slim: fx.GraphModule, net: fx.GraphModule, name: str, dim: int, rows: tuple[int, ...]) -> None:
    """Slice one parameter of the slim module wrongly."""
    path, _, leaf = name.rpartition(".")
    tensor = net.get_submodule(path).__getattr__(leaf).data.index_select(dim, torch.tensor(rows))
    getattr(slim.get_submodule(path), leaf).data = tensor


@pytest.mark.parametrize(
    ("case", "name", "dim", "rows", "node"),
    [
        (chain, "conv1.bias", 0, (0, 2, 3, 7), "conv1"),
        (chain, "bn1.running_mean", 0, (0, 1, 2, 3), "bn1"),
        (chain, "bn1.bias", 0, (0, 2, 6, 3), "bn1"),
        (chain, "conv2.weight", 1, (0, 1, 3, 6), "conv2"),
        (residual, "bn1.weight", 0, (2, 0, 3, 6), "bn1"),
        (residual, "head.weight", 1, (1, 2, 3, 6), "head"),
        (depthwise, "deep.weight", 0, (0, 2, 3, 5), "deep"),
        (concat, "bn.weight", 0, (1, 2, 4, 5, 7), "bn"),
        (flatten, "fc.weight", 1, (0, 1, 2, 3, 11, 13, 14, 15), "fc"),
        (mlp, "norm.weight", 0, (0, 2, 3, 7), "norm"),
        (shuffle, "bn.weight", 0, (0, 4, 3, 7), "bn"),
        (attention, "out.weight", 1, (1, 2, 4, 6), "out"),
    ],
)  # fmt: skip
def test_a_wrong_slice_is_named(case: Any, name: str, dim: int, rows: tuple[int, ...], node: str) -> None:
    made = case()
    without(made.slim, made.net, name, dim, rows)
    with pytest.raises(VerificationError) as caught:
        made.check()
    assert caught.value.node == node
    assert f"--> %{node}" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "node", "args"),
    [
        (flatten, "view", (4, 4)),
        (flatten, "view", (2, 16)),
        (option_a, "pad", ((0, 0, 0, 0, 1, 2),)),
        (shuffle, "view", (2, 4, 1, 8, 8)),
        (attention, "view_2", (2, 5, 4, 1)),
    ],
)
def test_a_wrong_literal_is_named(case: Any, node: str, args: tuple[Any, ...]) -> None:
    made = case()
    literal(made.slim, node, args)
    with pytest.raises(VerificationError) as caught:
        made.check()
    expected = {"pad": "add"}.get(node, node)  # padding exists as its partner does, so the partner shows the mistake
    assert caught.value.node == expected
    assert caught.value.got != ""


class Hidden(nn.Module):
    """A number as masks are made of stands in the program, far from everything else."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.conv1, self.conv2, self.number = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), number

    def forward(self, x: Tensor) -> Tensor:
        open_ = x.new_full((1,), self.number).sigmoid()
        return self.conv2(self.conv1(x)) * open_


@pytest.mark.parametrize("number", [1e9, 3e38, 1.7e308])
def test_a_huge_number_hides_no_mistake(number: float) -> None:
    net = randomised(Hidden(number))
    kept = channels("conv1", "conv2:in", rows=KEPT)
    case = Case(net, sliced(net, kept), plan_for(net, kept), kept)
    case.check()
    with torch.no_grad():
        case.slim.get_submodule("conv2").weight[0, 0] += 1e-5
    with pytest.raises(VerificationError, match="conv2"):
        case.check()


def test_nothing_is_changed() -> None:
    made = chain()
    made.net.train()
    made.net.conv2.eval()
    modules = [made.net, made.slim]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    flags = [[m.training for m in module.modules()] for module in modules]
    image = made.inputs[0].clone()
    random = torch.random.get_rng_state()
    made.check()
    for module, state, flag in zip(modules, before, flags, strict=True):
        assert [m.training for m in module.modules()] == flag
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())
        assert all(p.grad is None and p.requires_grad and p.dtype == torch.float32 for p in module.parameters())
        assert not any(hasattr(t, "_fxprune_existence") for t in [*module.parameters(), *module.buffers()])
    assert torch.equal(image, made.inputs[0])
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled()


def test_it_is_deterministic_and_takes_a_dtype_by_name() -> None:
    made = residual()
    first, second = (verify_slim(made.net, made.slim, made.plan, made.inputs, dtype="float64") for _ in range(2))
    assert (first.max_relative_error, first.worst_node) == (second.max_relative_error, second.worst_node)
    single = verify_slim(made.net, made.slim, made.plan, made.inputs, dtype=torch.float32, rtol=1e-4)
    assert single.dtype == "float32"
    with pytest.raises(VerificationError, match="dtype must be"):
        verify_slim(made.net, made.slim, made.plan, made.inputs, dtype="float46")


def test_inputs_by_name_and_inserted_nodes() -> None:
    made = chain()
    relu = next(n for n in made.slim.graph.nodes if n.name == "relu")
    with made.slim.graph.inserting_after(relu):
        select = made.slim.graph.create_node(
            "call_function", torch.index_select, (relu, 1, torch.tensor([0, 1, 2, 3])), name="select"
        )
    relu.replace_all_uses_with(select, lambda user: user is not select)
    made.slim.recompile()
    evidence = verify_slim(made.net, made.slim, made.plan, kwargs={"x": IMAGE[0]})
    assert evidence.nodes_skipped == ()


def test_an_empty_plan_holds_a_net_against_itself() -> None:
    net = randomised(Residual())
    evidence = verify_slim(net, net, Plan(kept={}, sizes={}), IMAGE)
    assert evidence.max_relative_error == 0.0


def test_the_verifier_shares_no_code_with_what_it_checks() -> None:
    folder = Path(sys.modules["fxprune.verify"].__file__ or "").parent
    lines = [line for file in folder.glob("*.py") for line in file.read_text().splitlines()]
    imports = [line for line in lines if line.startswith(("from fxprune", "import fxprune"))]
    allowed = ("from fxprune.verify", "from fxprune.errors", "from fxprune.folds", "from fxprune.plan", "from fxprune.precision")
    assert imports
    assert all(line.startswith(allowed) for line in imports)
