"""Exports of slim models, checked: ONNX, ``torch.export`` programs, TorchScript.

1. The suffix says which: ``.onnx`` (the dynamo exporter), ``.pt2`` (``torch.export``), ``.pt`` or ``.torchscript`` (``torch.jit.trace``).
2. The leading dimension of the inputs stays open where the model allows it; ``Exported.dynamic`` says whether it did.
3. What was written is read again and run (ONNX by onnxruntime) on the example inputs, and with another number of samples where that is open; its
   outputs are held against the model's: ``max |a - b| / max |b| <= TOLERANCE``.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io as memory
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.inputs import Inputs, given
from fxprune.errors import FxpruneError, VerificationError
from fxprune.io.atomic import replacing

TOLERANCE = 1e-4
FORMATS = {".onnx": "ONNX", ".pt2": "torch.export", ".pt": "TorchScript", ".torchscript": "TorchScript"}

Run = Callable[[Inputs], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: where.
        format: clause 1.
        bytes: size of the file, and of the file of weights beside it if the exporter made one.
        dynamic: the number of samples is open.
        error: the greatest relative error of an output (clause 3).
        checked_with: what ran it.
    """

    path: str
    format: str
    bytes: int
    dynamic: bool
    error: float
    checked_with: str


def export(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any) -> Exported:
    """Write a model for another runtime, and check what was written (clauses 1 to 3). The model is only read.

    Args:
        model: a slim model, or any other.
        path: its suffix chooses the format.
        example_inputs: of one call, with numbers: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        FileNotFoundError: there is no such folder.
        FxpruneError: an unknown suffix, an exporter that refuses the model, or one that is not installed.
        InputError: example inputs of another kind.
        VerificationError: the file computes something else; it is removed.
    """
    place = Path(path)
    if place.suffix not in FORMATS:
        raise FxpruneError(f"{place} must end in {', '.join(FORMATS)}: the suffix chooses the format.", got=place.suffix)
    if not place.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder to write {place.name!r} into", str(place.parent))
    inputs = given(example_inputs)
    subject = copy.deepcopy(model).eval()
    exporter = {"ONNX": _onnx, "torch.export": _program, "TorchScript": _script}[FORMATS[place.suffix]]
    try:
        with _quiet(), torch.no_grad():
            dynamic, run = exporter(subject, place, inputs)
    except ImportError as error:
        raise FxpruneError(f"{FORMATS[place.suffix]} needs another package: {error}. Install fxprune[export].") from error
    apart = _error(subject, run, _calls(inputs, dynamic))
    if not apart <= TOLERANCE:
        place.unlink()
        raise VerificationError(
            f"{place} did not compute what the model computes (relative error {apart:.2g}, allowed {TOLERANCE}); it was removed.",
            expected=TOLERANCE,
            got=apart,
        )
    files = [place, *(f for f in (place.with_name(place.name + ".data"),) if f.exists())]
    said = "onnxruntime" if FORMATS[place.suffix] == "ONNX" else "torch"
    return Exported(str(place), FORMATS[place.suffix], sum(f.stat().st_size for f in files), dynamic, apart, said)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(memory.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _calls(inputs: Inputs, dynamic: bool) -> list[Inputs]:
    more = inputs.map(lambda x: torch.cat([x, x[:1]]) if x.dim() else x)
    return [inputs, more] if dynamic else [inputs]


def _opened(inputs: Inputs) -> tuple[Any, Any]:
    """Dynamic shapes for arguments and keyword arguments: one dimension for the leading one of every tensor."""
    batch = torch.export.Dim("batch")
    args, kwargs = torch.utils._pytree.tree_map(
        lambda x: {0: batch} if isinstance(x, Tensor) and x.dim() else None, (inputs.args, dict(inputs.kwargs))
    )
    return args, kwargs


def _exported(model: nn.Module, inputs: Inputs) -> tuple[bool, Any]:
    args, kwargs = _opened(inputs)
    shapes = {**_named(model, args), **kwargs} if kwargs else args
    call = (model, inputs.args, dict(inputs.kwargs))
    with contextlib.suppress(Exception):  # then the number of samples is fixed, and ``Exported`` says so
        return True, torch.export.export(*call, dynamic_shapes=shapes)
    try:
        return False, torch.export.export(*call)
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FxpruneError(f"torch.export does not take this model: {line}", got=type(error).__name__) from error


def _named(model: nn.Module, args: Sequence[Any]) -> dict[str, Any]:
    import inspect

    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False))


def _program(model: nn.Module, path: Path, inputs: Inputs) -> tuple[bool, Run]:
    dynamic, program = _exported(model, inputs)
    buffer = memory.BytesIO()
    torch.export.save(program, buffer)
    _write(path, buffer.getvalue())
    module = torch.export.load(path).module()
    return dynamic, lambda call: _tensors(module(*call.args, **call.kwargs))


def _onnx(model: nn.Module, path: Path, inputs: Inputs) -> tuple[bool, Run]:
    import onnxruntime
    import onnxscript  # noqa: F401 - what the exporter needs; its absence is told before minutes of work

    dynamic, program = _exported(model, inputs)
    try:
        torch.onnx.export(program, f=str(path), dynamo=True, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        line = str(error).strip().splitlines()[0]
        raise FxpruneError(f"the ONNX exporter does not take this model: {line}", got=type(error).__name__) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(call: Inputs) -> list[Tensor]:
        feed = dict(zip(names, (t.numpy() for t in _tensors((call.args, dict(call.kwargs)))), strict=True))
        return [torch.from_numpy(found) for found in session.run(None, feed)]

    return dynamic, run


def _script(model: nn.Module, path: Path, inputs: Inputs) -> tuple[bool, Run]:
    traced = torch.jit.trace(model, inputs.args, example_kwarg_inputs=dict(inputs.kwargs) or None, check_trace=False)
    buffer = memory.BytesIO()
    torch.jit.save(traced, buffer)
    _write(path, buffer.getvalue())
    module = torch.jit.load(str(path))
    return True, lambda call: _tensors(module(*call.args, **call.kwargs))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


def _error(model: nn.Module, run: Run, calls: Sequence[Inputs]) -> float:
    worst = 0.0
    with torch.no_grad(), _quiet():
        for call in calls:
            expected, found = _tensors(model(*call.args, **call.kwargs)), run(call)
            if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
                return float("inf")
            for a, b in zip(expected, found, strict=True):
                if a.numel() and a.is_floating_point():
                    worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
    return worst
