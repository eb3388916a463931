"""Random networks, valid by construction.

1. A *family* is one way to continue a program from a value: ``fits`` says for which shapes it can, ``emit`` draws the steps.
   Whatever ``emit`` draws runs: there is no filtering.
2. Values are drawn near the end first, families in the order in which they stand here, sizes small first, so failing
   programs shrink to short chains of plain convolutions around the step that matters.
3. A program ends in a head with weights, so most channels are free to go; features returned beside it keep their width.
4. ``mixing=False`` leaves out steps that mix channels without a weight in between (the zeroed oracle is exact for the rest),
   ``setitem=True`` adds slice assignment, which plain ``torch.fx`` cannot trace, ``opaque=True`` operators for which no rule
   about single channels can be right (sorts, an operator of these tests' own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.property.layers import (
    BatchNorm,
    ChannelLayerNorm,
    Conv,
    GroupNorm,
    InstanceNorm,
    Linear,
    MixingMlp,
    PRelu,
    RawConv,
    RawLinear,
    Scale,
    SpatialAttention,
    SpatialGate,
    SqueezeExcite,
    TokenLinear,
    TransposedConv,
    WeightNormConv,
)
from tests.property.modern import (
    ATTENTIONS,
    CELLS,
    LAYERS,
    Attention,
    Cell,
    ClassToken,
    Merge,
    Pick,
    Position,
    Recurrent,
    Regroup,
    RmsNorm,
    SelfAttention,
    Window,
)
from tests.property.moves import (
    ACTIVATION_MODULES,
    ACTIVATIONS,
    BINARY,
    GROWING,
    INPLACE,
    OPAQUE,
    POOLS,
    Act,
    Binary,
    Cat,
    ChannelMean,
    Chunk,
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
    ToMap,
    ToSequence,
)
from tests.property.program import Again, Op, Program, Shape, Step, build, example, randomise, result_shapes

__all__ = ["Case", "Program", "build", "cases", "example", "programs", "randomise"]

T = TypeVar("T")
MOST = 12  # channels that convolutions, concatenations and repeats may reach
PLAIN = (Conv, BatchNorm, TransposedConv, RawConv, Linear, Cat)  # their results may be changed in place


@dataclass
class Draft:
    """A program being drawn."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    shapes: list[Shape]
    inputs: int
    steps: list[Step] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)

    def add(self, op: Op, *args: int) -> int:
        """Append a step; the number of the (first) value it defines."""
        resolved = self.op(op.step) if isinstance(op, Again) else op
        first = len(self.shapes)
        self.firsts.append(first)
        self.shapes += result_shapes(resolved, *[self.shapes[a] for a in args])
        self.steps.append((op, *args))
        return first

    def op(self, number: int) -> Op:
        """The operator of a step, an ``Again`` resolved."""
        op = self.steps[number][0]
        return self.op(op.step) if isinstance(op, Again) else op

    def pick(self, options: Sequence[T]) -> T:
        """One of several, the first being the simplest."""
        return self.draw(st.sampled_from(options))

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high], the low end being the simplest."""
        return self.draw(st.integers(low, high))

    def width(self, multiple: int = 1, most: int = 8) -> int:
        """A number of channels, a multiple of ``multiple``."""
        return multiple * self.whole(1 if multiple > 1 else 2, max(1 if multiple > 1 else 2, most // multiple))

    def partner(self, x: int, same_width: bool = True) -> int:
        """A value that fits beside x: same space, and the same channels if asked; x itself is one."""
        shape = self.shapes[x]
        fits = [v for v, s in enumerate(self.shapes) if s[1:] == shape[1:] and (s[0] == shape[0] or not same_width)]
        return self.pick(sorted(fits, key=lambda v: (v == x, -v)))


@dataclass(frozen=True)
class Family:
    name: str
    fits: Callable[[Shape], bool]
    emit: Callable[[Draft, int], object]
    mixes: bool = False
    setitem: bool = False
    opaque: bool = False


FAMILIES: list[Family] = []


def family(fits: Callable[[Shape], bool], weight: int = 1, **flags: bool) -> Callable[[Any], Any]:
    """Register an emitter; ``weight`` is how often it stands in the list that is drawn from."""

    def register(emit: Callable[[Draft, int], object]) -> Callable[[Draft, int], object]:
        FAMILIES.extend([Family(emit.__name__, fits, emit, **flags)] * weight)
        return emit

    return register


def anything(shape: Shape) -> bool:
    return True


def spatial(shape: Shape) -> bool:
    return len(shape) > 1


def is_map(shape: Shape) -> bool:
    return len(shape) == 3


def is_sequence(shape: Shape) -> bool:
    return len(shape) == 2


def is_vector(shape: Shape) -> bool:
    return len(shape) == 1


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def narrow(shape: Shape) -> bool:
    return 2 * shape[0] <= MOST


# ---- with weights ----


@family(spatial, weight=3)
def convolution(d: Draft, x: int) -> int:
    return d.add(Conv(d.width(), kernel=d.pick([1, 3]), bias=d.pick([False, True])), x)


@family(spatial, weight=5)
def conv_norm_act(d: Draft, x: int) -> int:
    groups = d.pick([1, *divisors(d.shapes[x][0])])
    y = d.add(Conv(d.width(groups), kernel=d.pick([1, 3]), groups=groups), x)
    return activation(d, d.add(BatchNorm(), y))


@family(is_vector, weight=3)
def linear(d: Draft, x: int) -> int:
    op = d.pick([Linear(d.width()), RawLinear(d.width(), d.pick(["linear", "matmul"]))])
    return d.add(op, x)


@family(anything, weight=2)
def activation(d: Draft, x: int) -> int:
    kinds = ["relu", "ReLU", *ACTIVATIONS, *ACTIVATION_MODULES]
    newest = x == len(d.shapes) - 1 and bool(d.steps) and isinstance(d.op(len(d.steps) - 1), PLAIN)
    if newest:  # nobody has read it yet, and no gradient needs it
        kinds += [*INPLACE, "ReLU(inplace)"]
    return d.add(Act(d.pick(kinds)), x)


@family(anything)
def batch_norm(d: Draft, x: int) -> int:
    return d.add(BatchNorm(affine=d.pick([True, False])), x)


@family(spatial, weight=2)
def residual(d: Draft, x: int) -> int:
    y = d.add(Conv(d.width(), kernel=d.pick([1, 3])), x)
    y = d.add(Act("relu"), d.add(BatchNorm(), y))
    y = d.add(BatchNorm(), d.add(Conv(d.shapes[x][0], kernel=3), y))
    return d.add(Binary("add"), x, y)


@family(is_map)
def strided_convolution(d: Draft, x: int) -> int:
    return d.add(Conv(d.width(), kernel=d.pick([3, 1]), stride=d.pick([2, 1]), dilation=d.pick([1, 2])), x)


@family(lambda s: spatial(s) and s[0] <= MOST)
def grouped_convolution(d: Draft, x: int) -> int:
    groups = d.pick([g for g in divisors(d.shapes[x][0]) if g > 1] or [1])
    return d.add(Conv(d.width(groups, MOST), kernel=d.pick([1, 3]), groups=groups, bias=d.pick([False, True])), x)


@family(lambda s: spatial(s) and s[0] <= MOST)
def depthwise_convolution(d: Draft, x: int) -> int:
    width = d.shapes[x][0]
    times = d.pick([1, 2, 3] if width <= 4 else [1, 2] if width <= 6 else [1])
    return d.add(Conv(times * width, kernel=3, groups=width), x)


@family(lambda s: spatial(s) and s[1] <= 4)
def transposed_convolution(d: Draft, x: int) -> int:
    groups = d.pick([1, *divisors(d.shapes[x][0])])
    return d.add(TransposedConv(d.width(groups), stride=d.pick([2, 1]), groups=groups, bias=d.pick([False, True])), x)


@family(spatial)
def functional_convolution(d: Draft, x: int) -> int:
    groups = d.pick([1, *divisors(d.shapes[x][0])])
    return d.add(RawConv(d.width(groups), kernel=d.pick([1, 3]), groups=groups, bias=d.pick([False, True])), x)


@family(is_map)
def squeeze_excite(d: Draft, x: int) -> int:
    return d.add(SqueezeExcite(d.whole(1, 4), d.pick(["conv", "linear"])), x)


@family(spatial)
def spatial_gate(d: Draft, x: int) -> int:
    return d.add(SpatialGate(d.pick([1, 3])), x)


@family(anything, weight=2)
def scale(d: Draft, x: int) -> int:
    op = d.pick([Scale("scale"), Scale("mask"), Scale("position"), PRelu(False), PRelu(True)])
    return d.add(op, x)


@family(is_sequence, weight=4)
def mixing_mlp(d: Draft, x: int) -> int:
    return d.add(MixingMlp(d.width(), d.pick(["tokens", "channels"])), x)


@family(lambda s: spatial(s) and all(n > 1 for n in s[1:]))
def instance_norm(d: Draft, x: int) -> int:
    return d.add(InstanceNorm(affine=d.pick([False, True]), track=d.pick([False, True])), x)


@family(anything, weight=2)
def shared_module(d: Draft, x: int) -> int:
    """Call an earlier module again on a value of the shape it was made for; a plain activation where there is none."""
    shape = d.shapes[x]
    again = []
    for number, (op, *args) in enumerate(d.steps):
        if isinstance(op, Conv | BatchNorm | Linear | TransposedConv | RawConv | SqueezeExcite | PRelu):
            fits = d.shapes[args[0]] == shape
            if isinstance(op, Conv | BatchNorm) and spatial(shape):
                fits = d.shapes[args[0]][0] == shape[0] and len(d.shapes[args[0]]) == len(shape)
            again += [number] if fits else []
    return d.add(Again(d.pick(again)), x) if again else d.add(Act(), x)


@family(is_sequence, weight=4)
def recurrent(d: Draft, x: int) -> int:
    kind, hidden = d.pick(list(LAYERS)), d.width(most=6)
    projected = d.whole(1, hidden - 1) if kind == "lstm" and hidden > 2 and d.pick([False, True]) else 0
    options = (kind, d.pick([1, 2]), d.pick([1, 2]), projected, d.pick([True, False]), d.pick(["output", "state", "states"]))
    return d.add(Recurrent(hidden, *options), x)


@family(is_vector, weight=4)
def recurrent_cell(d: Draft, x: int) -> int:
    return d.add(Cell(d.width(), d.pick(list(CELLS)), d.pick([True, False])), x)


@family(lambda s: is_map(s) and s[1] % 2 == s[2] % 2 == 0)
def window(d: Draft, x: int) -> int:
    return d.add(Window(d.width(), d.pick([1, 3]), d.pick([0, 1])), x)


@family(is_sequence, weight=2)
def class_token(d: Draft, x: int) -> int:
    return d.add(ClassToken(d.pick(["expand", "repeat"])), x)


# ---- two values and more ----


@family(anything, weight=3)
def binary(d: Draft, x: int) -> int:
    return d.add(Binary(d.pick(list(BINARY))), x, d.partner(x))


@family(narrow, weight=3)
def concat(d: Draft, x: int) -> int:
    parts, room = [x], MOST - d.shapes[x][0]
    for _ in range(d.whole(1, 3)):
        fits = [v for v, s in enumerate(d.shapes) if s[1:] == d.shapes[x][1:] and s[0] <= room]
        if not fits:
            break
        parts.append(d.pick(sorted(fits, key=lambda v: (v == x, -v))))
        room -= d.shapes[parts[-1]][0]
    return d.add(Cat(), *parts)


@family(narrow)
def interleave(d: Draft, x: int) -> int:
    return d.add(Interleave(), x, d.partner(x))


@family(lambda s: is_vector(s) is False and narrow(s))
def dense_block(d: Draft, x: int) -> int:
    y = d.add(BatchNorm(), x)
    y = d.add(Conv(d.width(most=4), kernel=3), d.add(Act(), y))
    return d.add(Cat(), x, y)


@family(spatial)
def correlation(d: Draft, x: int) -> int:
    shape = d.shapes[x]
    fits = [v for v, s in enumerate(d.shapes) if s[1:] == shape[1:] and s[0] * shape[0] <= 64]
    return d.add(Correlation(), x, d.pick(sorted(fits, key=lambda v: (v == x, -v)))) if fits else d.add(Act(), x)


# ---- channels moved around ----


@family(lambda s: s[0] > 1)
def split(d: Draft, x: int) -> int:
    width = d.shapes[x][0]
    first = d.whole(1, width - 1)
    rest = width - first
    sizes = (first, rest) if rest < 2 or d.pick([True, False]) else (first, 1, rest - 1)
    y = d.add(Split(sizes), x)
    return y + d.whole(0, len(sizes) - 1)


@family(lambda s: s[0] > 1, weight=2)
def chunk(d: Draft, x: int) -> int:
    parts = d.pick([p for p in divisors(d.shapes[x][0]) if p > 1])
    y = d.add(Chunk(parts, d.pick(["chunk", "tensor_split", "unbind"])), x)
    if d.pick([False, True]):
        return d.add(Binary(d.pick(["mul", "add"])), y, y + 1)
    return y


@family(lambda s: is_map(s) and s[0] > 1)
def channel_shuffle(d: Draft, x: int) -> int:
    groups = d.pick([g for g in divisors(d.shapes[x][0]) if g > 1])
    return d.add(Shuffle(groups, d.pick(["view", "reshape", "module"])), x)


@family(lambda s: s[0] % 2 == 0, weight=2)
def glu(d: Draft, x: int) -> int:
    return d.add(Glu(), x)


@family(lambda s: is_map(s) and s[0] <= 8)
def pixel_shuffle(d: Draft, x: int) -> int:
    c, h, w = d.shapes[x]
    options = [PixelShuffle()] if c % 4 == 0 and h <= 4 else []
    options += [PixelShuffle(down=True)] if h % 2 == w % 2 == 0 and 4 * c <= 16 else []
    return d.add(d.pick(options or [Act()]), x)


@family(anything)
def roll(d: Draft, x: int) -> int:
    return d.add(Roll(d.whole(0, 3)), x)


@family(lambda s: s[0] > 1)
def channel_slice(d: Draft, x: int) -> int:
    width = d.shapes[x][0]
    op = d.pick([Slice(step=2), Slice(start=1, step=2), Slice(start=1), Slice(stop=width - 1), Slice(start=-1)])
    return d.add(op, x)


@family(anything)
def index(d: Draft, x: int) -> int:
    last = d.shapes[x][0] - 1
    return d.add(Index(tuple(d.draw(st.lists(st.integers(0, last), min_size=1, max_size=min(MOST, last + 2))))), x)


@family(anything)
def gather(d: Draft, x: int) -> int:
    last = d.shapes[x][0] - 1
    rows = tuple(d.draw(st.lists(st.integers(0, last), min_size=1, max_size=min(MOST, last + 2))))
    return d.add(Pick(rows, d.pick(["index_select", "gather", "take_along_dim"])), x)


@family(lambda s: s[0] > 3)
def regroup(d: Draft, x: int) -> int:
    groups = d.pick([g for g in divisors(d.shapes[x][0]) if g > 1])
    return d.add(Regroup(groups, d.pick(["", "square", "gate"])), x)


@family(lambda s: is_map(s) and s[0] <= 4)
def merge_pixels(d: Draft, x: int) -> int:
    c, h, w = d.shapes[x]
    forms = ["patches", "einops"] if h % 2 == w % 2 == 0 and 4 * c <= 16 else []
    forms += ["rows"] if c * h <= 16 else []
    return d.add(Merge(d.pick(forms)), x) if forms else d.add(Act(), x)


@family(lambda s: s[0] <= MOST - 3)
def pad_channels(d: Draft, x: int) -> int:
    return d.add(PadChannels(d.whole(0, 2), d.whole(1, 2), d.pick([0.0, 0.5]), len(d.shapes[x]) - 1), x)


@family(lambda s: is_map(s) and s[0] <= MOST // 2 and s[1] > 1)
def padded_shortcut(d: Draft, x: int) -> int:
    """Option A: a strided residual whose shortcut grows by zero channels."""
    width, extra = d.shapes[x][0], d.whole(1, MOST // 2)
    y = d.add(BatchNorm(), d.add(Conv(width + 2 * extra, kernel=3), x))
    return d.add(Binary("add"), y, d.add(PadChannels(extra, extra), x))


@family(narrow)
def repeat(d: Draft, x: int) -> int:
    return d.add(Repeat(d.pick(["repeat", "interleave", "expand"]), len(d.shapes[x]) - 1), x)


@family(is_map, weight=2)
def pool(d: Draft, x: int) -> int:
    _, h, w = d.shapes[x]
    kinds = [k for k in POOLS if k not in GROWING or max(h, w) <= 6]
    kinds = [k for k in kinds if min(h, w) > 2 or k in ("nearest2", "bilinear", "softmax", "transposed", "adaptive2", "avg3")]
    return d.add(Pool(d.pick(kinds)), x)


@family(lambda s: is_map(s) and s[0] <= 8)
def flatten(d: Draft, x: int) -> int:
    c, h, w = d.shapes[x]
    forms = ["mean", "pool2", "pool1"] + (["flatten", "view"] if c * h * w <= 128 else [])
    return linear(d, d.add(Flatten(d.pick(forms)), x))


@family(is_map, weight=2)
def to_sequence(d: Draft, x: int) -> int:
    y = d.add(ToSequence(), x)
    return d.pick([mixing_mlp, recurrent, sequence_only])(d, y)


def sequence_only(d: Draft, x: int) -> int:
    return x


@family(is_sequence, weight=2)
def from_sequence(d: Draft, x: int) -> int:
    length = d.shapes[x][1]
    return d.add(d.pick([ToMap(max(h for h in divisors(length) if h * h <= length)), Flatten("average"), Flatten("flatten")]), x)


@family(is_sequence, weight=3)
def position(d: Draft, x: int) -> int:
    return linear(d, d.add(Position(d.pick([0, d.shapes[x][1] - 1])), x))


@family(anything, weight=5, setitem=True)
def set_slice(d: Draft, x: int) -> int:
    fits = [v for v, s in enumerate(d.shapes) if s[1:] == d.shapes[x][1:] and s[0] <= d.shapes[x][0]]
    z = d.pick(sorted(fits, key=lambda v: (v == x, -v)))
    return d.add(SetSlice(d.whole(0, d.shapes[x][0] - d.shapes[z][0])), x, z)


@family(anything, weight=5, opaque=True)
def opaque_operator(d: Draft, x: int) -> int:
    return d.add(Opaque(d.pick(list(OPAQUE))), x)


# ---- mixing ----


@family(anything, mixes=True)
def group_norm(d: Draft, x: int) -> int:
    return d.add(GroupNorm(d.pick(divisors(d.shapes[x][0]))), x)


@family(anything, mixes=True)
def layer_norm(d: Draft, x: int) -> int:
    return d.add(ChannelLayerNorm(), x)


@family(lambda s: s[0] % 2 == 0, mixes=True)
def maxout(d: Draft, x: int) -> int:
    return d.add(Maxout(), x)


@family(anything, mixes=True)
def channel_reduction(d: Draft, x: int) -> int:
    return d.add(ChannelMean(d.pick(["mean", "sum", "norm", "softmax", "norm3", "normalize", "logsumexp"])), x)


@family(is_map, mixes=True)
def spatial_attention(d: Draft, x: int) -> int:
    return d.add(SpatialAttention(), x)


@family(is_sequence, weight=6, mixes=True)
def token_linear(d: Draft, x: int) -> int:
    return d.add(TokenLinear(d.width(), d.pick(["module", "linear", "matmul"])), x)


@family(spatial, mixes=True)
def weight_normed(d: Draft, x: int) -> int:
    return d.add(WeightNormConv(d.width(), d.pick([1, 3])), x)


@family(anything, mixes=True)
def rms_norm(d: Draft, x: int) -> int:
    return d.add(RmsNorm(d.pick([True, False])), x)


@family(is_sequence, weight=8, mixes=True)
def attention(d: Draft, x: int) -> int:
    heads, dim = d.pick([2, 1, 3]), d.pick([2, 1, 3, 4])
    y = d.add(Attention(d.pick([d.shapes[x][0], d.width()]), heads, dim, d.pick(ATTENTIONS), d.pick([False, True])), x)
    return d.add(Binary("add"), x, y) if d.shapes[x] == d.shapes[y] and d.pick([True, False]) else y


@family(is_sequence, weight=2, mixes=True)
def self_attention(d: Draft, x: int) -> int:
    return d.add(SelfAttention(d.pick(divisors(d.shapes[x][0]))), x)


@family(is_map, weight=2, mixes=True)
def map_attention(d: Draft, x: int) -> int:
    """Attention over the pixels of a map."""
    height, width = d.shapes[x][1:]
    y = d.pick([attention, self_attention])(d, d.add(ToSequence(), x))
    return d.add(ToMap(height), y) if width > 1 else y


# ---- whole programs ----


def to_vector(d: Draft, x: int) -> int:
    """A vector from any value."""
    return x if is_vector(d.shapes[x]) else d.add(Flatten("average"), x)


def head(d: Draft, x: int, unused: list[int]) -> int:
    """Weights at the end (module docstring, clause 3), reading x and whatever nobody has read."""
    if unused:
        return d.add(Linear(3), d.add(Cat(), *[to_vector(d, v) for v in (x, *unused)]))
    shape = d.shapes[x]
    if is_vector(shape):
        return d.add(Linear(3), x)
    forms = ["conv", "average"] + (["flatten"] if len(shape) == 3 and shape[0] * shape[1] * shape[2] <= 256 else [])
    form = d.pick(forms)
    return d.add(Conv(3, bias=True), x) if form == "conv" else d.add(Linear(3), d.add(Flatten(form), x))


@st.composite
def programs(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    *,
    most: int = 8,
    mixing: bool = True,
    setitem: bool = False,
    opaque: bool = False,
) -> Program:
    """Networks of one to ``most`` drawn families between an input and a head."""
    size = draw(st.sampled_from([4, 6, 8]))
    inputs = [(draw(st.sampled_from([3, 2, 4])), size, size)]
    if draw(st.sampled_from([False, False, True])):
        inputs.append((draw(st.sampled_from([3, 2, 1])), size, size))
    d = Draft(draw, list(inputs), len(inputs))
    flags = {"mixes": mixing, "setitem": setitem, "opaque": opaque}
    usable = [f for f in FAMILIES if all(on or not getattr(f, flag) for flag, on in flags.items())]
    last = d.add(Conv(d.width(), kernel=d.pick([1, 3])), len(inputs) - 1)
    for _ in range(d.whole(1, most)):
        back = draw(st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3, 5]))
        x = len(d.shapes) - 1 - back if 0 < back < len(d.shapes) - len(inputs) else last
        last = d.pick([f for f in usable if f.fits(d.shapes[x])]).emit(d, x)  # type: ignore[assignment]
    read = {a for _, *args in d.steps for a in args}
    unused = [v for v in range(len(inputs), len(d.shapes)) if v not in read and v != last]
    gather = draw(st.sampled_from([False, True, True, True]))
    heads = head(d, last, unused if gather else [])
    features = st.sampled_from(range(len(inputs), len(d.shapes)))
    outputs = [heads, *[draw(features) for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2])))]]
    containers = ["tensor"] if len(outputs) == 1 else []
    container = draw(st.sampled_from([*containers, "tuple", "list", "dict", "nested"]))
    return Program(tuple(inputs), tuple(d.steps), tuple(outputs), container)


@dataclass(frozen=True)
class Case:
    """A program, and how to prune it."""

    program: Program
    seed: int = 0
    ratio: float = 0.5
    floor: float = 0.1
    round_to: int = 1
    keep: tuple[str, ...] = ()
    score: str = "auto"


@st.composite
def cases(draw: Callable[[st.SearchStrategy[Any]], Any], **kinds: Any) -> Case:
    """Programs (with the options of ``programs``) and how to prune them; ``score`` is "auto" or "random"."""
    program = draw(programs(**kinds))
    owners = [f"v{first}" for first, (op, *_) in zip(program.firsts, program.steps, strict=True) if isinstance(op, Conv | Linear)]
    return Case(
        program,
        seed=draw(st.integers(0, 99)),
        ratio=draw(st.sampled_from([0.5, 0.3, 0.7, 0.1, 0.9])),
        floor=draw(st.sampled_from([0.1, 0.0, 0.3, 0.5])),
        round_to=draw(st.sampled_from([1, 1, 1, 1, 2, 4])),
        keep=draw(st.sampled_from([(), (), (), (draw(st.sampled_from(owners)),)])) if owners else (),
        score=draw(st.sampled_from(["auto", "random"])),
    )
