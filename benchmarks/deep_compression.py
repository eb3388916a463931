"""Deep Compression's pruning stage on MNIST: LeNet-300-100 and LeNet-5 (Han et al. 2015, arXiv:1506.02626, table 1, figures 5 and 6).

    python benchmarks/deep_compression.py train --data DIR --minutes 9     # again and again until nothing is left to do
    python benchmarks/deep_compression.py report                          # writes docs/results-sparse.md and its figures

1. A *run* trains one network from one seed: ``baseline`` from scratch, the others from the baseline's weights, all for equally many epochs
   with one cosine learning rate: ``control`` (nothing pruned), ``one-shot`` (pruned before the first epoch), ``iterative`` (in rounds at
   the starts of the first epochs), ``gradual`` (cubic, every few steps), ``paper`` (iterative, with the paper's densities per layer).
2. Densities per layer come from the sensitivity of the seed's baseline, measured on training images (``Sensitivity.allocate``), so that
   all together reach the paper's density. No test image decides anything.
3. Each finished run is a file in the work folder, so that a run is never repeated; ``report`` reads these files and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import line
from torch import Tensor, nn

from fxprune import zoo
from fxprune.data import mnist
from fxprune.sparse import Gradual, Penalty, by_density, densities, density, permanent, scan, set_masks
from fxprune.sparse.sensitivity import write_whole

BATCH = 128


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and how it is trained."""

    make: Callable[[], nn.Module]
    rate: float
    epochs: int
    again: int
    rounds: int
    density: float
    paper: dict[str, float]
    decay: float = 5e-4
    scanned: int = 5000  # training images that sensitivity is measured on
    at: tuple[float, ...] = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01, 0.005)


SUBJECTS = {
    "lenet300": Subject(zoo.lenet300, 0.1, 12, 15, 6, 0.08, {"hidden.0": 0.08, "hidden.2": 0.09, "classifier": 0.26}),
    "lenet5": Subject(
        zoo.lenet5,
        0.03,
        4,
        4,
        2,
        0.084,
        {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
        scanned=2000,
        at=(0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01),
    ),
}
HOW = ("control", "one-shot", "iterative", "gradual", "paper")
CUTS = (0.3, 0.15, 0.08, 0.04)  # densities at which L1 and L2 are compared


class Images:
    """Training and test images, decoded once."""

    def __init__(self, root: Path) -> None:
        train, test = mnist(root)
        self.train = train.batch(torch.arange(len(train)))
        self.test = test.batch(torch.arange(len(test)))


def fit(
    model: nn.Module, images: Images, epochs: int, rate: float, seed: int, penalty: Penalty, each: Callable[[int, int], None]
) -> None:
    """Train in place along a cosine from ``rate`` to 0; ``each(epoch, step)`` is called before every step."""
    x, y = images.train
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    total, step = epochs * math.ceil(len(x) / BATCH), 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for number, picked in enumerate(order.split(BATCH)):
            each(epoch, number)
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad()
            F.cross_entropy(model(x[picked]), y[picked]).backward()
            penalty.add_gradient()
            optimizer.step()
            step += 1
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: tuple[Tensor, Tensor]) -> float:
    """Share of images classified correctly."""
    x, y = images
    model.to(memory_format=torch.channels_last).eval()
    return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True)) / len(y)


def nothing(_epoch: int, _step: int) -> None:
    """No pruning in this step."""


class Work:
    """The runs that are done, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def done(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def weights(self, name: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = torch.load(self.folder / f"{name}.pt", weights_only=True)
        return found

    def facts(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def keep(self, name: str, model: nn.Module | None, facts: dict[str, Any]) -> None:
        if model is not None:
            torch.save({k: v.contiguous() for k, v in permanent(model).state_dict().items()}, self.folder / f"{name}.pt")
        write_whole(self.folder / f"{name}.json", json.dumps(facts, indent=1).encode())
        print(name, json.dumps({k: v for k, v in facts.items() if not isinstance(v, (dict, list))}), flush=True)


def baseline(work: Work, images: Images, net: str, seed: int, order: int = 2) -> None:
    subject, name = SUBJECTS[net], f"{net}-{seed}-baseline" + ("-l1" if order == 1 else "")
    torch.manual_seed(seed)
    model = subject.make()
    begin = time.process_time()
    # The strength of L1 is set so that both lose about as much of their training loss to the term at the weights' usual size.
    fit(model, images, subject.epochs, subject.rate, seed, Penalty(model, subject.decay if order == 2 else 1e-5, order), nothing)
    work.keep(name, model, {"accuracy": accuracy(model, images.test), "seconds": time.process_time() - begin})


def start(work: Work, net: str, name: str) -> nn.Module:
    model = SUBJECTS[net].make()
    model.load_state_dict(work.weights(name))
    return model


def sensitivity(work: Work, images: Images, net: str, seed: int) -> None:
    model = start(work, net, f"{net}-{seed}-baseline")
    part = tuple(t[: SUBJECTS[net].scanned] for t in images.train)
    found = scan(model, lambda m: accuracy(m, part), SUBJECTS[net].at, path=work.folder / f"{net}-{seed}-scan.json.part")
    facts = {"baseline": found.baseline, "curves": found.accuracy, "allocated": found.allocate(SUBJECTS[net].density)}
    facts["suggested"] = {k: [v.density, v.threshold, v.quality] for k, v in found.suggest(0.01).items()}
    found.plot(work.folder / f"sensitivity-{net}-{seed}.svg", f"{net}: accuracy against density, one layer at a time")
    work.keep(f"{net}-{seed}-scan", None, facts)


def retrain(work: Work, images: Images, net: str, seed: int, how: str) -> None:
    subject = SUBJECTS[net]
    model = start(work, net, f"{net}-{seed}-baseline")
    final = subject.paper if how == "paper" else work.facts(f"{net}-{seed}-scan")["allocated"]
    each, direct = nothing, math.nan
    if how == "one-shot":
        set_masks(model, by_density(model, final))
        direct = accuracy(model, images.test)
    elif how in ("iterative", "paper"):

        def each(epoch: int, step: int) -> None:
            if step == 0 and epoch < subject.rounds:
                share = (epoch + 1) / subject.rounds
                set_masks(model, by_density(model, {k: v**share for k, v in final.items()}))

    elif how == "gradual":
        per_epoch = math.ceil(len(images.train[0]) / BATCH)
        gradual = Gradual(model, final, start=1, end=subject.rounds * per_epoch, every=50)

        def each(_epoch: int, _step: int) -> None:
            gradual.step()

    begin = time.process_time()
    fit(model, images, subject.again, subject.rate, seed + 100, Penalty(model, subject.decay, 2), each)
    facts = {"accuracy": accuracy(model, images.test), "density": density(model), "densities": densities(model)}
    work.keep(f"{net}-{seed}-{how}", model, facts | {"direct": direct, "seconds": time.process_time() - begin})


def l1_or_l2(work: Work, images: Images, net: str, seed: int, order: int, cut: float) -> None:
    """Trained with one penalty, cut to one density per layer in one shot, retrained for three epochs with either."""
    subject = SUBJECTS[net]
    first = f"{net}-{seed}-baseline" + ("-l1" if order == 1 else "")
    model = start(work, net, first)
    set_masks(model, by_density(model, {k: min(1.0, v / subject.density * cut) for k, v in subject.paper.items()}))
    facts: dict[str, Any] = {"density": density(model), "before": accuracy(model, images.test)}
    for again in (1, 2):
        tuned = copy.deepcopy(model)
        strength = subject.decay if again == 2 else 1e-5
        fit(tuned, images, 3, subject.rate / 5, seed + 200, Penalty(tuned, strength, again), nothing)
        facts[f"after-l{again}"] = accuracy(tuned, images.test)
    work.keep(f"{net}-{seed}-l{order}-{cut}", None, facts)


def jobs(work: Work, images: Images, seeds: int) -> list[tuple[str, Callable[[], None]]]:
    """All runs by name, in an order in which each finds what it starts from; what matters most comes first."""
    found: list[tuple[str, Callable[[], None]]] = []

    def series(net: str, seed: int, ways: tuple[str, ...]) -> None:
        found.append((f"{net}-{seed}-baseline", lambda: baseline(work, images, net, seed)))
        found.append((f"{net}-{seed}-scan", lambda: sensitivity(work, images, net, seed)))
        found.extend((f"{net}-{seed}-{how}", lambda how=how: retrain(work, images, net, seed, how)) for how in ways)  # type: ignore[misc]

    series("lenet5", 0, ("iterative", "one-shot", "control"))
    for seed in range(seeds):
        series("lenet300", seed, ("iterative", "one-shot", "control"))
        if seed == 0:
            found.append(("lenet300-0-baseline-l1", lambda: baseline(work, images, "lenet300", 0, 1)))
            for cut in CUTS:
                for order in (1, 2):
                    name = f"lenet300-0-l{order}-{cut}"
                    found.append((name, lambda order=order, cut=cut: l1_or_l2(work, images, "lenet300", 0, order, cut)))  # type: ignore[misc]
    for seed in range(seeds):
        for net in SUBJECTS:
            series(net, seed, HOW)
    return list(dict(found).items())


def train(work: Work, data: Path, minutes: float, seeds: int) -> None:
    """Do runs until the time is over; the one that has begun is finished."""
    begin = time.monotonic()
    images = Images(data)
    for name, job in jobs(work, images, seeds):
        if work.done(name):
            continue
        if time.monotonic() - begin > 60 * minutes:
            print("time is over; start again to go on", flush=True)
            return
        job()
    print("all runs are done", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"), help="the folder that holds MNIST/raw")
    parser.add_argument("--work", type=Path, default=Path("build/deep_compression"), help="where runs are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the report goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="no run starts after so many minutes")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(options.work)
    if options.what == "train":
        train(work, options.data, options.minutes, options.seeds)
    else:
        from deep_compression_report import write

        write(work, options.docs, options.seeds, line())


if __name__ == "__main__":
    main()
