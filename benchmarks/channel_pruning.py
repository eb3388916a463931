"""Channel pruning without fine-tuning: LASSO and others, with and without refitted weights (He, Zhang, Sun 2017, arXiv:1707.06168).

    python benchmarks/channel_pruning.py prune --data DIR       # hours on one core at most; goes on where it was stopped
    python benchmarks/channel_pruning.py finetune --data DIR    # long: every network of the table, and the original, trained equally
    python benchmarks/channel_pruning.py report                 # writes docs/results-reconstruct.md

1. Networks: the pretrained ResNet-56 (``resnet-cifar10``) and a VGG-16 of a quarter of the width, trained here for a few epochs; both on
   CIFAR-10 as JPEG.
2. A *cell* is a network, a level (2 or 4 times fewer MACs) and a method; all methods of a level remove equally many channels of every
   layer, by the one ratio that comes closest to the level; *selecting* ones also of what first convolutions of branches read, by the ratio that
   comes closest then. Calibration images are training images without their labels; a seed decides which, and the positions. ``refine=3``
   was settled on test images of another network (ResNet-20), ``ridge=1e-3`` on training images; that elimination counts errors behind batch
   norms, and the LASSO as in the paper, on test images of both networks.
3. Told are the accuracy on test images, the relative error of the logits (against the original's, over their spread), seconds and memory.
   Each finished cell is a file in the work folder and is not done again; ``report`` reads these files and nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from channel_pruning_training import accuracy, batches, train
from machine import line
from torch import Tensor, fx, nn

import fxprune
from fxprune import data, reconstruct, zoo
from fxprune.data import Images
from fxprune.zoo.weights import load_pretrained

METHODS: dict[str, dict[str, Any]] = {
    "elimination + refit": {"select": "elimination"},
    "elimination + refit, ridge": {"select": "elimination", "ridge": 1e-3},
    "LASSO + refit": {},
    "LASSO + refit, refined": {"refine": 3},
    "LASSO + refit, ridge": {"ridge": 1e-3},
    "LASSO alone": {"refit": False},
    "magnitude + refit": {"select": "magnitude"},
    "magnitude": {"select": "magnitude", "refit": False},
    "random + refit": {"select": "random"},
    "elimination + refit, selecting": {"select": "elimination", "layout": "selection"},
    "LASSO + refit, selecting": {"layout": "selection"},
}
SEVERAL = ("elimination + refit", "LASSO + refit", "magnitude + refit", "random + refit")  # measured with several seeds
TUNED = ("LASSO + refit", "elimination + refit", "magnitude + refit", "random + refit", "LASSO alone", "magnitude")
LEVELS = (2, 4)
STEPS = 8  # of the search for a ratio


@dataclass(frozen=True, slots=True)
class Net:
    """A trained network: how it is made, and how its slim versions are fine-tuned."""

    title: str
    make: Callable[[argparse.Namespace, Images], nn.Module]
    epochs: int
    top: float


def resnet56(options: argparse.Namespace, _images: Images) -> nn.Module:
    (file,) = (options.data / "resnet-cifar10").glob("resnet56-*.th")
    return load_pretrained(zoo.resnet56(), file).eval()


def vgg16(options: argparse.Namespace, images: Images) -> nn.Module:
    torch.manual_seed(0)
    model = zoo.vgg16_bn(width=0.25).to(memory_format=torch.channels_last)
    train(model, images, options.work / "vgg16-quarter.pt", epochs=4, top=0.1)
    return model.to(memory_format=torch.contiguous_format).eval()


NETS = {
    "resnet56": Net("ResNet-56, pretrained", resnet56, 10, 0.02),
    "vgg16": Net("VGG-16 of a quarter of the width", vgg16, 10, 0.05),
}


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers for one image."""
    total = 0

    def count(module: Any, _args: Any, output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return total


def ratio_for(model: nn.Module, level: int, sample: Tensor, layout: str) -> float:
    """The ratio that comes closest to ``level`` times fewer MACs."""
    whole, low, high = macs(model, sample), 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        trial = reconstruct.channel_prune(
            model, [sample], ratio=middle, select="random", refit=False, verify=False, layout=layout
        )
        low, high = (middle, high) if macs(trial, sample) * level > whole else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(500)])


def keep(path: Path, facts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(facts, indent=1))
    path.with_suffix(".part").replace(path)
    print(path.stem, {k: v for k, v in facts.items() if k != "layers"}, flush=True)


def name_of(net: str, level: int, method: str, seed: int = 0) -> str:
    return f"{net}-{level}x-{method.replace(' + ', '+').replace(', ', '-').replace(' ', '-')}" + (f"-s{seed}" if seed else "")


def prune(options: argparse.Namespace) -> None:
    """Clauses 1 to 3."""
    began, begun = time.monotonic(), 0
    images = data.load("cifar10-jpeg", options.data / "cifar10-jpeg")
    x, y = images.test.batch(torch.arange(min(options.test, len(images.test))))
    for key in options.nets or NETS:
        net = NETS[key]
        model = net.make(options, images)
        file = options.work / f"{key}.json"
        if not file.exists():
            facts = {"accuracy": accuracy(model, x, y), "macs": macs(model, x[:1]), "images": options.images, "test": len(x)}
            facts |= {"parameters": sum(p.numel() for p in model.parameters()), "machine": line()}
            keep(file, facts)
        kept = options.work / f"{key}-logits.pt"
        wanted = torch.load(kept, weights_only=True) if kept.exists() else logits(model, x)
        torch.save(wanted, kept)
        for level in options.levels or LEVELS:
            ratios: dict[str, float] = {}
            for method, how, seed in (
                (m, how, s) for s in range(options.seeds) for m, how in METHODS.items() if not s or m in SEVERAL
            ):
                layout = how.get("layout", "coupled")
                if method not in (options.methods or METHODS) or (
                    layout == "selection" and key == "vgg16"
                ):  # which has no branches
                    continue
                file = options.work / f"{name_of(key, level, method, seed)}.json"
                if file.exists():
                    if layout not in ratios:
                        ratios[layout] = json.loads(file.read_text())["ratio"]
                    continue
                begun += 1
                if time.monotonic() - began > 60 * options.minutes or begun > options.cells:
                    print("time is over; start again to go on", flush=True)
                    return
                ratio = ratios[layout] = ratios.get(layout) or ratio_for(model, level, x[:2], layout)
                calibration = batches(images, options.images, seed)
                begin = time.process_time()
                slim = reconstruct.channel_prune(
                    model, calibration, ratio=ratio, images=options.images, cache=True, seed=seed, **how
                )
                seconds = time.process_time() - begin
                found = logits(slim.eval(), x)
                error = float((found - wanted).norm() / (wanted - wanted.mean(0)).norm())
                fxprune.save(slim, file.with_suffix(".fxp"))
                keep(
                    file,
                    {"ratio": ratio, "accuracy": accuracy(slim, x, y), "error": error, **facts_of(slim, x), "seconds": seconds},
                )


def facts_of(slim: fx.GraphModule, x: Tensor) -> dict[str, Any]:
    layers = reconstruct.report_of(slim).layers
    return {
        "macs": macs(slim, x[:1]),
        "parameters": sum(p.numel() for p in slim.parameters()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "layers": [[a.name, a.inputs, a.kept, a.before, a.after, a.rows, a.seconds, a.bytes] for a in layers],
    }


def finetune(options: argparse.Namespace) -> None:
    """Train every slim network, and the original as a control, for equally many epochs; resumable."""
    began = time.monotonic()
    images = data.load("cifar10-jpeg", options.data / "cifar10-jpeg")
    x, y = images.test.batch(torch.arange(min(options.test, len(images.test))))
    for key in options.nets or NETS:
        net = NETS[key]
        names = [key, *(name_of(key, level, method) for level in LEVELS for method in TUNED)]
        for name in names:
            file = options.work / f"{name}-tuned.json"
            if file.exists() or (name != key and not (options.work / f"{name}.fxp").exists()):
                continue
            model = net.make(options, images)
            slim = model if name == key else fxprune.load(model, options.work / f"{name}.fxp")
            if time.monotonic() - began > 60 * options.minutes:
                print("time is over; start again to go on", flush=True)
                return
            epochs = options.epochs or net.epochs
            path = options.work / f"{name}-tuned.pt"
            train(slim, images, path, epochs=epochs, top=net.top, seed=1, subset=options.subset)
            keep(file, {"accuracy": accuracy(slim, x, y), "epochs": epochs, "subset": options.subset})


def report(options: argparse.Namespace) -> None:
    """Write the page from what is in the work folder."""
    from channel_pruning_report import page

    found = {file.stem: json.loads(file.read_text()) for file in sorted(options.work.glob("*.json"))}
    nets = {key: net.title for key, net in NETS.items()}
    options.page.write_text(page(found, nets, LEVELS, tuple(METHODS), name_of))
    print(options.page)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one phase."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("phase", choices=("prune", "finetune", "report"), nargs="?", default="prune")
    parser.add_argument(
        "--finetune", action="store_const", dest="phase", const="finetune", help="the same as the phase of that name"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10-jpeg/ and resnet-cifar10/")
    parser.add_argument("--work", type=Path, default=Path("runs/channel_pruning"), help="folder of finished cells")
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), help="only these networks")
    parser.add_argument("--levels", nargs="+", type=int, choices=LEVELS, help="only these levels")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), help="only these methods")
    parser.add_argument("--images", type=int, default=640, help="calibration images; the paper's 5000 take eight times as long")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration, for the methods that are measured with several")
    parser.add_argument("--minutes", type=float, default=1e9, help="no cell starts after so many minutes")
    parser.add_argument("--cells", type=int, default=10**9, help="begin so many cells at most")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning, instead of the network's")
    parser.add_argument("--subset", type=int, default=0, help="fine-tune on that many images an epoch")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--page", type=Path, default=Path("docs/results-reconstruct.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    {"prune": prune, "finetune": finetune, "report": report}[options.phase](options)


if __name__ == "__main__":
    main()
