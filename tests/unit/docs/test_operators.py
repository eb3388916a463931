"""docs/operators.md has a row for every operator of the table, in the section of its rule file, and names the verifier's rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.provenance import rules
from fxprune.verify.masked import rule_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operators.md"
FILES = tuple(name for name, module in vars(rules).items() if getattr(module, "RULES", None) and module.RULES is not rules.TABLE)
NAME = re.compile(r"`([^`]+)`")


def rows(section: str) -> list[tuple[list[str], set[str]]]:
    """The rows of a section of the page: the operators of the first column and the verifier's rules of the last."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{PAGE.name} has no section {section!r}"
    table = [line.strip().strip("|").split("|") for line in found.group(1).splitlines() if line.startswith("| `")]
    return [(NAME.findall(cells[0]), set(NAME.findall(cells[-1]))) for cells in table]


def verifier_rules(name: str) -> set[str]:
    """The functions that the verifier dispatches an operator's overloads to; none if PyTorch has no such operator on tensors."""
    packet: Any = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return {
        getattr(rule_of(func), "__name__", "decomposed")
        for func in overloads
        if "out" not in func._overloadname and not func._overloadname.endswith("dimname") and on_tensors(func)
    }


def on_tensors(func: Any) -> bool:
    """Overloads for TorchScript's lists and numbers are no operators that a program could dispatch."""
    return bool(torch._C._dispatch_has_kernel(func.name()))


def test_every_rule_file_is_looked_at() -> None:
    assert set().union(*(getattr(rules, name).RULES for name in FILES)) == set(rules.TABLE)


@pytest.mark.parametrize("section", FILES)
def test_every_operator_has_one_row_and_every_row_an_operator(section: str) -> None:
    listed = [name for names, _ in rows(section) for name in names]
    table = getattr(rules, section).RULES
    assert sorted(set(table) - set(listed)) == [], f"operators without a row in docs/operators.md, section {section}"
    assert sorted(set(listed) - set(table)) == [], f"rows of docs/operators.md, section {section}, without a rule"
    assert len(listed) == len(set(listed)), f"operators with several rows in docs/operators.md, section {section}"


@pytest.mark.parametrize("section", FILES)
def test_every_row_names_the_verifier_s_rule(section: str) -> None:
    for names, named in rows(section):
        for name in names:
            assert verifier_rules(name) == named, f"the verifier's rule for {name} in docs/operators.md, section {section}"


def test_the_verifier_s_rules_are_described() -> None:
    used = set().union(*(named for section in FILES for _, named in rows(section)))
    described = [name for names, _ in rows("The verifier's rules") for name in names]
    assert used == set(described)
    assert len(described) == len(set(described))
