"""Network Slimming on real data, beside its peers and equally trained controls: what docs/results.md shows.

    python benchmarks/slimming_results.py run --data DIR [STUDY ...]   # hours on one core; goes on where it was stopped
    python benchmarks/slimming_results.py report                       # writes docs/results.md from what was measured

1. A *study* is a list of *cells*; a finished cell is a JSON file below ``--out`` and is not done again. ``report`` reads these files, nothing else.
2. All networks of a comparison are trained by one loop (slimming_training.py) for equally many steps on the same images in the same
   order; the control is the whole network, trained as long without penalty.
3. Studies (slimming_studies.py): *curve* (ResNet-20 at equal MACs, several ways to choose channels), *half-...* (ResNet-20 and ResNet-56 at
   half of the MACs), *mlp* (the paper's perceptron), *passes* (multi-pass VGG-16 of a quarter of the width), *paper* (VGG-19, DenseNet-40 and
   ResNet-164 at the paper's ratios). Digits and random gammas are measured by network_slimming.py and selection.py, whose JSON files the report
   reads as well, when they are ``digits*.json`` and ``selection.json`` in ``--out``.
4. Peers (slimming_peers.py) get the same weights, the same MACs and the same fine-tuning.

DIR holds ``cifar10-jpeg/``, ``mnist/`` and ``resnet-cifar10/`` (``fxprune.data``, ``fxprune.zoo``).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from slimming_desk import Desk
from slimming_report import page
from slimming_studies import STUDIES
from slimming_training import Clock

import fxprune


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("run", "report"))
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}; all unless told")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/slimming"), help="folder of results and checkpoints")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--minutes", type=float, default=0, help="stop after that time with exit status 75; 0: go on to the end")
    parser.add_argument("--tests", type=int, default=4000, help="number of test images")
    parser.add_argument("--seeds", type=int, default=3, help="at most so many per study")
    parser.add_argument(
        "--longer", type=int, default=1, help="so many times as many steps; give these results an --out of their own"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.studies) - set(STUDIES))
    if unknown:
        parser.error(f"unknown studies: {', '.join(unknown)}")
    if options.phase == "report":
        options.page.write_text(page(options.out))
        return
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", fxprune.FxpruneWarning)
    clock = Clock(time.time() + 60 * options.minutes if options.minutes else 0)
    desk = Desk(options.data, options.out, clock, options.tests, options.seeds, options.longer)
    for name in options.studies or STUDIES:
        STUDIES[name](desk)


if __name__ == "__main__":
    main()
