"""Where a sparse weight is faster than a dense one on this CPU, and where it is slower.

    python benchmarks/sparse_inference.py                      # prints a Markdown table
    python benchmarks/sparse_inference.py --json FILE

1. One linear layer, y = W x + b, float32, one thread, without gradients: ``nn.Linear`` against the same layer with a ``torch.sparse_csr`` weight
   (``fxprune.sparse.to_csr``) and against ``scipy.sparse``'s CSR product. Weights are pruned by magnitude, so zeros lie where they fall.
2. CPU seconds of the process per call: the fastest of several interleaved repeats, each of many calls. "speed-up" is dense / sparse: below 1 the
   sparse layer is *slower*.
3. LeNet-5 and LeNet-300-100 as a whole, pruned to 8 %: dense against ``to_csr``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import line
from torch import nn

from fxprune import zoo
from fxprune.sparse import by_density, permanent, set_masks, to_csr, to_scipy

SHAPES = ((300, 784), (500, 800), (2048, 2048))
BATCHES = (1, 64)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)


def fastest(calls: dict[str, Callable[[], object]], seconds: float, repeats: int) -> dict[str, float]:
    """CPU seconds per call (clause 2)."""
    best: dict[str, float] = {}
    numbers = {}
    for name, call in calls.items():
        call()
        begin = time.process_time()
        call()
        numbers[name] = max(1, int(seconds / max(1e-7, time.process_time() - begin)))
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.process_time()
            for _ in range(numbers[name]):
                call()
            spent = (time.process_time() - begin) / numbers[name]
            best[name] = min(best.get(name, spent), spent)
    return best


def layer(shape: tuple[int, int], batch: int, density: float, seconds: float, repeats: int) -> dict[str, float]:
    """One row of the table."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(shape[1], shape[0]))
    set_masks(dense, by_density(dense, density))
    bare = permanent(dense).eval()
    sparse, matrix = to_csr(bare), to_scipy(bare[0].weight.detach())
    x = torch.randn(batch, shape[1])
    columns, bias = x.T.numpy(), bare[0].bias.detach().numpy()[:, None]
    assert torch.allclose(sparse(x), bare(x), atol=1e-4)
    calls = {"dense": lambda: bare(x), "torch csr": lambda: sparse(x), "scipy csr": lambda: matrix @ columns + bias}
    return fastest(calls, seconds, repeats)


def network(make: Callable[[], nn.Module], batch: int, seconds: float, repeats: int) -> dict[str, float]:
    """A whole LeNet at 8 % (clause 3)."""
    torch.manual_seed(0)
    model = make()
    set_masks(model, by_density(model, 0.08))
    bare, sparse, x = permanent(model).eval(), to_csr(model), torch.randn(batch, 1, 28, 28)
    return fastest({"dense": lambda: bare(x), "torch csr": lambda: sparse(x)}, seconds, repeats)


def measure(seconds: float, repeats: int) -> dict[str, dict[str, float]]:
    """All rows."""
    rows = {}
    with torch.no_grad():
        for shape in SHAPES:
            for batch in BATCHES:
                for density in DENSITIES:
                    rows[f"{shape[0]} x {shape[1]} | {batch} | {density:.0%}"] = layer(shape, batch, density, seconds, repeats)
        for name, make in (("LeNet-300-100", zoo.lenet300), ("LeNet-5", zoo.lenet5)):
            for batch in BATCHES:
                rows[f"{name} | {batch} | 8%"] = network(make, batch, seconds, repeats)
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: microseconds per call, and how many times faster than dense."""
    lines = [
        "| weight or network | batch | density | dense, us | torch csr, us | speed-up | scipy csr, us | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [f"{1e6 * row['dense']:.0f}"]
        for kind in ("torch csr", "scipy csr"):
            cells += [f"{1e6 * row[kind]:.0f}", f"{row['dense'] / row[kind]:.2f}"] if kind in row else ["", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.02, help="CPU seconds per measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.seconds, options.repeats)
    print(table(rows))
    print(f"\n{line()}")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": line(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
