"""What identifies an original, and the signature of a call."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
from fxprune.capture.inputs import given as inputs_given
from fxprune.capture.signature import inputs_of, signature
from fxprune.origin import Origin, difference, functions
from fxprune.record import record_of
from tests.unit.api.nets import Chain, Residual, seeded
from tests.unit.io.nets import NETS, Tied, image, tokens


def origin_of(model: nn.Module, x: Any) -> Origin:
    record = record_of(fxprune.slim(seeded(model), 0.3, x, verify=False))
    assert record is not None
    return record.origin


@pytest.mark.parametrize("name", NETS)
def test_the_same_code_gives_the_same_origin(name: str) -> None:
    build, inputs = NETS[name]
    first, second = origin_of(build(), inputs()), origin_of(build(), inputs())
    assert first == second
    assert difference(first, second) == ""
    assert len(first.fingerprint) == 64


def test_weights_mode_and_dtype_do_not_matter() -> None:
    first = origin_of(Chain(), image())
    other = record_of(fxprune.slim(seeded(Chain(), seed=4, dtype=torch.float32).train(), 0.5, image(torch.float32), verify=False))
    assert other is not None
    assert other.origin.fingerprint == first.fingerprint


def test_rounds_keep_the_first_origin() -> None:
    slim = fxprune.slim(seeded(Chain()), 0.2, image())
    first, second = record_of(slim), record_of(fxprune.slim(slim, 0.2, image()))
    assert first is not None
    assert second is not None
    assert second.origin is first.origin
    assert second.plan == fxprune.plan_of(fxprune.slim(slim, 0.2, image()))


class Pooled(Chain):
    """The same layers around one function or another."""

    pool: Any = F.max_pool2d

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(type(self).pool(x, 2))


class Averaged(Pooled):
    pool = F.avg_pool2d


class Adaptive(Pooled):
    pool = F.adaptive_max_pool2d


def test_every_difference_changes_the_fingerprint() -> None:
    class Slope(Chain):
        slope = 0.1

        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(super().forward(x), type(self).slope)

    class Steeper(Slope):
        slope = 0.2

    eps = Chain()
    eps.bn1.eps = 1e-3
    models = [Chain(), Chain(12), Residual(), Pooled(), Averaged(), Adaptive(), Slope(), Steeper(), eps]
    origins = [origin_of(model, image()) for model in models]
    assert len({origin.fingerprint for origin in origins}) == len(models)
    assert all((difference(a, b) == "") == (a is b) for a in origins for b in origins)


def test_untied_weights_are_another_architecture() -> None:
    class Untied(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())

    assert "'head.weight'" in difference(origin_of(Tied(), tokens()), origin_of(Untied(), tokens()))


def test_functions_are_found_where_they_are_and_nothing_is_imported() -> None:
    assert functions(["tests.unit.test_origin.origin_of"]) == frozenset({origin_of})
    assert (
        functions(["no.such.module.f", "torch.nn", "torch.nn.Linear", "", ".", "tests.unit.test_origin.nothing"]) == frozenset()
    )


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]),
)
VALUES = st.recursive(
    LEAVES | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(args=st.lists(VALUES, max_size=3), kwargs=st.dictionaries(st.text(min_size=1, max_size=4), VALUES, max_size=2))
def test_signatures_are_written_and_read(args: list[Any], kwargs: dict[str, Any]) -> None:
    call = inputs_given(kwargs) if kwargs else inputs_given(tuple(args))
    model = nn.Linear(1, 1)
    text = json.dumps(signature(call, model), allow_nan=False)
    again = inputs_of(json.loads(text), model)
    assert json.dumps(signature(again, model)) == text
    for old, new in zip(*(torch.utils._pytree.tree_leaves((c.args, dict(c.kwargs))) for c in (call, again)), strict=True):
        assert type(old) is type(new)
        assert (old.shape, old.dtype) == (new.shape, new.dtype) if isinstance(old, Tensor) else old == new


def test_inputs_follow_the_models_precision() -> None:
    call = inputs_given((torch.zeros(2, 3), torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)))
    data = signature(call, nn.Linear(1, 1))
    found = inputs_of(data, nn.Linear(1, 1).bfloat16()).args
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float64, torch.int64]


def test_what_cannot_be_written() -> None:
    for value in (slice(1), object(), {1: 2}, float("nan"), {3}):
        assert signature(inputs_given((value,)), nn.Linear(1, 1)) is None


@given(
    data=st.recursive(
        LEAVES,
        lambda s: (
            st.lists(s, max_size=3)
            | st.dictionaries(st.sampled_from(["args", "kwargs", "tensor", "dtype", "dict", "list", "x"]), s, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_what_is_no_signature(data: Any) -> None:
    try:
        inputs_of(copy.deepcopy(data), nn.Linear(1, 1))
    except ValueError as error:
        assert str(error)  # noqa: PT017
