"""The glossary: sorted, and every word once."""

from __future__ import annotations

from pathlib import Path

GLOSSARY = Path(__file__).resolve().parents[3] / "docs" / "glossary.md"


def _words() -> list[str]:
    rows = GLOSSARY.read_text(encoding="utf-8").split("|---|---|\n", 1)[1].splitlines()
    assert all(row.count(" | ") == 1 for row in rows)
    return [row.removeprefix("| ").split(" | ")[0].split(" (")[0] for row in rows]


def test_it_is_sorted() -> None:
    words = _words()
    assert words == sorted(words, key=lambda word: word.replace(",", "").lower())


def test_every_word_has_one_entry() -> None:
    words = [word for entry in _words() for word in entry.split(", ")]
    twice = sorted({word for word in words if words.count(word) > 1})
    assert twice == ["dead"]  # of an element beside its other states, and of a channel
