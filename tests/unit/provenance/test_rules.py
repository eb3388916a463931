"""Every rule: a network through one operator is slimmed and verified; and no entry of the table is without such a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.provenance import rules
from fxprune.provenance.rules import TABLE
from tests.property.compiling import random_score
from tests.reference.compare import relative_error
from tests.reference.zeroed import zeroed
from tests.unit.api.nets import seeded
from tests.unit.provenance.around import WIDTH, Around, Case, example
from tests.unit.provenance.operators import CASES, COMPOSITE, NOISE, ON_META, RIGID, UNREACHABLE


class Recording(dict[str, Any]):
    """The table, and which of its entries were found."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.found: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        rule = super().get(key, default)
        if rule is not None:
            self.found.add(key)
        return rule


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    recording = Recording()
    monkeypatch.setattr(rules, "TABLE", recording)
    return recording


def rows(cases: dict[str, Case]) -> list[Any]:
    return [
        pytest.param(name, case, id=name, marks=pytest.mark.xfail(strict=True, reason=case.open) if case.open else ())
        for name, case in cases.items()
    ]


def compiled(case: Case, verified: bool = True) -> fxprune.Plan:
    """Slim a case's network by random scores, held against the masked original or the zeroed network; the plan."""
    model, x = Around(case), example(case)
    with torch.no_grad():
        assert model(x).isfinite().all()
    slim = fxprune.slim(model, 0.4, x, score=random_score(3), verify=False, absorb=False)
    plan = fxprune.plan_of(slim)
    assert not plan.empty
    if verified:
        fxprune.verify(model, slim, x)
    else:
        assert relative_error(slim(x), zeroed(model, plan, x)) <= 1e-9
    with torch.no_grad():
        assert slim(x).shape == model(x).shape
    return plan


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "case"), rows(CASES))
def test_rule(name: str, case: Case, table: Recording) -> None:
    plan = compiled(case, verified=name not in NOISE)
    assert name in table.found
    assert bool(plan.removed("stem.weight", 0)) == case.free
    assert len(plan.kept["stem.weight"][0]) >= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*(CASES[name] for name in sorted(NOISE)), Case(lambda _, x: x + torch.randn_like(x))])
def test_the_verifier_says_that_noise_cannot_be_verified(case: Case) -> None:
    with pytest.raises(fxprune.VerificationError, match=r"draws random numbers.*verify=False"):
        compiled(case)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "case"), rows(RIGID))
def test_what_has_to_be_pinned(name: str, case: Case) -> None:
    assert plan_keeps_the_stem(compiled(case))


def plan_keeps_the_stem(plan: fxprune.Plan) -> bool:
    return len(plan.kept["stem.weight"][0]) == WIDTH


def test_the_reason_of_a_missing_rule_is_told() -> None:
    case = RIGID["an operator without a rule"]
    graph = fxprune.analyze(Around(case), example(case))
    assert "aten::_fft_r2c" in graph.operators_without_rule
    assert "_fft_r2c has no transfer rule" in graph.explain("stem")


def test_every_entry_of_the_table_has_a_case() -> None:
    missing = TABLE.keys() - CASES.keys() - UNREACHABLE.keys()
    assert not missing, f"add cases to operators.py for {sorted(missing)}"
    assert not CASES.keys() & UNREACHABLE.keys()
    assert not UNREACHABLE.keys() - TABLE.keys(), "entries that are gone"


def composite(name: str) -> list[bool]:
    """Per overload: it has a composite kernel."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        pytest.skip(f"torch {torch.__version__} has no aten::{name}")
    found = []
    for overload in packet.overloads():
        full = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
        try:
            found.append(torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd"))
        except RuntimeError:  # an operator of TorchScript alone
            continue
    return found


@pytest.mark.parametrize("name", [n for n, why in UNREACHABLE.items() if why == COMPOSITE])
def test_composite_entries_are_composite(name: str) -> None:
    assert all(composite(name))


@pytest.mark.parametrize("name", [n for n, why in UNREACHABLE.items() if why == ON_META])
def test_entries_that_decompose_on_meta_have_a_composite_kernel(name: str) -> None:
    assert any(composite(name))


# Patterns around one rule that ask more of it than its case does.
PATTERNS = {
    "maximum over channels": Case(lambda _, x: x * x.max(1, keepdim=True).values),
    "minimum over channels": Case(lambda _, x: x - torch.min(x, 1, keepdim=True)[0]),
    "extremes of channels": Case(lambda _, x: x - x.aminmax(dim=1, keepdim=True).min / x.aminmax().max),
    "nothing before the rows": Case(lambda _, x: torch.cat([x[:, :, :0], x], 2)),
    "nothing behind the rows": Case(lambda _, x: torch.cat([x, x.narrow(2, 6, 0), x[:, :, 6:].transpose(2, 3).mT], 2)),
    "rows split in none and all": Case(lambda _, x: torch.cat(x.split([0, 6], 2)[::-1], 2)),
    "no part of the channels": Case(lambda _, x: torch.cat([x[:, :0], x, x[:, 8:]], 1)),
    "gather by a constant": Case(
        lambda _, x: x.gather(3, torch.zeros(2, 8, 6, 2, dtype=torch.int64)),
        free=False,
    ),
    "fractional pooling module": Case(
        lambda n, x: n.pool(x),
        modules={
            "pool": lambda: torch.nn.FractionalMaxPool2d(2, output_size=3, _random_samples=torch.full((2, 8, 2), 0.3).double())
        },
    ),
    "noise as wide as the image": Case(lambda _, x: x + torch.rand_like(x.mean(1, keepdim=True))),
    "chunk with uneven parts": Case(lambda _, x: torch.cat([x.chunk(3, 1)[2], x.chunk(3, 1)[0]], 1)),
    "glu": Case(lambda _, x: torch.nn.functional.glu(x, 1)),
    "maxout": Case(lambda _, x: x.view(x.shape[0], 4, 2, 6, 6).max(2)[0]),
    "grouped statistics": Case(lambda _, x: x.unflatten(1, (2, 4)).mean(2)),
    "transposition in place": Case(lambda _, x: (x * 1).transpose_(2, 3)),
    "strides of another shape": Case(lambda _, x: (x * 1).as_strided_((2, 8, 36), (288, 36, 1)), free=False),
    "memory format": Case(lambda _, x: x.contiguous(memory_format=torch.channels_last).to(memory_format=torch.contiguous_format)),
    "tile": Case(lambda _, x: x.tile(1, 2, 1, 1)),
    "repeat_interleave": Case(lambda _, x: x.repeat_interleave(2, 1)),
    "movedim": Case(lambda _, x: x.movedim(1, -1).movedim(-1, 1)),
    "einsum": Case(lambda n, x: torch.einsum("nchw,dc->ndhw", x, n.w), parameters={"w": (5, 8)}),
    "attention over pixels": Case(
        lambda _, x: torch.nn.functional.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3).transpose(1, 2),
    ),
    "slice assignment": Case(lambda _, x: _assigned(x)),
    "instance norm": Case(lambda n, x: n.norm(x), modules={"norm": lambda: torch.nn.InstanceNorm2d(8, affine=True)}),
    "lp pooling": Case(lambda _, x: torch.nn.functional.lp_pool2d(x, 2.0, 2)),
    "cosine similarity": Case(lambda _, x: x * torch.cosine_similarity(x, x.sin(), 1)[:, None]),
    "cumulative sum over space": Case(lambda _, x: x.cumsum(2)),
    "rms norm": Case(lambda n, x: n.norm(x), "rows", modules={"norm": lambda: torch.nn.RMSNorm(8)}),
}


def _assigned(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y[:, :, 1:3] = x[:, :, 0:2]
    return y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "case"), rows(PATTERNS))
def test_pattern(name: str, case: Case) -> None:
    assert bool(compiled(case).removed("stem.weight", 0)) == case.free


class Standardised(nn.Module):
    """A grouped convolution whose weight is normalised per row and scaled by a gain, as functions of the weight."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, groups=groups, padding=1), nn.Conv2d(24, 2, 1)
        self.gain = nn.Parameter(torch.ones(24, 1, 1, 1))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.gain * 0.5).view(-1)
        weight = F.batch_norm(self.mid.weight.reshape(1, 24, -1), None, None, weight=scale, training=True, momentum=0.0)
        weight = weight.reshape_as(self.mid.weight)
        return self.head(F.relu(F.conv2d(F.softplus(self.stem(x)), weight, self.mid.bias, padding=1, groups=self.groups)))


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_rows_and_columns_of_a_standardised_weight_go_independently(groups: int) -> None:
    model, x = seeded(Standardised(groups)), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert all(not pin.reason.startswith("an operand") for pin in fxprune.analyze(model, x).program.recorder.pins)
    slim = fxprune.slim(model, 0.5, x, score=random_score(1))
    plan = fxprune.plan_of(slim)
    assert plan.removed("stem.weight", 0)
    assert plan.removed("mid.weight", 0)
    rows, columns = slim.get_parameter("mid.weight").shape[:2]
    assert rows < 24
    assert columns * groups == slim.get_parameter("stem.weight").shape[0] < 12 or groups > 1
    assert fxprune.verify(model, slim, x).max_relative_error <= 1e-9


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["LeakyReLU", "CELU", "Mish", "SELU", "ELU", "SiLU", "ReLU6", "Hardswish", "Hardsigmoid"])
def test_activations_of_every_torch(name: str, inplace: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), getattr(nn, name)(inplace=inplace), nn.Conv2d(6, 2, 1))
    graph = fxprune.analyze(net.eval(), torch.randn(2, 3, 4, 4))
    assert graph.prunable() == (6, 8)
    assert not graph.operators_without_rule
