"""Models by name, weights by path, example inputs by shape.

1. A model is ``torchvision:NAME``, ``timm:NAME``, ``zoo:NAME`` or ``package.module:factory``: a function (or class) that returns a module, or a
   module. The current folder is searched first. Nothing is downloaded: models have random weights, the same in every run, until ``--weights``
   gives them others.
2. Weights are read without running code: ``torch.load(weights_only=True)``, or safetensors. The state dict may lie under ``state_dict``,
   ``model``, ``model_state_dict`` or ``module``, and its names may begin with ``module.`` or ``_orig_mod.``.
3. An input is written ``2x3x224x224``, with ``:int64`` behind it for another dtype than the model's.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from fxprune.errors import FileFormatError, FxpruneError, PlanMismatchError, WeightError

NESTED = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.")
FAMILIES = ("torchvision", "timm", "zoo")


def build(name: str, arguments: Sequence[str] = (), weights: Path | None = None) -> nn.Module:
    """Clauses 1 and 2: the model of a name, in evaluation mode.

    Args:
        name: clause 1.
        arguments: ``NAME=VALUE`` each, passed to the factory; a value that is JSON is what JSON says, anything else a text.
        weights: clause 2.

    Raises:
        BadParameter: there is no such model, or it does not take the arguments.
        WeightError: the weights are not the model's.
        FileFormatError: the file of weights cannot be read.
    """
    factory = _factory(name)
    options = dict(map(_option, arguments))
    if isinstance(factory, nn.Module):
        model = factory
    else:
        try:
            inspect.signature(factory).bind(**options)
        except TypeError as error:
            raise typer.BadParameter(f"{name} cannot be built with these arguments: {error}.") from error
        except ValueError:  # no signature to be had: calling it will tell
            pass
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = factory(**options)
    if not isinstance(model, nn.Module):
        raise typer.BadParameter(f"{name} gave {model!r:.80}; a model is a torch.nn.Module.")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise typer.BadParameter(f"--arg takes NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _factory(name: str) -> Callable[..., Any] | nn.Module:
    family, colon, rest = name.partition(":")
    if not colon or not rest:
        raise typer.BadParameter(
            f"{name!r} is no model. Models are written torchvision:NAME, timm:NAME, zoo:NAME or package.module:factory."
        )
    if family == "torchvision":
        return _torchvision(rest)
    if family == "timm":
        return _timm(rest)
    if family == "zoo":
        from fxprune import zoo

        makers = {n: f for n, f in vars(zoo).items() if inspect.isfunction(f) and n != "load_pretrained"}
        return _known(makers, rest, "fxprune.zoo")
    found: Callable[..., Any] | nn.Module = _imported(family, rest)
    return found


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    return _known({n: models.get_model_builder(n) for n in models.list_models()}, name, "torchvision")


def _timm(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise typer.BadParameter("timm: models need the package timm (pip install timm).") from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3)
        raise typer.BadParameter(f"timm has no model {name!r}.{_hint(near)}")

    def make(**options: Any) -> nn.Module:
        made: nn.Module = timm.create_model(name, pretrained=False, **options)
        return made

    return make


def _known(makers: Mapping[str, Callable[..., Any]], name: str, where: str) -> Callable[..., Any]:
    if name not in makers:
        raise typer.BadParameter(f"{where} has no model {name!r}.{_hint(get_close_matches(name, makers, 3))}")
    return makers[name]


def _hint(near: Sequence[str]) -> str:
    return f" Did you mean {', '.join(near)}?" if near else ""


def _imported(module: str, name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise typer.BadParameter(f"there is no module {module!r} here or among the installed packages.") from error
        raise
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], 3)
            raise typer.BadParameter(f"{module} has no {part!r}.{_hint(near)}")
        found = getattr(found, part)
    if not callable(found):
        raise typer.BadParameter(f"{module}:{name} is {found!r:.80}; it has to be a function that returns a model, or a model.")
    return found


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a file (clause 2).

    Raises:
        FileFormatError: the file cannot be read without running code, or holds no state dict.
        WeightError: names or shapes are not the model's.
    """
    state = _stripped(_nested(read(path), path))
    own = model.state_dict()
    missing, extra = [n for n in own if n not in state], [n for n in state if n not in own]
    other = [n for n, t in state.items() if n in own and t.shape != own[n].shape]
    if missing or extra or other:
        said = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
        said += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
        said += [f"{len(other)} of another shape ({', '.join(_shapes(n, state, own) for n in other[:3])})"] if other else []
        raise WeightError(
            f"{path} does not hold this {type(model).__name__}'s weights: {'; '.join(said)}. Build the model as it was trained (--arg NAME=VALUE).",
            node=str(path),
            expected=len(own),
            got=len(state),
        )
    model.load_state_dict(state)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shapes(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(state[name].shape)}, not {tuple(own[name].shape)}"


def read(path: Path) -> Any:
    """What a file of weights holds (clause 2).

    Raises:
        FileFormatError: it cannot be read without running code.
    """
    if path.suffix == ".safetensors":
        from fxprune.io.container import Container

        with Container(path) as file:
            return {name: file.tensor(entry) for name, entry in file.entries.items()}
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        what = (
            "is empty"
            if not path.stat().st_size
            else "holds more than tensors (a whole model, say), and reading that could run code: weights_only=True refuses it"
            if "Unsupported global" in str(error) or "Unsupported class" in str(error)
            else f"is no file of weights, or is damaged ({type(error).__name__})"
        )
        raise FileFormatError(
            f"{path} cannot be read as weights: it {what}. Save the state dict, torch.save(model.state_dict(), path), or a safetensors file.",
            node=str(path),
            got=type(error).__name__,
        ) from error


def _nested(found: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        there = f"a dict of {', '.join(map(repr, list(found)[:4]))}" if isinstance(found, Mapping) and found else f"{found!r:.60}"
        raise FileFormatError(
            f"{path} holds no state dict (names with tensors), alone or under {', '.join(map(repr, NESTED))}: it holds {there}. "
            "Save the state dict alone.",
            node=str(path),
            got=type(found).__name__,
        )
    return {str(name): tensor for name, tensor in found.items()}


def _stripped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def example(shapes: Sequence[str], model: nn.Module) -> tuple[Tensor, ...] | None:
    """Clause 3: tensors of these shapes; None where there are none, and they are inferred.

    Raises:
        BadParameter: a text that is no shape.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device="cpu"))
    made = []
    for number, text in enumerate(shapes):
        sizes, _, dtype = text.partition(":")
        kind = getattr(torch, dtype, None) if dtype else like.dtype
        try:
            shape = [int(size) for size in sizes.lower().split("x")]
        except ValueError:
            shape = []
        if not shape or any(size < 1 for size in shape) or not isinstance(kind, torch.dtype):
            raise typer.BadParameter(f"--input takes a shape such as 2x3x224x224, or 2x16:int64, got {text!r}.")
        if kind.is_floating_point:
            made.append(torch.randn(shape, generator=torch.Generator().manual_seed(number), device="cpu").to(kind))
        else:
            made.append(torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(number), device="cpu").to(kind))
    return tuple(made) or None


def plan_in(path: Path) -> tuple[Any, str]:
    """The plan that a file holds (JSON, or a slim model's safetensors), and the fingerprint of its original where the file tells it.

    Raises:
        FxpruneError: it holds none.
    """
    from fxprune.io import describe
    from fxprune.plan import Plan

    content = b"" if path.is_dir() else path.read_bytes()[:10]
    if (
        path.is_dir() or path.suffix == ".safetensors" or content[8:10] == b'{"'
    ):  # a safetensors file begins so, whatever its name
        said = describe(path)
        return said.plan, said.origin.fingerprint
    try:
        return Plan.from_json(path.read_bytes().decode()), ""
    except (UnicodeDecodeError, PlanMismatchError) as error:
        why = str(error) if isinstance(error, PlanMismatchError) else "it is no text"
        raise FxpruneError(
            f"{path} holds no plan: {why.removeprefix('this is not a plan: ')} Give a plan's JSON text, or what `fxprune slim -o` wrote.",
            node=str(path),
        ) from error
