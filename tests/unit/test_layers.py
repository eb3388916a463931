"""The shape of the package: imports point down, operators are named in few places, files stay readable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxprune

ROOT = Path(fxprune.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
# From the ground up; a room imports itself and what stands below it.
STAGES = (
    "errors",
    "slices",
    "folds",
    "ranking",
    "precision",
    "plan",
    "capture",
    "provenance",
    "graph",
    "score",
    "solve",
    "rewrite",
)
GROUND = {
    "errors": set[str](),
    "slices": {"errors"},
    "folds": set[str](),
    "ranking": set[str](),
    "precision": set[str](),
    "plan": {"errors", "slices", "folds", "ranking"},
}
# Rooms beside the tower, and all they may import.
BESIDE = {
    "verify": {"errors", "precision", "folds", "plan", "verify"},
    "absorb": {"errors", "precision", "folds", "plan", "capture", "provenance", "graph", "solve", "absorb"},
    "zoo": {"errors", "zoo"},
    "data": {"errors", "data"},
    "train": {"errors", "plan", "graph", "score", "solve", "record", "train"},
    "timing": {"timing"},
    "progress": set(),
    "quiet": set(),
    "evaluate": {"errors", "score"},
    "inference": {"errors", "precision", "capture", "provenance", "rewrite", "absorb", "timing", "inference"},
    # stands on the compiler: removing what is cut off composes its stages, as the entry points do
    "sparse": {"errors", "precision", "plan", "capture", "provenance", "graph", "solve", "pipeline", "record", "sparse"},
    # the same; and what tells whether a channel is heard is that of sparse
    "reconstruct": {
        *(
            "errors",
            "precision",
            "plan",
            "capture",
            "provenance",
            "graph",
            "score",
            "solve",
            "pipeline",
            "record",
            "sparse",
            "reconstruct",
        )
    },
}
# What is in a room beside the tower and composes the whole pipeline all the same.
ENTRIES = ("train/averaged.py", "train/recipe/", "train/__main__.py")
# What stands beside the entry points, and composes the pipeline to measure what comes out of it.
ENTRANCES = frozenset(
    "quickest demo __init__ reporting cli api pipeline failsafe eliminate layouts io sparse reconstruct __main__ compare sensitivity latency "
    "timed".split()
)
COMPOSING = ("compare", "sensitivity", "latency", "quickest")
LONGEST = 400


def room(path: str) -> str:
    """The first part of a file's path in the package."""
    return path.partition("/")[0].removesuffix(".py")


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: str) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in the file; without the package's name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] or "__init__" for a in node.names if a.name.partition(".")[0] == "fxprune")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "fxprune":
                yield from (a.name for a in node.names)
            elif node.module is not None and node.module.startswith("fxprune."):
                yield node.module.removeprefix("fxprune.")


def rooms(path: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in STAGES])
def test_imports_point_down_the_stages(path: str) -> None:
    own = room(path)
    below = GROUND.get(own, set(STAGES[: STAGES.index(own)]) | {own})
    assert rooms(path) <= below, f"{path} imports {sorted(rooms(path) - below)}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in BESIDE and not p.startswith(ENTRIES)])
def test_rooms_beside_the_tower_import_little(path: str) -> None:
    allowed = BESIDE[room(path)]
    assert rooms(path) <= allowed, f"{path} imports {sorted(rooms(path) - allowed)}"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if room(p) not in ENTRANCES and not p.startswith(ENTRIES)],
)
def test_nothing_below_imports_the_entry_points(path: str) -> None:
    assert not rooms(path) & {"api", "pipeline", "reporting", "demo", "cli", "__init__"}


def test_the_verifier_shares_no_code_with_what_it_checks() -> None:
    found = {name for path in FILES if room(path) == "verify" for name in rooms(path)}
    assert not found & {"rewrite", "provenance", "graph", "score", "solve", "capture"}


def test_the_domain_knows_no_torch() -> None:
    names = {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree("provenance/factor.py"))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not any(name.partition(".")[0] == "torch" for name in names)


def operators(path: str) -> set[str]:
    """``torch.ops`` and names of ATen operators in a file's code (texts for people left out)."""
    found = set()
    module = tree(path)
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "ops"
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        ):
            found.add("torch.ops")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("aten::"):
            found.add(node.value)
    return found


@pytest.mark.parametrize("path", FILES)
def test_few_rooms_name_operators(path: str) -> None:
    if path.startswith(("provenance/rules/", "rewrite/", "verify/")):
        return
    assert not operators(path)


@pytest.mark.parametrize("path", FILES)
def test_files_stay_readable(path: str) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES)
def test_every_file_opens_with_a_docstring_and_uses_absolute_imports(path: str) -> None:
    assert ast.get_docstring(tree(path))
    list(imported(path))


def test_the_public_names_are_sorted_and_there() -> None:
    assert fxprune.__all__ == sorted(fxprune.__all__)
    assert all(hasattr(fxprune, name) for name in fxprune.__all__)
    assert (ROOT / "py.typed").exists()


def test_a_climbing_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "bad.py").write_text("def f():\n    from fxprune.rewrite.emit import emit\n    import fxprune.api\n")

    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert rooms("capture/bad.py") == {"rewrite", "api"}
    with pytest.raises(AssertionError, match="rewrite"):
        test_imports_point_down_the_stages("capture/bad.py")
