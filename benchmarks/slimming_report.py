"""The page of results that slimming_results.py writes: tables from the stored cells, and what they say.

1. A number is the mean over the seeds; where there are several, the least and the most stand behind it.
2. A study without finished cells has no section. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slimming_prose import HEAD, NOTES

Facts = Mapping[str, Any]
PAPER_NAMES = {"vgg19_bn": "VGG-19", "densenet40": "DenseNet-40", "resnet164": "ResNet-164"}
FILES = {title: name for name, title in PAPER_NAMES.items()}
PUBLISHED = {  # Liu et al. 2017, table 1, CIFAR-10
    ("vgg19_bn", 0.7): "2.30 M, -51.0 % FLOPs, 93.80 % (unpruned 93.66 %)",
    ("densenet40", 0.4): "0.66 M, -28.4 % FLOPs, 94.81 % (unpruned 93.89 %)",
    ("densenet40", 0.7): "0.35 M, -55.0 % FLOPs, 94.35 %",
    ("resnet164", 0.4): "1.44 M, -23.7 % FLOPs, 94.92 % (unpruned 94.58 %)",
    ("resnet164", 0.6): "1.10 M, -44.9 % FLOPs, 94.73 %",
}


def rows_of(out: Path, study: str) -> list[Facts]:
    """The finished cells of a study, by name."""
    return [json.loads(path.read_text()) for path in sorted((out / study).glob("*.json"))]


def percent(values: Iterable[float], digits: int = 1) -> str:
    """Clause 1."""
    known = [100 * value for value in values]
    if not known:
        return ""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(known) / len(known), min(known), max(known)))
    return f"{mean} %" if low == high else f"{mean} % ({low} to {high})"


def seeds_of(rows: Sequence[Facts]) -> str:
    """How many seeds a line stands for."""
    return str(len(rows))


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(line)} |" for line in lines), ""]


def grouped(rows: Sequence[Facts], key: Callable[[Facts], Any]) -> dict[Any, list[Facts]]:
    """Rows by key, in the order in which keys come."""
    found: dict[Any, list[Facts]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def values(rows: Sequence[Facts], key: str) -> list[float]:
    """One number per row."""
    return [row[key] for row in rows]


def cuts(rows: Sequence[Facts]) -> list[str]:
    """ResNet-20 at equal MACs, not trained."""
    return curve(rows, ("Statistics of batch norms estimated anew", "As they are"))


def curve(rows: Sequence[Facts], titles: tuple[str, str] = ("After fine-tuning", "Before")) -> list[str]:
    """ResNet-20 at equal MACs."""
    levels = sorted({row["level"] for row in rows if row["way"] != "control"}, reverse=True)
    columns = ["", *(f"{1 - level:.0%} fewer MACs".replace("%", " %") for level in levels)]
    parts: list[str] = []
    for title, key in zip(titles, ("after", "before"), strict=True):
        lines = []
        for way, own in sorted(grouped(rows, lambda row: row["way"]).items()):
            by = grouped(own, lambda row: row["level"])
            if way != "control":
                lines.append([way, *(percent(values(by.get(level, []), key)) for level in levels)])
        parts += [f"{title}:", "", *table(columns, lines)]
    controls = grouped(
        [row for row in rows if row["way"] == "control" and "training" in row], lambda row: row["training"]["rate"]
    )
    told = ", ".join(f"{percent(values(own, 'after'))} at a rate of {rate}" for rate, own in controls.items())
    if told:
        parts += [
            f"The control, unpruned and fine-tuned equally: {told}; before, {percent(values(rows_at(controls), 'before'))}.",
            "",
        ]
    away = [abs(row["macs_left"] - row["level"]) for row in rows if row["way"] != "control"]
    if away:
        seeds = max(row["seed"] for row in rows) + 1
        parts += [
            f"Seeds: {seeds}. MACs differ from what was asked by {100 * max(away):.1f} points of the original's at most.",
            "",
        ]
    return parts


def rows_at(groups: Mapping[Any, list[Facts]]) -> list[Facts]:
    """One row per group."""
    return [own[0] for own in list(groups.values())[:1]]


def half(rows: Sequence[Facts]) -> list[str]:
    """Half of the MACs."""
    parts: list[str] = []
    columns = ("network", "seeds", "MACs", "parameters", "before the last training", "after", "against the control")
    lines = []
    order = {"control": 0, "sparse": 1}
    for network, own in grouped(sorted(rows, key=lambda row: order.get(row["way"], 2)), lambda row: row["network"]).items():
        control = {row["seed"] % 100: row["after"] for row in own if row["way"] == "control"}
        for way, group in grouped(own, lambda row: row["way"]).items():
            apart = [row["after"] - control[row["seed"] % 100] for row in group if row["seed"] % 100 in control]
            lines.append(
                [
                    f"{network.replace('resnet', 'ResNet-')}, {way}",
                    seeds_of(group),
                    percent(values(group, "macs_left")),
                    percent(values(group, "parameters_left")),
                    percent(values(group, "before")),
                    percent(values(group, "after")),
                    points(apart) if way not in order else "",
                ]
            )
    return parts + table(columns, lines)


def points(apart: Sequence[float]) -> str:
    """Signed differences in points."""
    if not apart:
        return ""
    known = [100 * value for value in apart]
    mean = f"{sum(known) / len(known):+.2f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):+.2f} to {max(known):+.2f})"


def mlp(rows: Sequence[Facts]) -> list[str]:
    """The paper's perceptron."""
    order = ("control", "sparse", "slim", "slim, distillation")
    rows = sorted(rows, key=lambda row: order.index(row["way"]))
    lines = [
        [
            {"control": "unpruned control", "sparse": "after sparse training"}.get(way, way),
            f"{sum(values(own, 'parameters')) / len(own):,.0f}",
            percent([1 - value for value in values(own, "before")], 2) if way.startswith("slim") else "",
            percent([1 - value for value in values(own, "after")], 2),
            seeds_of(own),
        ]
        for way, own in grouped(rows, lambda row: row["way"]).items()
    ]
    lines += [["paper, unpruned", "545 K", "", "1.43 %", ""], ["paper, slim", "-84.4 %", "", "1.49 %", ""]]
    parts = table(("", "parameters", "error before fine-tuning", "error", "seeds"), lines)
    control = {row["seed"]: row["after"] for row in rows if row["way"] == "control"}
    for way in order[2:]:
        slim = [row for row in rows if row["way"] == way and row["seed"] % 100 in control]
        if not slim:
            continue
        apart = points([control[row["seed"] % 100] - row["after"] for row in slim])
        fewer = percent([1 - value for value in values(slim, "parameters_left")])
        widths = "; ".join("784-" + "-".join(str(width) for width in row["widths"]) for row in slim)
        parts += [f"*{way}*: {fewer} fewer parameters; errors differ from the control's by {apart} points. Widths: {widths}.", ""]
    return parts


def passes(rows: Sequence[Facts]) -> list[str]:
    """The multi-pass table."""
    lines = []
    for (number, kind), own in grouped(rows, lambda row: (row["pass"], row["kind"])).items():
        if kind != "tuned":
            continue
        sparse = [row for row in rows if (row["pass"], row["kind"]) == (number, "sparse")]
        lines.append(
            [
                str(number),
                percent(values(sparse, "after")),
                percent([1 - value for value in values(own, "parameters_left")]),
                percent([1 - value for value in values(own, "macs_left")]),
                percent(values(own, "before")),
                percent(values(own, "after")),
                seeds_of(own),
            ]
        )
    columns = ("pass", "sparse training", "parameters pruned", "FLOPs pruned", "slim", "fine-tuned", "seeds")
    control = [row for row in rows if row["kind"] == "control"]
    parts = table(columns, lines)
    if control:
        steps = control[0]["training"]["steps"]
        parts += [f"The unpruned control, after {steps:,} steps without penalty: {percent(values(control, 'after'))}.", ""]
    return parts


def paper(rows: Sequence[Facts]) -> list[str]:
    """The paper's networks, one line per network, ratio and layout."""
    parts: list[str] = []
    for name, own in grouped(rows, lambda row: row["network"]).items():
        sparse = next((row for row in own if row["kind"] == "sparse"), None)
        if sparse is None:
            continue
        control = [row["after"] for row in own if row["kind"] == "control"]
        gammas = ", ".join(f"{float(q):.0%} {value:.4f}" for q, value in sparse["gammas"].items())
        parts += [
            f"**{PAPER_NAMES[name]}**: {sparse['parameters'] / 1e6:.2f} M parameters, {2 * sparse['macs'] / 1e8:.2f}e8 FLOPs; "
            f"{percent([sparse['after']])} after {sparse['training']['steps']} steps of sparse training"
            + (f", {percent(control)} after fine-tuning unpruned" if control else "")
            + f". Quantiles of |gamma|: {gammas}; {sparse['spare']:.0%} to spare.".replace("%", " %"),
            "",
        ]
        lines = []
        cuts = [row for row in own if row["kind"] in ("selection", "coupled") and "macs" in row]
        for row in sorted(cuts, key=lambda row: (row["ratio"], row["kind"] == "coupled")):
            later = [
                other["after"]
                for other in own
                if other["kind"] == row["kind"] and other.get("ratio") == row["ratio"] and "training" in other
            ]
            lines.append(
                [
                    f"{row['ratio']:.0%}".replace("%", " %"),
                    row["kind"],
                    f"{row['parameters'] / 1e6:.2f} M",
                    f"-{100 * (1 - row['macs_left']):.1f} %",
                    percent([row["before"]]),
                    percent([row["after"]]),
                    percent(later),
                    PUBLISHED.get((name, row["ratio"]), "") if row["kind"] == "selection" else "",
                ]
            )
        columns = ("ratio", "layout", "parameters", "FLOPs", "slim", "recalibrated", "fine-tuned", "paper")
        parts += table(columns, lines)
    return parts


def draws(rows: Sequence[Facts]) -> list[str]:
    """Sizes for gammas drawn at random, from selection.py."""
    lines = []
    for row in rows:
        cells = [row["network"], row["draw"], f"{row['ratio']:.0%}".replace("%", " %"), row["paper"] or "-"]
        for kind in ("reference", "selection", "coupled"):
            sizes = row[kind]
            millions = sum(size["parameters"] for size in sizes) / len(sizes) / 1e6
            saved = 100 * (1 - sum(size["macs"] for size in sizes) / len(sizes) / row["macs"])
            fails = kind == "reference" and any(size["emptied"] for size in sizes)
            cells.append(f"{millions:.2f} M, -{saved:.1f} %" + (" (fail)" if fails else ""))
        lines.append(cells)
    return table(("network", "gammas", "ratio", "paper", "reference scripts", "selection", "coupled"), lines)


def digits(cases: Mapping[str, Facts]) -> list[str]:
    """Accuracy before and after slimming on the digits, from network_slimming.py."""
    lines = []
    for name, found in cases.items():
        runs, controls = found["runs"], found["controls"]
        cells = [name, percent([rows[-1]["test"] for rows in controls])]
        cells.extend(percent([rows[stage]["test"] for rows in runs]) for stage in range(3))
        left = [rows[1]["parameters"] / rows[0]["parameters"] for rows in runs]
        lines.append([*cells, percent([1 - value for value in left]), str(len(runs))])
    columns = ("case", "control", "sparse-trained", "slim, not fine-tuned", "fine-tuned", "fewer parameters", "seeds")
    return table(columns, lines)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Facts]], list[str]]]] = {
    "cuts": ("ResNet-20, from 20 to 80 % fewer MACs: before any training", cuts),
    "cuts-vgg": ("VGG-16 of a quarter of the width: before any training", cuts),
    "curve": ("ResNet-20, from 20 to 80 % fewer MACs: fine-tuned", curve),
    "half": ("ResNet-20 and ResNet-56 at half of the MACs", half),
    "mlp": ("A perceptron on MNIST", mlp),
    "passes": ("Several passes", passes),
    "paper": ("The paper's networks", paper),
}


def page(out: Path) -> str:
    """The whole page, from the results in a folder."""
    parts = [HEAD]
    machines: set[str] = set()
    for study, (title, write) in SECTIONS.items():
        rows = rows_of(out, study)
        if rows:
            machines |= {row["machine"] for row in rows}
            parts += [f"## {title}\n", NOTES[study], *write(rows)]
    drawn = out / "selection.json"
    if drawn.exists():
        parts += ["### Gammas drawn at random\n", NOTES["draws"], *draws(json.loads(drawn.read_text())["rows"])]
    cases = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("digits*.json"))}
    if cases:
        parts += ["## Digits\n", NOTES["digits"], *digits(cases)]
    missing = [title for study, (title, _) in SECTIONS.items() if not rows_of(out, study)]
    missing += [name for name in PAPER_NAMES.values() if not list((out / "paper").glob(f"{FILES[name]}-*.json"))]
    if missing:
        parts.append(
            f"Not measured yet, for want of time on the machine: {'; '.join(missing)}. Nor is what is left blank above.\n"
        )
    parts.append(f"Measured on: {'; '.join(sorted(machines))}.\n")
    return "\n".join(parts)
