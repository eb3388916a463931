"""Networks by name, as they were built, or as a plan left them."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import zoo
from fxprune.data import Images, load
from fxprune.errors import FxpruneError
from fxprune.plan import Plan
from fxprune.train.recipe.checkpoint import State, load_state
from fxprune.train.recipe.settings import Settings

FETCHED = ("mnist", "cifar10", "cifar100", "svhn")  # by torchvision
# What torch.load and load_state_dict raise of files that hold something else, and how many lines of it are shown.
UNFIT = (RuntimeError, LookupError, AttributeError, TypeError, ValueError, EOFError, pickle.UnpicklingError)
LINES = 3
MLP = "mlp-"  # mlp-500-300: a perceptron with these hidden widths


def prepared(settings: Settings, *, download: bool = False) -> Images:
    """The image set of a run, cut to its subset.

    Raises:
        FxpruneError: it is not there, cannot be fetched, or is damaged.
    """
    try:
        images = load(settings.data, settings.root, download=download, side=settings.side)
    except (OSError, RuntimeError) as error:
        hint = "" if download or settings.data not in FETCHED else " --download lets torchvision fetch them."
        raise FxpruneError(
            f"the images of {settings.data!r} cannot be read from {settings.root!r}: {str(error).rstrip('.')}.{hint}",
            node=settings.data,
            got=type(error).__name__,
        ) from error
    if not settings.subset:
        return images
    train = images.train.subset(torch.arange(min(settings.subset, len(images.train)), device="cpu"))
    return Images(train, images.test, images.classes, images.shape, images.padding, images.mirror)


def build(settings: Settings, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The unpruned network with the random weights of the run's seed, or those of its file.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: a name that is neither the zoo's nor torchvision's, or a file that does not hold this network's weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _named(settings, classes, shape)
    if settings.weights:
        try:
            zoo.load_pretrained(model, Path(settings.weights))
        except UNFIT as error:
            reason = "\n".join(f"{type(error).__name__}: {error}".splitlines()[:LINES])
            raise ValueError(f"{settings.weights} does not hold the weights of {settings.network}. {reason}") from error
    return model


def _named(settings: Settings, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    name = settings.network
    if name.startswith("torchvision/"):
        from torchvision import models

        model: nn.Module = models.get_model(name.removeprefix("torchvision/"), num_classes=classes)
        return model
    if name.startswith(MLP):
        hidden = [int(width) for width in name.removeprefix(MLP).split("-")]
        return zoo.mlp(shape[0] * shape[1] * shape[2], *hidden, classes)
    makers: dict[str, Callable[..., Any]] = {
        n: f for n, f in vars(zoo).items() if inspect.isfunction(f) and "num_classes" in _takes(f)
    }
    if name not in makers:
        raise ValueError(
            f"network must be one of {', '.join(sorted(makers))}, mlp-WIDTH-WIDTH or torchvision/NAME, got {name!r}."
        )
    options = {"num_classes": classes, "width": settings.width, "in_channels": shape[0]}
    made: nn.Module = makers[name](**{key: value for key, value in options.items() if key in _takes(makers[name])})
    return made


def _takes(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def restored(settings: Settings, state: State, images: Images) -> nn.Module:
    """The network of a state, on the CPU, in the dtype of its weights."""
    model = build(settings, images.classes, images.shape)
    if state.plan:
        model = fxprune.apply(model, Plan.from_json(state.plan), example(images), absorb=settings.absorb, verify=False)
    if state.model:
        model.to(dtype_of(state.model))
        model.load_state_dict(state.model)
    return model.train()


def example(images: Images, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two images."""
    return images.test.read(torch.arange(2, device="cpu")).to(dtype)


def dtype_of(state: dict[str, Tensor]) -> torch.dtype:
    """The dtype of the weights of a state dict."""
    return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())


def costs(model: nn.Module, images: Images) -> tuple[int, int]:
    """Parameters, and MACs of one image."""
    parameter = next(model.parameters())
    image = images.test.read(torch.arange(1, device="cpu")).to(parameter.device, parameter.dtype)
    mode = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    model.train(mode)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def network_of(folder: str | Path) -> nn.Module:
    """The network of a run's folder as its last checkpoint left it, in eval mode on the CPU.

    Raises:
        FileNotFoundError: there is no run.
    """
    state = load_state(Path(folder))
    if state is None:
        raise FileNotFoundError(f"{folder} holds no run.")
    settings = Settings.from_json(state.settings)
    return restored(settings, state, prepared(settings)).eval()
