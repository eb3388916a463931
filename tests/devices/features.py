"""What fxprune does, once each: a function per feature, run on a model wherever its tensors are.

``Case.check`` is what all have in common: what comes out is on the model's device and in its dtype, it runs there, and nothing of the user's moved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import reconstruct, score, sparse, train
from tests.devices import networks


@dataclass
class Case:
    """A model, its inputs and labelled batches on one device, and a folder."""

    model: nn.Module
    inputs: Tensor
    batches: list[tuple[Tensor, Tensor]]
    folder: Path
    before: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = {name: tensor.detach().clone() for name, tensor in self._tensors(self.model).items()}

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def images(self) -> list[Tensor]:
        return [images for images, _ in self.batches]

    @staticmethod
    def _tensors(module: nn.Module) -> dict[str, Tensor]:
        return {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def home(self, module: nn.Module) -> nn.Module:
        """It is where the model is, in its dtypes, and runs there."""
        for name, tensor in self._tensors(module).items():
            assert tensor.device == self.device, f"{name} is on {tensor.device}"
            if tensor.is_floating_point():
                assert tensor.dtype == self.inputs.dtype, f"{name} is {tensor.dtype}"
        with torch.no_grad():
            out = copy.deepcopy(module).eval()(self.inputs)
        assert out.device == self.device
        assert out.dtype == self.inputs.dtype
        return module

    def check(self) -> None:
        now = self._tensors(self.model)
        assert now.keys() == self.before.keys()
        for name, tensor in now.items():
            assert tensor.device == self.device, name
            assert torch.equal(tensor, self.before[name]), name
        assert all(t.device == self.device for batch in self.batches for t in batch)

    def smaller(self, module: nn.Module) -> nn.Module:
        self.home(module)
        count = sum(p.numel() for p in module.parameters())
        assert count < sum(p.numel() for p in self.model.parameters())
        return module


def loss(out: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(out, labels)


def stages(case: Case) -> None:
    graph = fxprune.analyze(case.model, case.inputs)
    plan = fxprune.plan(graph, 0.4)
    slim = case.smaller(fxprune.apply(case.model, plan, case.inputs))
    fxprune.verify(case.model, slim, case.inputs)
    assert fxprune.plan_of(slim).to_json()
    graph.explain(graph.groups[0].name)


def slim(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs))


def inferred(case: Case) -> None:
    if not isinstance(next(m for m in case.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), nn.Conv2d):
        return
    if type(case.model).__name__ == "Bare":  # it takes images of one size, and none that is tried
        return
    made = fxprune.slim(case.model, 0.4)
    case.smaller(made)


def trained_mode(case: Case) -> None:
    training = copy.deepcopy(case.model).train()
    made = fxprune.slim(training, 0.4, case.inputs)
    assert made.training
    case.smaller(made)


def absorb_no(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, absorb=False))


def absorb_exact(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, absorb="exact"))


def absorb_images(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, absorb=case.images))


def _normed(case: Case) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in case.model.modules()) and type(case.model).__name__ != "Branching"


def selection(case: Case) -> None:
    if _normed(case):
        case.smaller(fxprune.slim(case.model, 0.4, case.inputs, layout="selection"))
        fxprune.deploy(fxprune.slim(case.model, 0.4, case.inputs, layout="selection"), case.inputs, seconds=0)


def selection_again(case: Case) -> None:
    if _normed(case):
        once = fxprune.slim(case.model, 0.2, case.inputs, layout="selection")
        twice = case.smaller(fxprune.slim(once, 0.6, case.inputs, layout="selection"))
        fxprune.save(twice, case.folder / "twice.safetensors")
        case.home(fxprune.load(copy.deepcopy(case.model).cpu(), case.folder / "twice.safetensors", device=case.device))


def layout_auto(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, layout="auto"))


def budget_params(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, budget=fxprune.Budget(params=0.6), example_inputs=case.inputs))


def budget_macs(case: Case) -> None:
    case.smaller(fxprune.slim(case.model, budget=fxprune.Budget(macs=0.6), example_inputs=case.inputs))


def weight_scores(case: Case) -> None:
    for name in ("l1", "l2", "fpgm", "lamp", "random", "magnitude"):
        fxprune.plan(fxprune.analyze(case.model, case.inputs), 0.4, score=name)
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, score=lambda group: score.l2(group).float().to(case.device)))


def data_scores(case: Case) -> None:
    for made in (score.taylor, score.obd):
        case.smaller(fxprune.slim(case.model, 0.4, case.inputs, score=made(case.batches, loss), verify=False))
    if type(case.model).__name__ == "Branching":
        return  # no program
    for made in (score.taylor_gates, score.fisher):
        case.smaller(fxprune.slim(case.model, 0.4, case.inputs, score=made(case.batches, loss), verify=False))
    for made in (score.activation, score.apoz):
        case.smaller(fxprune.slim(case.model, 0.4, case.inputs, score=made(case.batches), verify=False))


def comparing(case: Case) -> None:
    str(fxprune.compare_scores(case.model, case.batches, ("l2", "random"), (0.3,), example_inputs=case.inputs, recalibrate=1))


def sensitive(case: Case) -> None:
    found = fxprune.sensitivity(
        case.model, case.batches, (0.5,), example_inputs=case.inputs, path=case.folder / "scan.json", show=False
    )
    case.smaller(fxprune.slim(case.model, 0.4, case.inputs, score=found))


def persistence(case: Case) -> None:
    made = fxprune.slim(case.model, 0.4, case.inputs)
    fxprune.save(made, case.folder / "slim.safetensors")
    fresh = copy.deepcopy(case.model)
    back = case.home(fxprune.load(fresh, case.folder / "slim.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), made.state_dict().values(), strict=True))
    there = fxprune.load(copy.deepcopy(case.model).cpu(), case.folder / "slim.safetensors", device=case.device)
    case.home(there)
    here = fxprune.load(fresh, case.folder / "slim.safetensors", device="cpu")
    assert all(t.device.type == "cpu" for t in here.state_dict().values())
    torch.save(made.state_dict(), case.folder / "state.pt")
    made.load_state_dict(torch.load(case.folder / "state.pt", map_location="cpu"))
    torch.save(made, case.folder / "whole.pt")
    case.home(torch.load(case.folder / "whole.pt", weights_only=False))
    case.home(copy.deepcopy(made))


def elsewhere(case: Case) -> None:
    """A plan made on the CPU is applied on the device, and the other way round."""
    on_cpu = copy.deepcopy(case.model).cpu()
    plan = fxprune.plan(fxprune.analyze(on_cpu, case.inputs.cpu()), 0.4)
    one = case.smaller(fxprune.apply(case.model, plan, case.inputs))
    two = fxprune.apply(on_cpu, fxprune.plan(fxprune.analyze(case.model, case.inputs), 0.4), case.inputs.cpu())
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.allclose(a.cpu(), b)


def reports(case: Case) -> None:
    made = fxprune.slim(case.model, 0.4, case.inputs)
    str(fxprune.summary(case.model, case.inputs)), str(fxprune.summary(made, case.inputs))
    fxprune.report(made, case.folder / "slim.html", case.model, case.inputs, latency=False)
    fxprune.report(case.model, case.folder / "model.html", example_inputs=case.inputs, latency=False)
    fxprune.diff(fxprune.plan_of(made), fxprune.plan_of(made))


def reported_latency(case: Case) -> None:
    made = fxprune.slim(case.model, 0.4, case.inputs)
    fxprune.report(made, case.folder / "slim.html", case.model, case.inputs, latency=True)


def dead(case: Case) -> None:
    model = copy.deepcopy(case.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight[:3] = 0
    try:
        for merge in (False, True):
            case.home(fxprune.eliminate_dead_channels(model, case.inputs, merge_duplicates=merge))
    except fxprune.CaptureError:
        no_program(case)


def no_program(case: Case) -> None:
    """What runs as an eager module only cannot be followed; everything else can."""
    assert not isinstance(fxprune.slim(case.model, 0.3, case.inputs), torch.fx.GraphModule)


def again(case: Case) -> None:
    once = fxprune.slim(case.model, 0.3, case.inputs)
    case.smaller(fxprune.slim(once, 0.2, case.inputs))


def lasso(case: Case) -> None:
    if type(case.model).__name__ in ("Recurrent", "Branching"):
        return  # nothing that reconstruction could remove, or no program
    case.smaller(reconstruct.channel_prune(case.model, case.images, ratio=0.4, positions=4))


def repair(case: Case) -> None:
    if type(case.model).__name__ == "Branching":
        return  # no program
    made = fxprune.slim(case.model, 0.4, case.inputs, absorb=False)
    case.home(reconstruct.repair(case.model, made, case.images, positions=4))


def single_weights(case: Case) -> None:
    model = copy.deepcopy(case.model)
    sparse.set_masks(model, sparse.by_density(model, 0.5))
    sparse.set_masks(model, sparse.by_density(model, 0.4, scope="global"))
    sparse.set_masks(model, sparse.by_quality(model, 0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    penalty = sparse.Penalty(model, 1e-4, 2)

    def retrain(_round: int) -> None:
        for images, labels in case.batches:
            optimizer.zero_grad()
            (loss(model(images), labels) + penalty.penalty()).backward()
            penalty.add_gradient()
            optimizer.step()

    sparse.iterate(model, sparse.rounds(0.3, 2), retrain)
    if any(isinstance(m, nn.Dropout) for m in model.modules()):
        sparse.adjust_dropout(model)
    sparse.scan(model, lambda net: float(net(case.inputs).detach().mean()), (0.5,), path=case.folder / "weights.json")
    str(sparse.sizes(model)), sparse.density(model)
    sparse.save(model, case.folder / "sparse.bin")
    sparse.permanent(model)
    case.home(model)
    case.home(sparse.load_into(copy.deepcopy(case.model), case.folder / "sparse.bin"))
    sparse.mask_zeros(model)


def neurons(case: Case) -> None:
    model = copy.deepcopy(case.model)
    sparse.set_masks(model, sparse.by_density(model, 0.1, scope="global"))
    try:
        case.home(sparse.remove_neurons(model, case.inputs).module)
    except fxprune.CaptureError:
        no_program(case)


def to_csr(case: Case) -> None:
    if (
        case.inputs.dtype in (torch.float32, torch.float64) and case.device.type == "cpu"
    ):  # the pretended device has no sparse tensors
        model = copy.deepcopy(case.model)
        sparse.set_masks(model, sparse.by_density(model, 0.1))
        sparse.to_csr(model)(case.inputs)


def training(case: Case) -> None:
    model = copy.deepcopy(case.model).train()
    penalties = [train.WeightL1(model, 1e-4), train.WeightL2(model, 1e-4)]
    if _normed(case):
        graph = fxprune.analyze(case.model, case.inputs)
        penalties += [train.GammaL1(model, 1e-3, init=0.5), train.GroupL1(model, fxprune.analyze(model, case.inputs), 1e-3)]
        str(train.readiness(model)), graph
    optimizer = torch.optim.Adam(model.parameters(), 0.01, eps=1e-3)
    for images, labels in case.batches:
        optimizer.zero_grad()
        (loss(model(images), labels) + sum(penalty.penalty() for penalty in penalties)).backward()
        for penalty in penalties:
            penalty.add_gradient()
        optimizer.step()
        for penalty in penalties:
            penalty.shrink(optimizer)
            penalty.share_below()
    made = fxprune.slim(model, 0.4, case.inputs)
    if not isinstance(made, torch.fx.GraphModule):
        return
    tuner = train.remap_optimizer(optimizer, model, made)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    case.home(train.remap_averaged(averaged, model, made, case.inputs).module)
    for images, labels in case.batches:
        tuner.zero_grad()
        train.distillation(made(images), model(images), labels).backward()
        tuner.step()
    train.recalibrate(made, case.images)
    train.remap_state(model.state_dict(), model, made)
    case.home(made)


def deploy(case: Case) -> None:
    made = fxprune.slim(case.model, 0.4, case.inputs)
    for form in ("folded", "in place", "channels last"):
        case.home(fxprune.deploy(made, case.inputs, form=form))
    case.home(fxprune.deploy(case.model, case.inputs, seconds=0.05))


def latency(case: Case) -> None:
    table = fxprune.latency.measure(case.model, case.inputs, cache=case.folder, rounds=1, show=False)
    budget = fxprune.Budget(
        latency=f"{2 * table.seconds()!r}s", macs=0.9, table=table
    )  # calls this small are overhead: less may not be had
    fxprune.plan(fxprune.analyze(case.model, case.inputs), budget=budget)
    assert table.machine["device"]


QUICK: dict[str, Callable[[Case], Any]] = {
    f.__name__: f
    for f in (
        stages, slim, inferred, trained_mode, absorb_no, absorb_exact, absorb_images, selection,
        selection_again, layout_auto, budget_params,
        budget_macs,
        weight_scores, data_scores, comparing, sensitive, persistence, elsewhere, reports, dead, again, lasso, repair, single_weights, neurons,
        to_csr, training, deploy,
    )
}  # fmt: skip
TIMED: dict[str, Callable[[Case], Any]] = {f.__name__: f for f in (reported_latency, latency)}


def case(kind: str, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Case:
    """The network of that name on a device."""
    network = networks.NETWORKS[kind]
    batches = [(images.to(device), labels.to(device)) for images, labels in networks.labelled(network, dtype)]
    return Case(networks.ready(network, dtype).to(device), networks.example(network, dtype=dtype).to(device), batches, folder)
