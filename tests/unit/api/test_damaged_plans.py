"""A damaged plan is refused as one: nothing but PlanMismatchError, whatever the damage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.errors import PlanMismatchError
from tests.unit.api.nets import Chain, Residual, image, seeded

TEXT = fxprune.plan(fxprune.analyze(seeded(Chain()), image()), 0.4).to_json()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of a JSON value."""
    keys = data.keys() if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    return [path for key in keys for path in ((*here, key), *places(data[key], (*here, key)))]


PLACES = places(json.loads(TEXT))


def read(text: Any) -> fxprune.Plan | None:
    try:
        return fxprune.Plan.from_json(text)
    except PlanMismatchError as error:
        assert len(str(error)) > 20  # noqa: PT017  # any other error fails the test by itself
        return None


def test_json_round_trip_is_exact() -> None:
    assert fxprune.Plan.from_json(TEXT).to_json() == TEXT
    for model in (Chain(), Residual()):
        plan = fxprune.plan(fxprune.analyze(seeded(model), image()), 0.3)
        assert fxprune.Plan.from_json(plan.to_json(indent=2)) == plan


@settings(max_examples=60)
@given(st.sampled_from(PLACES), JSON)
def test_replaced_entries(path: tuple[Any, ...], value: Any) -> None:
    data = json.loads(TEXT)
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    plan = read(json.dumps(data))
    if plan is not None:  # whatever is taken for a plan can be written, and read again
        assert fxprune.Plan.from_json(plan.to_json()).kept == plan.kept


@settings(max_examples=60)
@given(st.sampled_from(PLACES))
def test_missing_entries(path: tuple[Any, ...]) -> None:
    data = json.loads(TEXT)
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    del owner[path[-1]]
    read(json.dumps(data))


@settings(max_examples=60)
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 12), st.text(max_size=4))
def test_damaged_texts(start: int, length: int, instead: str) -> None:
    read(TEXT[:start] + instead + TEXT[start + length :])


@settings(max_examples=60)
@given(JSON)
def test_other_json(data: Any) -> None:
    assert read(json.dumps(data)) is None


@settings(max_examples=40)
@given(st.data())
def test_damaged_plans_that_still_read_are_refused_by_apply_or_make_a_verified_model(data: st.DataObject) -> None:
    """Kept indices are thinned at random: what is not a plan of the model must not be compiled into a wrong one."""
    parsed = json.loads(TEXT)
    axis = data.draw(st.sampled_from(parsed["axes"]), label="axis")
    axis["kept"] = data.draw(st.lists(st.sampled_from(range(axis["size"])), unique=True), label="kept")
    plan = read(json.dumps(parsed))
    assert plan is not None
    try:
        slim = fxprune.apply(seeded(Chain()), plan, image())
    except fxprune.FxpruneError:
        return
    fxprune.verify(seeded(Chain()), slim, image())


def altered(**entries: Any) -> str:
    """The plan with some entries of its first axis changed."""
    data = json.loads(TEXT)
    data["axes"][0].update(entries)
    return json.dumps(data)


def with_entry(**entries: Any) -> str:
    return json.dumps({**json.loads(TEXT), **entries})


def unread(reason: str) -> Any:
    return pytest.mark.xfail(strict=True, reason=reason)


NOT_TEXT = "json.loads' own errors are not all caught: TypeError, UnicodeDecodeError, RecursionError"
LENIENT = "entries are converted (int, float, str), not checked"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="none"),
        pytest.param(b"\xff", id="bytes"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("", id="empty"),
        pytest.param(altered(size=-8), id="negative size"),
        pytest.param(altered(kept=[0, 0]), id="an index twice"),
        pytest.param(altered(kept=[0, 8]), id="an index too large"),
        pytest.param(altered(kept="012"), id="indices as a text"),
        pytest.param(altered(kept=[0.5, 1.5]), id="fractional indices"),
        pytest.param(altered(name=["conv1.weight"]), id="a list as a name"),
        pytest.param(altered(dim=True), id="a dimension that is a bool"),
        pytest.param(altered(dim=-1), id="a negative dimension"),
        pytest.param(with_entry(achieved="high"), id="a text for a number"),
        pytest.param(with_entry(asked=float("nan")), id="NaN asked"),
        pytest.param(with_entry(layout="narrow"), id="an unknown layout"),
        pytest.param(with_entry(notes="a note"), id="notes as a text"),
        pytest.param(with_entry(format=2), id="another format"),
        pytest.param(with_entry(axes=json.loads(TEXT)["axes"] * 2), id="every axis twice"),
        pytest.param(with_entry(silent=[{"name": "conv2.weight", "dim": 1, "atoms": [99]}]), id="silent atoms too large"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_a_plan(text: Any) -> None:
    with pytest.raises(PlanMismatchError):
        fxprune.Plan.from_json(text)
