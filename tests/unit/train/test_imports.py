"""What is heavy or optional is imported where it is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxprune

ROOT = Path(fxprune.__file__).parent
OPTIONAL = {"lightning_fabric", "lightning", "matplotlib", "tensorboardX", "sklearn"}


def at_import(tree: ast.Module) -> Iterator[str]:
    """Modules that importing a file imports: those outside functions and outside ``if TYPE_CHECKING``."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_optional_packages_are_not_imported_with_the_package(path: Path) -> None:
    tops = {name.partition(".")[0] for name in at_import(ast.parse(path.read_text(encoding="utf-8")))}
    assert not tops & OPTIONAL


def test_the_recipe_is_not_imported_with_the_package() -> None:
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).as_posix()
        if not inside.startswith(("train/recipe/", "train/__main__.py", "cli/")):
            names = set(at_import(ast.parse(path.read_text(encoding="utf-8"))))
            assert not any(name.startswith("fxprune.train.recipe") for name in names), inside
