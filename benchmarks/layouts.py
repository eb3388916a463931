"""What ``layout="auto"`` takes, for gammas as sparse training leaves them: ``python -m benchmarks.layouts``.

1. Scale factors are drawn anew for every seed: in each batch norm a share of them, 35 to 85 %, is near zero (about 1e-3), the others lie
   log-normal around 0.5. Nothing is trained: what is compared is work and time at equal sums of |gamma| kept, not accuracy.
2. Both layouts at the same score, as ``fxprune/layouts.py`` makes them: the share of gammas that goes in each, the least milliseconds of
   interleaved calls on one thread, float32, by the processor's clock, and what was taken. A dash where no clock was asked, because selection saves
   no work.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from benchmarks.machine import facts
from fxprune import layouts, zoo
from fxprune.graph.channels import ChannelGraph

NETWORKS = {"ResNet-164": zoo.resnet164, "DenseNet-40": zoo.densenet40}
NOTE = re.compile(
    r"took '(?P<taken>\w+)'(?: \(at the same score 'coupled' removes (?P<coupled>[\d.]+)%, 'selection' (?P<selection>[\d.]+)%\))?"
    r"(?:: (?P<first>[\d.]+) ms a call with 'coupled', (?P<second>[\d.]+) ms)?"
)


def sparse(count: int, rng: torch.Generator) -> Tensor:
    """Clause 1."""
    share = 0.35 + 0.5 * torch.rand(1, generator=rng)
    large = 0.5 * (0.4 * torch.randn(count, generator=rng)).exp()
    small = 1e-3 * torch.randn(count, generator=rng).exp()
    return torch.where(torch.rand(count, generator=rng) < share, small, large)


def draw(model: nn.Module, seed: int) -> None:
    """New scale factors, in place."""
    rng = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data = sparse(m.num_features, rng)


def made(graph: ChannelGraph, layout: str, ratio: float | None) -> fxprune.Plan:
    """The plan of a layout."""
    return fxprune.plan(graph, ratio, layout=layout)


def measure(names: list[str], batches: list[int], ratios: list[float], seeds: int) -> list[dict[str, Any]]:
    """One row per network, batch, ratio and seed."""
    rows = []
    for name in names:
        model = NETWORKS[name]().eval()
        for batch in batches:
            images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            for seed in range(seeds):
                draw(model, seed)
                graph = fxprune.analyze(model, images)
                for ratio in ratios:
                    chosen = layouts.choose(graph, made, ratio, lambda _: "auto", time.process_time)
                    found = NOTE.search(chosen.note)
                    assert found is not None, chosen.note
                    rows.append({"network": name, "batch": batch, "seed": seed, "ratio": ratio, **found.groupdict()})
                    print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    told = [f"{row[key]} %" if row[key] else f"{row['ratio']:.0%}" for key in ("coupled", "selection")]
    times = [row[key] or "-" for key in ("first", "second")]
    return f"| {row['network']} | {row['batch']} | {row['ratio']:.0%} | {row['seed']} | {' | '.join((*told, *times))} | {row['taken']} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.1, 0.3, 0.6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", fxprune.FxpruneWarning)
    print("| network | batch | ratio | seed | coupled removes | selection removes | coupled, ms | selection, ms | taken |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = measure(options.networks, options.batches, options.ratios, options.seeds)
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
