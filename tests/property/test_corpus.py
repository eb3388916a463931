"""Networks that have broken the compiler or the verifier once, as small as they could be made (tests.property.census)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.property.census import check
from tests.property.layers import (
    BatchNorm,
    ChannelLayerNorm,
    Conv,
    Linear,
    MixingMlp,
    RawLinear,
    SpatialAttention,
    TokenLinear,
    TransposedConv,
    WeightNormConv,
)
from tests.property.layers import GroupNorm as Groups
from tests.property.modern import Pick
from tests.property.moves import (
    Act,
    Binary,
    Cat,
    Correlation,
    Flatten,
    Glu,
    Index,
    Interleave,
    Maxout,
    Opaque,
    PadChannels,
    PixelShuffle,
    Pool,
    Repeat,
    Roll,
    SetSlice,
    Shuffle,
    Slice,
    Split,
    ToSequence,
)
from tests.property.program import Again, Program
from tests.property.strategies import Case


def case(*steps: tuple[Any, ...], side: int = 4, outputs: tuple[int, ...] = (), **options: Any) -> Case:
    """A case over one image with three channels; the last value is the output."""
    program = Program(((3, side, side),), steps, (0,))
    last = len(program.shapes) - 1
    return Case(Program(program.inputs, steps, (last, *outputs), "tuple"), **options)


HEAD = Conv(out=3, bias=True)

CASES = {
    "one channel picked by a constant": case((Conv(out=5), 0), (Pick(rows=(2,)), 1), (HEAD, 2), side=8, seed=2),
    "one channel taken along a dimension": case(
        (Conv(out=5), 0), (Pick(rows=(2,), form="take_along_dim"), 1), (HEAD, 2), side=8, seed=2
    ),
    "weight norm of an emptied layer": case(
        (Conv(out=2, kernel=3), 0),
        (Conv(out=4, kernel=3), 1),
        (BatchNorm(), 2),
        (WeightNormConv(out=4), 3),
        (HEAD, 4),
        seed=63,
        ratio=0.9,
        floor=0.0,
    ),
    "a strided slice, then each channel twice": case(
        (Conv(out=7), 0), (Slice(start=1, step=2), 1), (Repeat(form="interleave"), 2), (HEAD, 3)
    ),
    "emptied channels in step with others": case(
        (Conv(out=2), 0),
        (Conv(out=4, kernel=3), 1),
        (BatchNorm(), 2),
        (PadChannels(before=1), 1),
        (Binary(), 3, 4),
        (Conv(out=2, groups=2), 5),
        (HEAD, 6),
        side=6,
        floor=0.0,
    ),
    "tokens averaged": case(
        (Conv(out=3), 0),
        (ToSequence(), 1),
        (TokenLinear(out=2), 2),
        (BatchNorm(), 3),
        (Flatten(form="average"), 4),
        (Linear(out=3), 5),
    ),
    "layer norm over an emptied layer": case(
        (Conv(out=2), 0),
        (Conv(out=2), 1),
        (Conv(out=2), 2),
        (BatchNorm(), 3),
        (ChannelLayerNorm(), 4),
        (HEAD, 5),
        ratio=0.9,
        floor=0.0,
    ),
    "maxout of an emptied layer": case(
        (Conv(out=2), 0), (Conv(out=2), 1), (BatchNorm(), 2), (Maxout(), 3), (HEAD, 4), ratio=0.9, floor=0.0
    ),
    "padded shortcut of an emptied layer": case(
        (Conv(out=2), 0),
        (Act(), 1),
        (Conv(out=2), 2),
        (Conv(out=2, kernel=3, groups=2), 3),
        (Binary(), 4, 3),
        (Conv(out=4, kernel=3), 5),
        (BatchNorm(), 6),
        (PadChannels(before=1), 5),
        (Binary(), 7, 8),
        (Conv(out=2), 8),
        (Flatten(form="average"), 10),
        (Flatten(form="average"), 9),
        (Cat(), 11, 12),
        (Linear(out=3), 13),
        side=6,
        ratio=0.9,
        floor=0.0,
    ),
    "an emptied layer called twice": case(
        (Conv(out=3), 0),
        (Conv(out=2), 1),
        (Conv(out=2), 2),
        (Again(step=2), 3),
        (Conv(out=2), 4),
        (Conv(out=2), 4),
        (Flatten(form="average"), 6),
        (Flatten(form="average"), 5),
        (Cat(), 7, 8),
        (Linear(out=3), 9),
        ratio=0.9,
        floor=0.0,
    ),
    "correlation with padding": case(
        (Conv(out=8), 0), (Roll(), 1), (PadChannels(behind=2), 2), (Correlation(), 3, 0), (Linear(out=3), 4)
    ),
    "grouped after grouped": case(
        (Conv(out=8), 0),
        (Slice(step=2), 1),
        (Conv(out=8, kernel=3, groups=4), 2),
        (Conv(out=4, groups=4), 3),
        (BatchNorm(), 4),
        (HEAD, 5),
    ),
    "grouped after grouped, three": case(
        (Conv(out=3), 0), (Conv(out=6, groups=3), 1), (BatchNorm(), 2), (Conv(out=3, groups=3), 3), (BatchNorm(), 4), (HEAD, 5)
    ),
    "shuffle": case((Conv(out=4, kernel=3), 0), (Shuffle(), 1), (HEAD, 2), side=6),
    "shuffle module of an emptied layer": case(
        (Conv(out=7), 0),
        (Shuffle(groups=7, form="module"), 1),
        (Conv(out=2), 2),
        (Conv(out=2), 3),
        (HEAD, 4),
        side=6,
        seed=4,
        floor=0.0,
        keep=("v5",),
        score="random",
    ),
    "grouped convolution of a padded shortcut": case(
        (Conv(out=2), 0),
        (Act(), 1),
        (Conv(out=2), 2),
        (Again(step=2), 3),
        (Conv(out=4, kernel=3), 4),
        (BatchNorm(), 5),
        (PadChannels(before=1), 4),
        (Binary(), 6, 7),
        (Conv(out=2, groups=2), 8),
        (BatchNorm(), 9),
        (HEAD, 10),
    ),
    "keep beside a shared grouped convolution": case(
        (Conv(out=2), 0),
        (Act(), 1),
        (Conv(out=4), 2),
        (Conv(out=2, groups=2), 3),
        (Again(step=2), 4),
        (Again(step=3), 5),
        (Conv(out=2), 6),
        (HEAD, 7),
        side=6,
        keep=("v7",),
    ),
    "group norm with as many groups as channels": case((Conv(out=4), 0), (Cat(), 1, 0, 0), (Groups(groups=10), 2), (HEAD, 3)),
    "group norm of single channels": case(
        (Conv(out=5), 0),
        (Flatten(form="mean"), 1),
        (Linear(out=7), 2),
        (Act(), 3),
        (Groups(groups=7), 4),
        (Linear(out=3), 5),
        ratio=0.3,
        round_to=2,
    ),
    "repeat interleaved": case(
        (Conv(out=6), 0),
        (Conv(out=4, bias=True), 1),
        (Glu(), 2),
        (Repeat(), 3),
        (Repeat(form="interleave"), 4),
        (Flatten(form="average"), 5),
        (Linear(out=3), 6),
        side=6,
        seed=44,
        ratio=0.3,
        floor=0.3,
        keep=("v1",),
    ),
    "repeat interleaved behind no rule": case(
        (Conv(out=3), 0), (Opaque(kind="cummax"), 1), (Repeat(form="interleave"), 2), (HEAD, 3), ratio=0.3
    ),
    "index with repetitions, then chunks": case(
        (Conv(out=6, kernel=3), 0),
        (Interleave(), 1, 1),
        (Index(rows=(3, 1, 5, 9, 10, 4, 0, 1, 4, 1, 3, 1)), 2),
        (Split(sizes=(4, 4, 4)), 3),
        (Binary(kind="mul"), 4, 5),
        (Repeat(form="interleave"), 4),
        (Flatten(form="average"), 8),
        (Flatten(form="average"), 6),
        (Flatten(form="average"), 7),
        (Cat(), 9, 10, 11),
        (Linear(out=3), 12),
        seed=18,
        floor=0.3,
    ),
    "expanded": case((Conv(out=2), 0), (Split(sizes=(1, 1)), 1), (Repeat(form="expand"), 2), (HEAD, 4), side=6),
    "pixel shuffle of an emptied layer": case(
        (Conv(out=4, kernel=3), 0),
        (PixelShuffle(), 1),
        (BatchNorm(affine=False), 2),
        (Flatten(form="average"), 3),
        (Linear(out=3), 4),
        seed=4,
        ratio=0.7,
        floor=0.0,
    ),
    "pixel shuffle, flattened": case(
        (Conv(out=3, kernel=3, stride=2), 0),
        (ChannelLayerNorm(), 1),
        (WeightNormConv(out=8), 2),
        (PixelShuffle(), 3),
        (Flatten(), 4),
        (Linear(out=3), 5),
        side=6,
        seed=5,
        ratio=0.9,
    ),
    "silent input of a grouped convolution": case(
        (Conv(out=4), 0),
        (Conv(out=2, groups=2), 1),
        (Act(), 2),
        (Conv(out=2), 3),
        (Glu(), 4),
        (Conv(out=2), 5),
        (Conv(out=2), 6),
        (Conv(out=2), 7),
        (Conv(out=2), 7),
        (Flatten(form="average"), 9),
        (Flatten(form="average"), 8),
        (Cat(), 10, 11),
        (Linear(out=3), 12),
        side=6,
        floor=0.0,
    ),
    "silent input of a grouped convolution, chain": case(
        (Conv(out=2), 0),
        (Conv(out=2), 1),
        (Conv(out=2), 2),
        (Conv(out=2), 3),
        (Conv(out=4), 4),
        (Conv(out=2, groups=2), 5),
        (BatchNorm(), 6),
        (Act(), 7),
        (HEAD, 8),
        floor=0.0,
        score="random",
    ),
    "grouped transposed convolution": case(
        (Conv(out=4, kernel=3), 0),
        (TransposedConv(out=8, stride=1, groups=4, bias=True), 1),
        (Conv(out=2, bias=True), 2),
        (Conv(out=2, kernel=3, groups=2), 3),
        (BatchNorm(), 4),
        (Conv(out=8), 5),
        (Flatten(), 6),
        (Linear(out=3), 7),
        ratio=0.7,
        floor=0.0,
        score="random",
    ),
    "constant padding, then a mean over channels": case(
        (Conv(out=2), 0),
        (PadChannels(before=2, value=0.5), 1),
        (Binary(kind="mul"), 2, 2),
        (SpatialAttention(), 3),
        (HEAD, 4),
        side=6,
        seed=23,
        ratio=0.9,
        floor=0.3,
        keep=("v1",),
        score="random",
    ),
    "slice assignment behind a removed channel": case((Conv(out=6), 0), (Conv(out=2), 1), (SetSlice(start=2), 1, 2), (HEAD, 3)),
    "slice assignment from the input": case(
        (Conv(out=8), 0), (SetSlice(start=1), 1, 0), (HEAD, 2), side=6, ratio=0.9, score="random", seed=1
    ),
    "slice assignments that overlap": case(
        (Conv(out=4, kernel=3), 0),
        (SetSlice(), 1, 1),
        (Conv(out=8, kernel=3, groups=4, bias=True), 2),
        (Conv(out=4, kernel=3, groups=4), 3),
        (BatchNorm(), 4),
        (SetSlice(), 5, 5),
        (Flatten(form="average"), 6),
        (Linear(out=3), 7),
        seed=4,
    ),
    "silent inputs of weight norm": case(
        (Conv(out=2), 0),
        (WeightNormConv(out=4, kernel=3), 1),
        (Act(), 2),
        (Flatten(), 3),
        (Linear(out=3), 4),
        side=6,
        seed=12,
        ratio=0.9,
        floor=0.0,
        score="random",
    ),
    "pixel shuffle, averaged": case(
        (Conv(out=4, kernel=3), 0),
        (PixelShuffle(), 1),
        (Flatten(form="average"), 2),
        (Linear(out=3), 3),
        seed=1,
        floor=0.5,
        ratio=0.7,
    ),
    "silent input of a grouped convolution, blocks": case(
        (Conv(out=8), 0), (Conv(out=8, groups=4), 1), (HEAD, 2), side=8, seed=89, ratio=0.9, floor=0.0, score="random"
    ),
    "group norm over zero padding": case(
        (Conv(out=5, kernel=3), 0),
        (Conv(out=7, kernel=3), 1),
        (BatchNorm(), 2),
        (PadChannels(before=1), 1),
        (Binary(), 3, 4),
        (Groups(), 4),
        (Act(), 5),
        (Flatten(form="average"), 6),
        (Flatten(form="average"), 7),
        (Cat(), 8, 9),
        (Linear(out=3), 10),
        seed=21,
        ratio=0.9,
        floor=0.0,
        score="auto",
    ),
    "grouped transposed convolution of a chain": case(
        (Conv(out=2), 0), (Conv(out=2), 1), (TransposedConv(out=6, groups=2), 2), (HEAD, 3)
    ),
    "repeat interleaved, alone": case((Conv(out=2), 0), (Repeat(form="interleave"), 1), (HEAD, 2), side=6),
    "slice assignment from the input, five": case((Conv(out=5), 0), (SetSlice(start=2), 1, 0), (HEAD, 2)),
    "slice assignment from the input, six": case((Conv(out=6), 0), (SetSlice(start=2), 1, 0), (HEAD, 2)),
    "everything at once": case(
        (Conv(out=4), 0),
        (Pool(), 1),
        (ToSequence(), 2),
        (MixingMlp(hidden=3), 3),
        (Flatten(form="average"), 4),
        (RawLinear(out=4, form="matmul"), 5),
        (Linear(out=3), 6),
        outputs=(5,),
    ),
}


@pytest.mark.parametrize("verify", [False, True], ids=["oracle", "verify"])
@pytest.mark.parametrize("name", CASES)
def test_corpus(name: str, verify: bool) -> None:
    check(CASES[name], verify)
