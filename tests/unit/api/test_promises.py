"""What every slim model keeps of its original, and what it never takes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import networkx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from tests.reference.compare import Snapshot, parameters
from tests.unit.api.nets import Chain, Residual, image, run, seeded


class Dropping(Chain):
    """A module dropout, and a functional one that follows ``training``."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.fc(F.dropout(x, 0.5, self.training))


class Inner(nn.Module):
    """A submodule that is traced into, with its own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, self.training)


def storages(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()] if t.numel()}


@pytest.fixture
def model() -> Chain:
    return seeded(Chain())


# -- the input model is never changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Chain, Residual, Dropping])
def test_the_input_model_is_never_changed(build: type[nn.Module]) -> None:
    model = seeded(build())
    model.train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    model.conv1.register_forward_hook(lambda _module, _args, _output: None)
    model.register_forward_pre_hook(lambda _module, _args: None)
    model.bn1.weight.grad = torch.ones_like(model.bn1.weight)
    before, attributes = Snapshot(model), {n: set(m.__dict__) for n, m in model.named_modules()}
    slim = fxprune.slim(model, 0.4, image())
    assert not before.differences(model)
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == attributes
    assert not storages(model) & storages(slim)
    graph = fxprune.analyze(model, image())
    fxprune.apply(model, fxprune.plan(graph, 0.2), image())
    fxprune.verify(model, slim, image())
    assert not before.differences(model)


def test_training_the_slim_model_leaves_the_original_alone(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    before = Snapshot(model)
    slim.train()
    optimizer = torch.optim.SGD(slim.parameters(), 0.1)
    slim(image()).square().mean().backward()
    optimizer.step()
    assert not before.differences(model)


def test_random_numbers_are_not_drawn_from_the_global_generator(model: Chain) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fxprune.slim(model, 0.4, image())
    fxprune.slim(model, 0.4, image(), score="random")
    assert torch.equal(torch.rand(4), expected)


def test_gradients_modes_and_default_dtype_of_the_process_are_as_before(model: Chain) -> None:
    fxprune.slim(model, 0.4, image())
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


# -- what the slim model keeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    model = seeded(Chain(), dtype=dtype)
    slim = fxprune.slim(model, 0.4, image(dtype=dtype))
    assert {t.dtype for t in slim.parameters()} == {dtype}
    assert slim.get_buffer("bn1.running_mean").dtype == dtype
    assert slim.get_buffer("bn1.num_batches_tracked").dtype == torch.int64
    out = run(slim, image(dtype=dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_mixed_dtypes_of_submodules() -> None:
    class Mixed(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn1(self.conv1(x))).float()
            x = F.relu(self.bn2(self.conv2(x)))
            return self.fc(x.mean((2, 3)))

    model = seeded(Mixed())
    for part in (model.conv2, model.bn2, model.fc):
        part.float()
    slim = fxprune.slim(model, 0.4, image())
    assert {n: p.dtype for n, p in slim.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    assert run(slim, image()).dtype == torch.float32


def test_mode_per_module() -> None:
    model = seeded(Dropping())
    model.train()
    model.bn1.eval()
    model.drop.eval()
    slim = fxprune.slim(model, 0.4, image())
    modes = {name: m.training for name, m in model.named_modules()}
    assert {name: m.training for name, m in slim.named_modules()} == {n: modes[n] for n, _ in slim.named_modules()}
    assert slim.training
    assert not slim.get_submodule("bn1").training
    assert slim.get_submodule("bn2").training
    assert not slim.eval().training
    assert not any(m.training for m in slim.modules())


def test_mode_of_containers() -> None:
    model = seeded(
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 2, 1)))
    )
    for frozen in ("0", "1"):
        model.train().get_submodule(frozen).eval()
        slim = fxprune.slim(model, 0.4, image())
        modes = {name: m.training for name, m in model.named_modules()}
        assert {name: m.training for name, m in slim.named_modules()} == modes


def test_requires_grad(model: Chain) -> None:
    model.conv1.weight.requires_grad_(False)
    model.bn2.bias.requires_grad_(False)
    slim = fxprune.slim(model, 0.4, image())
    assert {n: p.requires_grad for n, p in slim.named_parameters()} == {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(type(p) is nn.Parameter and p.is_leaf and p.grad is None for p in slim.parameters())


def test_memory_format() -> None:
    model = seeded(Chain()).to(memory_format=torch.channels_last)
    slim = fxprune.slim(model, 0.4, image())
    for name in ("conv1.weight", "conv2.weight"):
        weight = slim.get_parameter(name)
        assert weight.shape[0] < model.get_parameter(name).shape[0]
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_state_dict_keys_and_their_order(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    assert list(slim.state_dict()) == list(model.state_dict())
    assert [n for n, _ in slim.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_the_class_name_and_the_call_signature(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    assert isinstance(slim, fx.GraphModule)
    assert type(slim).__name__ == "Chain"
    assert torch.equal(run(slim, image()), slim(x=image()))


def test_optional_arguments_stay_optional() -> None:
    class Optional(Chain):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return super().forward(x) * scale

    slim = fxprune.slim(seeded(Optional()), 0.4, image())
    assert torch.allclose(slim(image()), 2.0 * slim(image(), 1.0))


# -- train and eval of the result --------------------------------------------------------------------------------------


def test_batch_norm_updates_in_train_mode_only(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    norm = slim.get_submodule("bn1")
    before = norm.running_mean.clone()
    run(slim.eval(), image())
    assert torch.equal(norm.running_mean, before)
    run(slim.train(), image())
    assert not torch.equal(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 1


def test_running_statistics_update_as_those_of_the_surviving_channels(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    kept = torch.tensor(fxprune.plan_of(slim).kept["bn1.running_mean"][0])
    model.train()
    slim.train()
    run(model, image())
    run(slim, image())
    for name in ("bn1.running_mean", "bn1.running_var"):
        torch.testing.assert_close(slim.get_buffer(name), model.get_buffer(name)[kept], rtol=1e-12, atol=0)


@pytest.mark.parametrize("start", ["train", "eval"])
def test_dropout_follows_the_mode(start: str) -> None:
    model = seeded(Dropping())
    model.train(start == "train")
    slim = fxprune.slim(model, 0.3, image())
    slim.eval()
    assert torch.equal(run(slim, image()), run(slim, image()))
    for part in (slim.bn1, slim.bn2):
        part.eval()
    slim.train()
    slim.bn1.eval()
    slim.bn2.eval()
    torch.manual_seed(0)
    one, two = run(slim, image()), run(slim, image())
    assert not torch.allclose(one, two)
    slim.drop.eval()  # the functional one alone still drops
    assert not torch.allclose(run(slim, image()), run(slim, image()))


def test_functional_dropout_in_a_submodule_follows_that_submodule() -> None:
    model = seeded(nn.Sequential(Inner(), nn.ReLU(), nn.Conv2d(8, 2, 1)))
    slim = fxprune.slim(model, 0.4, image())
    slim.eval()
    assert torch.equal(run(slim, image()), run(slim, image()))
    slim.get_submodule("0").train()
    assert not torch.equal(run(slim, image()), run(slim, image()))


# -- dynamic sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Chain, Residual, Dropping])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 13, 6)])
def test_batch_and_spatial_size_stay_dynamic(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    slim = fxprune.slim(seeded(build()), 0.4, image())
    assert run(slim, image(*shape)).shape[0] == shape[0]


def test_views_with_a_symbolic_batch_stay_dynamic() -> None:
    class Viewing(Chain):
        def forward(self, x: Tensor) -> Tensor:
            n = x.size(0)
            x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            x = x.view(n, x.shape[1], -1).reshape(n, 2, x.shape[1] // 2, x.shape[2] * x.shape[3])
            return self.fc(x.flatten(1, 2).mean(-1).view(n, -1))

    model = seeded(Viewing())
    slim = fxprune.slim(model, 0.4, image())
    assert fxprune.plan_of(slim).removed("conv2.weight", 0)
    for shape in ((1, 3, 8, 8), (5, 3, 6, 10)):
        assert run(slim, image(*shape)).shape == (shape[0], 4)
        torch.testing.assert_close(
            run(slim, image(*shape)), run(fxprune.slim(model, 0.4, image(*shape)), image(*shape)), rtol=1e-12, atol=1e-12
        )


# -- memory ------------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The high-water mark of memory held by tensors that were made under this mode, meta tensors left out."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {self._key(x) for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for gone in [key for key, (ref, _) in self.storages.items() if ref.expired()]:
            self.live -= self.storages.pop(gone)[1]
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type != "meta" and self._key(x) not in known | self.storages.keys():
                size = x.untyped_storage().nbytes()
                self.storages[self._key(x)] = (StorageWeakRef(x.untyped_storage()), size)
                self.live += size
                self.peak = max(self.peak, self.live)
        return result

    @staticmethod
    def _key(x: Tensor) -> int:
        return x.untyped_storage()._cdata


def test_the_measure_of_memory_is_right() -> None:
    with LiveBytes() as memory:
        a = torch.zeros(1000)
        b = a + 1
        b.view(10, 100).mul_(2)
        del a
        c = b * 2
        torch.zeros(5000, device="meta")
        torch.ones(100)
    assert memory.peak == 4 * (1000 + 1000 + 100)
    assert len(c) == 1000


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize(
    ("width", "depth"),
    [
        pytest.param(512, 40, id="many layers"),
        pytest.param(1024, 8, id="large layers"),
        pytest.param(3072, 2, id="huge layers"),
    ],
)
def test_peak_extra_memory_is_little_more_than_the_slim_weights(width: int, depth: int, ratio: float) -> None:
    layers = [layer for _ in range(depth) for layer in (nn.utils.skip_init(nn.Linear, width, width, bias=False), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), *layers, nn.Linear(width, 8))
    example = torch.zeros(2, 8)
    plan = fxprune.plan(fxprune.analyze(model, example), ratio, score="random")
    with LiveBytes() as memory:
        slim = fxprune.apply(model, plan, example, verify=False)
    weights = sum(p.numel() * p.element_size() for p in slim.parameters())
    assert weights <= memory.peak <= 1.2 * weights


# -- copies, persistence, determinism ----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [Chain, Residual, Dropping])
def test_copies_keep_plan_and_outputs(build: type[nn.Module]) -> None:
    slim = fxprune.slim(seeded(build()), 0.4, image())
    expected, plan = run(slim, image()), fxprune.plan_of(slim)
    file = io.BytesIO()
    torch.save(slim, file)
    file.seek(0)
    for other in (
        copy.deepcopy(slim),
        pickle.loads(pickle.dumps(slim)),  # noqa: S301  # its own bytes
        torch.load(file, weights_only=False),
        copy.deepcopy(slim).to(torch.float64),
    ):
        assert fxprune.plan_of(other) == plan
        assert torch.equal(run(other, image()), expected)
        assert not storages(other) & storages(slim)


def test_a_copy_can_be_slimmed_again(model: Chain) -> None:
    first = fxprune.slim(model, 0.3, image())
    again = fxprune.slim(copy.deepcopy(first), 0.2, image())
    assert fxprune.plan_of(again) == fxprune.plan_of(fxprune.slim(first, 0.2, image()))


def test_a_state_dict_goes_where_the_plan_goes(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    fresh = fxprune.apply(seeded(Chain(), seed=9), fxprune.plan_of(slim), image())
    assert not torch.equal(run(fresh, image()), run(slim, image()))
    fresh.load_state_dict(slim.state_dict())
    assert torch.equal(run(fresh, image()), run(slim, image()))


@pytest.mark.parametrize("score", ["auto", "random", "magnitude"])
def test_determinism(score: str) -> None:
    made = [fxprune.slim(seeded(Residual()), 0.4, image(), score=score) for _ in range(2)]
    assert fxprune.plan_of(made[0]).to_json() == fxprune.plan_of(made[1]).to_json()
    assert made[0].code == made[1].code
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


# -- options -----------------------------------------------------------------------------------------------------------


def test_ratio_zero_is_the_same_program(model: Chain) -> None:
    slim = fxprune.slim(model, 0.0, image())
    assert fxprune.plan_of(slim).empty
    assert torch.equal(run(slim, image()), run(model, image()))
    assert parameters(slim) == parameters(model)


@pytest.mark.parametrize("pattern", ["conv1", "conv1.weight", "bn1", "bn1.bias", "c*1", ("conv1", "fc")])
def test_keep(model: Chain, pattern: Any) -> None:
    plan = fxprune.plan_of(fxprune.slim(model, 0.3, image(), keep=pattern))
    assert not plan.removed("conv1.weight", 0)
    assert not plan.removed("conv2.weight", 1)
    assert plan.removed("conv2.weight", 0)


def test_keep_of_a_reader_keeps_its_own_channels_only(model: Chain) -> None:
    plan = fxprune.plan_of(fxprune.slim(model, 0.3, image(), keep="conv2"))
    assert not plan.removed("conv2.weight", 0)
    assert plan.removed("conv2.weight", 1)


def test_keep_holds_everything_coupled_with_it() -> None:
    plan = fxprune.plan_of(fxprune.slim(seeded(Residual()), 0.3, image(), keep="conv2"))
    assert not plan.removed("stem.weight", 0)
    assert plan.removed("conv1.weight", 0)


@pytest.mark.parametrize("round_to", [2, 3, 4])
def test_round_to(round_to: int) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 36, 1), nn.BatchNorm2d(36),
                                 nn.Conv2d(36, 2, 1)))  # fmt: skip
    for ratio in (0.2, 0.5, 0.7):
        slim = fxprune.slim(model, ratio, image(), round_to=round_to)
        widths = [slim.get_submodule(name).out_channels for name in ("0", "3")]
        assert all(width % round_to == 0 for width in widths)
        assert sum(widths) < 60
        assert slim.get_submodule("5").out_channels == 2


@pytest.mark.parametrize("floor", [0.25, 0.5])
def test_floor(floor: float) -> None:
    model = seeded(Chain(16))
    with torch.no_grad():
        model.bn1.weight.mul_(1e-3)
    plan = fxprune.plan_of(fxprune.slim(model, 0.4, image(), floor=floor))
    assert len(plan.kept["conv1.weight"][0]) >= floor * 16


def test_floor_zero_empties_a_layer_which_still_says_its_constant() -> None:
    model = seeded(Residual())
    with torch.no_grad():
        model.bn1.weight.mul_(1e-3)
    slim = fxprune.slim(model, 0.4, image(), floor=0, absorb=False)
    plan = fxprune.plan_of(slim)
    assert len(plan.kept["conv1.weight"][0]) == 1
    assert plan.silent["conv2.weight"][1] == plan.kept["conv2.weight"][1]
    assert not slim.get_parameter("conv2.weight").any()
    assert any("emptied" in note for note in plan.notes)
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    with torch.no_grad():  # the branch of the original without its last convolution: what bn2 says of zeros
        zeroed = copy.deepcopy(model)
        zeroed.conv2.weight.zero_()
        gone = list(plan.removed("stem.weight", 0))
        zeroed.conv1.weight[:, gone] = 0
        zeroed.head.weight[:, gone] = 0
    torch.testing.assert_close(run(slim, image()), run(zeroed, image()), rtol=1e-9, atol=1e-12)


def test_asked_and_achieved_are_in_the_plan(model: Chain) -> None:
    slim = fxprune.slim(model, 0.43, image())
    plan = fxprune.plan_of(slim)
    gone = sum(len(plan.removed(name, 0)) for name in ("bn1.weight", "bn2.weight"))
    assert plan.asked == 0.43
    assert plan.achieved == gone / 18
    assert abs(plan.achieved - plan.asked) <= 0.5 / 18 + 1e-12
    assert plan.score == "gamma"
    assert plan.layout == "coupled"


def test_verify_of_a_slim_model_gives_evidence(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image(), verify=False)
    evidence = fxprune.verify(model, slim, image())
    assert evidence.max_relative_error <= 1e-9
    assert evidence.outputs_compared == 1
    assert evidence.shapes_checked
    assert "verified" in str(evidence)


def test_verify_sees_a_damaged_slim_model(model: Chain) -> None:
    slim = fxprune.slim(model, 0.4, image())
    with torch.no_grad():
        slim.get_parameter("conv2.weight")[0] += 0.1
    with pytest.raises(fxprune.VerificationError, match="conv2") as caught:
        fxprune.verify(model, slim, image())
    assert caught.value.node == "conv2"


# -- shared modules, tied weights, hooks -------------------------------------------------------------------------------


class Shared(nn.Module):
    """One convolution called twice, under two names; two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.body
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)
        self.right.weight = self.left.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.body(F.relu(self.stem(x)))))).mean((2, 3))
        return self.head(F.relu(self.left(x)) + F.relu(self.right(x)))


def test_shared_modules_and_tied_weights_stay_one() -> None:
    model = seeded(Shared())
    slim = fxprune.slim(model, 0.4, image())
    left, right = (slim.get_submodule(name) for name in ("left", "right"))
    assert left.weight is right.weight
    assert left.bias is not right.bias
    names = dict(slim.named_modules())
    assert "again" not in names or names["again"] is names["body"]
    assert parameters(slim) < parameters(model)
    assert set(slim.state_dict()) <= set(model.state_dict())
    fxprune.verify(model, slim, image())


def test_a_module_under_two_names_keeps_both_in_the_state_dict() -> None:
    class Aliased(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.conv2

    model = seeded(Aliased())
    assert set(fxprune.slim(model, 0.4, image()).state_dict()) == set(model.state_dict())


def test_hooks_of_leaf_modules_survive(model: Chain) -> None:
    seen: list[tuple[int, ...]] = []
    model.conv1.register_forward_hook(lambda _module, _args, output: seen.append(tuple(output.shape)))
    slim = fxprune.slim(model, 0.4, image())
    seen.clear()
    run(slim, image())
    assert seen == [(2, slim.get_submodule("conv1").out_channels, 8, 8)]


def test_user_attributes_of_modules_survive(model: Chain) -> None:
    model.conv1.note = "first"
    model.register_buffer("scale", torch.ones(3, dtype=torch.float64))
    slim = fxprune.slim(model, 0.4, image())
    assert slim.get_submodule("conv1").note == "first"


# -- explanations ------------------------------------------------------------------------------------------------------


def test_explain_says_with_whom_and_why() -> None:
    graph = fxprune.analyze(seeded(Residual()), image())
    text = graph.explain("stem")
    assert "8 can go" in text
    for name in ("bn0.weight", "conv2.weight[0]", "bn2.weight", "conv1.weight[1]", "head.weight[1]"):
        assert name in text
    assert "add" in text
    assert "conv1.weight[0]" not in text
    out = graph.explain("head")
    assert "3 channels): 0 can go, 3 cannot" in out
    assert "a model output keeps its shape" in out
    assert "contracted with something" in graph.explain("stem.weight[1]")
    kept = fxprune.analyze(seeded(Residual()), image(), keep="conv1").explain("conv1.weight[0]")
    assert "kept by the user ('conv1')" in kept
    assert "6 cannot" in kept


def test_networkx_view_is_the_coupling_graph() -> None:
    graph = fxprune.analyze(seeded(Residual()), image())
    view = graph.to_networkx()
    assert view.nodes["stem.weight[0]"]["channels"] == 8
    assert view.nodes["stem.weight[0]"]["pinned"] == 0
    assert view.nodes["head.weight[0]"]["pinned"] == 3
    joined = networkx.node_connected_component(view, "stem.weight[0]")
    assert {"conv2.weight[0]", "bn2.bias[0]", "head.weight[1]", "conv1.weight[1]"} <= joined
    assert not {"conv1.weight[0]", "head.weight[0]", "stem.weight[1]"} & joined
    nodes = {data["node"] for _, _, data in view.edges(data=True)}
    assert "add" in nodes
    assert nodes <= set(graph.nodes)


class Bounded(nn.Module):
    """Infinities that mean something: no bound, and no attention to what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("least", torch.tensor(float("-inf")))
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clamp(min=self.least)
        z: Tensor = self.b((x @ x.mT + self.mask).softmax(-1) @ y)
        return z


def test_infinite_buffers_are_no_damage_and_buffers_are_no_channels() -> None:
    model, x = Bounded(), torch.randn(2, 5, 4, dtype=torch.float64)
    model.double()
    slim = fxprune.slim(model, 0.5, x)
    assert slim.get_parameter("a.weight").shape == (4, 4)
    assert fxprune.verify(model, slim, x).max_relative_error <= 1e-9
    assert fxprune.analyze(model, x).prunable() == (8, 11)  # not the mask's five times two positions
    model.get_buffer("mask")[0, 1] = float("nan")
    with pytest.raises(fxprune.WeightError, match="mask"):
        fxprune.slim(model, 0.5, x)


class ReadyToQuantise(nn.Module):
    """A float model with the modules that a later quantisation replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 3, 1)
        self.add, self.cat = torch.ao.nn.quantized.FloatFunctional(), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.quant(x))
        z: Tensor = self.c(self.cat.cat([self.add.add_relu(y, self.b(y)), y], 1))
        return self.dequant(z)  # type: ignore[no-any-return]


def test_a_float_model_that_is_ready_to_be_quantised_is_pruned() -> None:
    model, x = seeded(ReadyToQuantise()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    slim = fxprune.slim(model, 0.5, x)
    assert slim.get_parameter("b.weight").shape == (4, 4, 1, 1)
    assert fxprune.verify(model, slim, x).max_relative_error <= 1e-9


def test_groups_of_a_residual_net() -> None:
    graph = fxprune.analyze(seeded(Residual()), image())
    widths = {group.name: len(group) for group in graph.groups}
    assert widths == {"stem.weight": 8, "conv1.weight": 6}
    assert graph.prunable() == (22, 25)  # three outputs stay
