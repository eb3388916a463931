"""``fxprune.diff``: what two plans do differently, as values and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fxprune
from fxprune.plan import Plan
from tests.unit.api.nets import Chain, Residual, seeded
from tests.unit.io.nets import image


def plan(ratio: float, score: str = "auto") -> Plan:
    return fxprune.plan_of(fxprune.slim(seeded(Chain()), ratio, image(), score=score, verify=False))


def test_equal_plans() -> None:
    found = fxprune.diff(plan(0.4), plan(0.4))
    assert not found
    assert found.axes == ()
    assert str(found) == f"the plans are equal ({found.equal} axes)"


def test_what_one_keeps_and_the_other_does_not() -> None:
    a, b = plan(0.2), plan(0.5)
    found = fxprune.diff(a, b)
    assert found
    for row in found.axes:
        assert row.only_b == ()  # a larger ratio keeps nothing more
        for label in row.axes:
            name, dim = label[:-3], int(label[-2])
            first, second = a.kept[name][dim], b.kept[name][dim]
            assert row.only_a == tuple(sorted(set(first) - set(second)))
            assert (row.size, row.kept_a, row.kept_b) == (a.sizes[name][dim], len(first), len(second))
            assert not row.reordered
    told = {label for row in found.axes for label in row.axes}
    assert {"conv1.weight[0]", "bn1.weight[0]", "conv2.weight[1]"} <= told
    assert ("asked", "0.2", "0.5") in found.fields
    assert "conv1.weight[0] and 6 more" in str(found)
    back = fxprune.diff(b, a)
    assert [row.only_b for row in back.axes] == [row.only_a for row in found.axes]


def test_an_axis_that_one_does_not_name_keeps_everything_there() -> None:
    a = Plan({"w": {0: (0, 2)}}, {"w": {0: 3}})
    (row,) = fxprune.diff(a, Plan({}, {})).axes
    assert (row.kept_a, row.kept_b, row.only_b) == (2, 3, (1,))


def test_fields_are_told_as_people_read_them() -> None:
    a = plan(0.2)
    b = replace(
        a,
        notes=("one", "two"),
        figures={"macs": {"original": 2e6, "asked": 1e6, "achieved": 1e6}, "latency": {"original": 0.02, "achieved": 0.012}},
        achieved=1 / 3,
    )
    assert {name: new for name, _, new in fxprune.diff(a, b).fields} == {
        "achieved": "0.3333",
        "notes": "one; two",
        "figures": "macs: 1,000,000 of 2,000,000; latency: 0.012 of 0.02",
    }


def test_another_order() -> None:
    a = Plan({"w": {0: (0, 2)}}, {"w": {0: 3}})
    b = replace(a, kept={"w": {0: (2, 0)}}, score="gamma")
    found = fxprune.diff(a, b)
    assert found.axes[0].reordered
    assert "another order" in str(found)
    assert found.fields == (("score", "", "gamma"),)


def test_plans_of_different_models() -> None:
    other = fxprune.plan_of(fxprune.slim(seeded(Residual()), 0.2, image(), verify=False))
    with pytest.raises(fxprune.PlanMismatchError, match="for different models"):
        fxprune.diff(plan(0.2), other)


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    a = Plan({"[red]w": {0: (0,)}}, {"[red]w": {0: 3}}, notes=("[bold]",))
    text = str(fxprune.diff(a, Plan({}, {})))
    assert "[red]w[0]" in text
    assert "[bold]" in text
