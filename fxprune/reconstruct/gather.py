"""One pass over the calibration images: moments of layers between two programs.

1. A *site* is a layer in the original program and the same layer in the current one, which may have fewer channels. Inputs ``x`` come
   from the current program, wanted outputs from the original (He et al. 2017, section 3.1), at the same sampled positions of the same
   images.
2. What is wanted is what the current layer has to multiply out, before its bias: with outputs ``y`` of the original, batch norms ``s y +
   t`` there and ``s' y + t'`` here, the bias ``b'`` here, and a shortcut that was ``r`` and is ``r'``: ``(s y + t - t' + r - r') / s' -
   b'``. With the same norm on both sides and no shortcut that is ``y - b'``.
3. Positions depend on the seed, the layer's name and the number of the batch alone.
4. With a ``Cache`` every batch goes on, in both programs, where the layers before it have left it. That takes memory for the live values
   of all images, and saves running all that lies before a layer once for every layer. Without one memory does not depend on the number of
   images.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture.inputs import Inputs
from fxprune.errors import InputError
from fxprune.precision import double
from fxprune.reconstruct.moments import Moments
from fxprune.reconstruct.numbers import Array, Ids
from fxprune.reconstruct.program import Program, Snapshot
from fxprune.reconstruct.readers import FAINT, Call, Reader, affine
from fxprune.reconstruct.rows import inputs_at, outputs_at, positions


@dataclass(frozen=True, slots=True)
class Calibration:
    """Where rows come from.

    Attributes:
        loader: gives batches, as often as it is gone through.
        images: how many images are used; the last batch is used whole.
        positions: output positions per image.
        seed: of the positions.
        device: where batches are moved to; None: nowhere.
    """

    loader: Iterable[Any]
    images: int = 5000
    positions: int = 10
    seed: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {"images": self.images, "positions": self.positions}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a positive whole number, got {value!r}.", node=name, got=value)
        if not hasattr(self.loader, "__iter__") or isinstance(self.loader, Iterator):
            raise InputError(
                f"loader must give its batches anew for every layer, and {type(self.loader).__name__} can be gone through once at most. "
                "Give a DataLoader, or a list of batches.",
                node="loader",
                got=type(self.loader).__name__,
            )

    def calls(self) -> Iterator[Inputs]:
        """The batches, as calls of the model.

        Raises:
            InputError: there are none.
        """
        seen = 0
        for batch in self.loader:
            call = as_call(batch, self.device)
            yield call
            seen += leading(call)
            if seen >= self.images:
                return
        if not seen:
            raise InputError("loader gave no batch. Layers are reconstructed on images.", node="loader", got=0)


def device_of(model: nn.Module) -> torch.device | None:
    """Where all parameters and buffers of a model are; None where they are in several places."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def as_call(batch: Any, device: torch.device | None = None) -> Inputs:
    """A batch as a call of the model.

    A tensor; a tuple or list, of which the first entry is the input (labels may follow), a tensor or a tuple of arguments; a dict of keyword
    arguments.
    """
    if device is not None:
        return as_call(batch).map(lambda x: x.to(device))
    if isinstance(batch, Mapping):
        return Inputs((), dict(batch))
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(first, (tuple, list)):
        return Inputs(tuple(first), {})
    if not isinstance(first, Tensor):
        raise InputError(
            f"a batch must be a tensor, a tuple that starts with one, or a dict of keyword arguments, got {type(batch).__name__}.",
            node="loader",
            got=type(batch).__name__,
        )
    return Inputs((first,), {})


def leading(call: Inputs) -> int:
    """The number of samples of a call."""
    tensors = [x for x in torch.utils._pytree.tree_leaves((call.args, dict(call.kwargs))) if isinstance(x, Tensor) and x.dim()]
    return max((len(x) for x in tensors), default=1)


@dataclass(frozen=True, slots=True)
class Site:
    """Clause 1; ``rows``: the original's output channels that the current layer still has, in its order."""

    source: Reader
    target: Reader
    rows: Ids


@dataclass(slots=True)
class _Batch:
    """What is seen of one call of a site in one batch."""

    places: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    shape: torch.Size = field(default_factory=torch.Size)
    wanted: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    shortcut: Tensor | None = None
    inputs: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    lost: Tensor | None = None


class Cache:
    """Clause 4: per batch the call, and a snapshot of each program."""

    def __init__(self, images: Calibration) -> None:
        self.batches: list[tuple[Inputs, dict[int, Snapshot]]] = [(call.map(torch.clone), {}) for call in images.calls()]

    def changed(self, place: int) -> None:
        """The current program computes something else from this place on: later snapshots of it no longer hold."""
        for _, snapshots in self.batches:
            if 1 in snapshots and snapshots[1].place > place:
                del snapshots[1]


def gather(
    original: Program, current: Program, sites: Sequence[Site], images: Calibration, cache: Cache | None = None
) -> list[Moments]:
    """The moments of every site, over all its calls.

    Raises:
        InputError: batches that do not fit the model.
    """
    found = [Moments() for _ in sites]
    draws = [torch.Generator().manual_seed(zlib.crc32(f"{images.seed} {site.target.weight}".encode())) for site in sites]
    wants = [[_wanted(site, a, b) for a, b in zip(site.source.calls, site.target.calls, strict=True)] for site in sites]
    batched = ((call, {}) for call in images.calls()) if cache is None else cache.batches
    for call, snapshots in batched:
        seen = [[_Batch() for _ in site.source.calls] for site in sites]
        watching, watched = _Watch(), _Watch()
        for site, draw, batches in zip(sites, draws, seen, strict=True):
            for batch, a, b in zip(batches, site.source.calls, site.target.calls, strict=True):
                _watch_source(watching, site, a, batch, images.positions, draw)
                _watch_target(watched, site, b, batch)
        for which, (program, watch) in enumerate(((original, watching), (current, watched))):
            _run(program, watch, call, snapshots, which, cache is not None)
        for moments, site, batches, want in zip(found, sites, seen, wants, strict=True):
            for batch, wanted in zip(batches, want, strict=True):
                y = wanted(batch)
                _check_finite(site.target.path, batch.inputs, y)
                moments.add(batch.inputs, y.reshape(len(y), site.target.blocks, -1))
    return found


def _check_finite(path: str, *rows: Tensor) -> None:
    for value, what in zip(rows, ("what it reads", "what it puts out"), strict=True):
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"at layer {path!r} {what} holds NaN or infinity on the calibration images ({str(value.dtype).removeprefix('torch.')}). Look for "
                "damaged images, or numbers too large for the model's dtype; float32 holds more than float16.",
                node=path,
                got="not finite",
            )


def _run(program: Program, watch: _Watch, call: Inputs, snapshots: dict[int, Snapshot], which: int, cached: bool) -> None:
    def keep(snapshot: Snapshot) -> None:
        snapshots[which] = snapshot

    first = min(program.order[node] for node in (*watch.before, *watch.after))
    start = snapshots.get(which)
    start = start if start is not None and start.place <= first else None
    program.run(call.map(torch.clone), watch.before, watch.after, start, keep if cached else None)


class _Watch:
    """Several watchers of one node."""

    def __init__(self) -> None:
        self.before: dict[fx.Node, Callable[[Any], None]] = {}
        self.after: dict[fx.Node, Callable[[Any], None]] = {}

    def add(self, where: dict[fx.Node, Callable[[Any], None]], node: fx.Node, look: Callable[[Any], None]) -> None:
        earlier = where.get(node)

        def both(value: Any) -> None:
            if earlier is not None:
                earlier(value)
            look(value)

        where[node] = both


def _watch_source(watch: _Watch, site: Site, call: Call, batch: _Batch, count: int, draw: torch.Generator) -> None:
    module = site.source.module

    def output(value: Tensor) -> None:
        batch.places, batch.shape = positions(module, value, count, draw), value.shape
        batch.wanted = outputs_at(module, value, batch.places)

    def shortcut(values: Mapping[fx.Node, Tensor]) -> None:
        assert call.tail is not None
        other = values[call.tail.other]
        if other.shape == batch.shape:
            batch.shortcut = outputs_at(module, other, batch.places)

    watch.add(watch.after, call.node, output)
    if call.tail is not None:
        watch.add(watch.before, call.tail.total, shortcut)


def _watch_target(watch: _Watch, site: Site, call: Call, batch: _Batch) -> None:
    module = site.target.module

    def reading(values: Mapping[fx.Node, Tensor]) -> None:
        batch.inputs = inputs_at(module, values[call.source], batch.places)

    def shortcut(values: Mapping[fx.Node, Tensor]) -> None:
        assert call.tail is not None
        if batch.shortcut is not None:
            batch.lost = outputs_at(module, values[call.tail.other], batch.places)

    watch.add(watch.before, call.node, reading)
    if call.tail is not None:
        watch.add(watch.before, call.tail.total, shortcut)


def _wanted(site: Site, source: Call, target: Call) -> Callable[[_Batch], Tensor]:
    """Clause 2, as a function of what a batch shows."""
    was, now = affine(source.norm), affine(target.norm)
    count = len(site.rows)
    gain, shift, worth = np.ones(count), np.zeros(count), np.ones(count)
    if was is not None and now is not None:
        old, new = was[0][site.rows], now[0]
        asked = np.abs(new) >= FAINT * np.median(np.abs(new))
        safe = np.where(asked & (new != 0), new, 1.0)
        worth = np.where(asked & (new != 0), 1 / safe, 0.0)
        usable = new != 0
        gain = np.where(usable, old / np.where(usable, new, 1.0), 1.0)
        shift = np.where(usable, (was[1][site.rows] - now[1]) / np.where(usable, new, 1.0), 0.0)
    bias = site.target.module.bias
    rows = torch.from_numpy(site.rows)

    def numbers(values: Array, like: Tensor) -> Tensor:
        return torch.from_numpy(values).to(like.device)

    def wanted(batch: _Batch) -> Tensor:
        y = batch.wanted[:, rows.to(batch.wanted.device)]
        y = double(y)
        y = y * numbers(gain, y) + numbers(shift, y)
        if batch.shortcut is not None and batch.lost is not None:
            difference = double(batch.shortcut[:, rows.to(batch.shortcut.device)]) - double(batch.lost)
            y = y + difference * numbers(worth, y)
        return y if bias is None else y - double(bias.detach())

    return wanted
