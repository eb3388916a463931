"""docs/coverage.md: what became of every model."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.coverage.suites import SUITES
from benchmarks.machine import line

Results = dict[tuple[str, str], dict[str, Any]]
Rows = list[dict[str, Any]]

HEAD = (
    "model",
    "outcome",
    "capture",
    "prunable",
    "no rule",
    "parameters (M)",
    "MACs (G)",
    "error",
    "batch",
    "analyze (s)",
    "slim (s)",
)

INTRO = """# Coverage

Written by `python -m benchmarks.coverage`; do not edit.

Every model has random weights, norms and statistics, runs in a process of its own with a time limit, and is slimmed with
`fxprune.slim(model, 0.5)`.

- *verified*: the result is equal to the masked original (float64, relative error at most 1e-9; 1e-4 where float32 is said), returns
  outputs of the original's shapes, and trains one step
- *refused*: fxprune raised one of its errors and returned nothing
- *failed*: anything else
- *prunable*: the share of channels that can go
- *no rule*: operators that the analysis has no rule for
- *batch*: whether the result takes other batch sizes than the one it was compiled with
- seconds: CPU seconds of one thread; *slim* includes *analyze* and leaves verification out
"""


def write(results: Results, path: Path) -> None:
    """Write the page."""
    revisions = ", ".join(sorted({record.get("revision", "unknown") for record in results.values()}))
    parts = [INTRO, f"Measured on: {line()}. Revision of fxprune: {revisions}.\n", "## Summary\n", _summary(results)]
    for suite, what in SUITES.items():
        rows = [record for (own, _), record in results.items() if own == suite]
        if rows:
            rows.sort(key=lambda row: row["model"])
            parts += [f"\n## {what.title}\n", *_unverified(rows), _table(HEAD, [_cells(row) for row in rows])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def _summary(results: Results) -> str:
    rows = []
    for suite in SUITES:
        records = [record for (own, _), record in results.items() if own == suite]
        if not records:
            continue
        counts = Counter(record["outcome"] for record in records)
        good = [record for record in records if record["outcome"] == "verified"]
        shares = [record["prunable"] for record in good]
        slowest = max(good, key=lambda record: record["slim_cpu_seconds"], default=None)
        rows.append(
            (
                suite,
                f"{len(records)} of {len(SUITES[suite].names())}",
                *(str(counts[kind]) for kind in ("verified", "refused", "failed", "skipped")),
                f"{100 * statistics.median(shares):.0f} %" if shares else "",
                str(sum(bool(record["without_rule"]) for record in records if "without_rule" in record)),
                f"{max((record['verified_error'] for record in good if record['verified_in'] == 'float64'), default=0):.0e}",
                f"{slowest['slim_cpu_seconds']:.1f} ({slowest['model']})" if slowest else "",
            )
        )
    head = (
        "suite",
        "measured",
        "verified",
        "refused",
        "failed",
        "skipped",
        "median prunable",
        "models with operators without a rule",
        "greatest error (float64)",
        "slowest slim (s)",
    )
    return _table(head, rows)


def _unverified(rows: Rows) -> list[str]:
    """The errors, with the models that met them."""
    causes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["outcome"] != "verified":
            causes[f"{row['outcome']}: {_escaped(row.get('error', ''))[:300]}"].append(f"`{row['model']}`")
    if not causes:
        return []
    lines = [f"- {', '.join(models)}: {cause}" for cause, models in sorted(causes.items(), key=lambda item: -len(item[1]))]
    return ["Not verified:\n", "\n".join(lines) + "\n"]


def _error(row: dict[str, Any]) -> str:
    """The greatest error of an output; of inner values where all outputs are empty (no boxes)."""
    if "verified_error" not in row:
        return ""
    if row.get("outputs_empty") and row["outputs_empty"] == row.get("outputs"):
        return f"inside {row['worst_inside']:.0e}, outputs empty"
    return f"{row['verified_error']:.0e}" + (" (float32)" if row["verified_in"] == "float32" else "")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def pair(before: str, after: str, unit: float) -> str:
        if before not in row:
            return ""
        return f"{row[before] / unit:.2f}" + (f" → {row[after] / unit:.2f}" if after in row else "")

    return (
        row["model"],
        row["outcome"],
        row.get("capture", ""),
        f"{100 * row['prunable']:.0f} %" if "prunable" in row else "",
        ", ".join(row.get("without_rule", ())),
        pair("parameters", "parameters_after", 1e6),
        pair("macs", "macs_after", 1e9),
        _error(row),
        row.get("batch", ""),
        f"{row['analyze_cpu_seconds']:.2f}" if "analyze_cpu_seconds" in row else "",
        f"{row['slim_cpu_seconds']:.2f}" if "slim_cpu_seconds" in row else "",
    )


def _escaped(text: str) -> str:
    """For a table cell, without what differs between machines."""
    text = re.sub(r"\S*/site-packages/| at 0x[0-9a-f]+", "", text)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {text} |" for text in lines)
