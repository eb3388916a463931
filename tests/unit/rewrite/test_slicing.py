"""``take`` against naive numpy, for every combination of axes, blocks, dtypes and layouts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.provenance.factor import Ids
from fxprune.provenance.ledger import Axis
from fxprune.rewrite.slicing import like, silence, slim_factors, slim_shape, take
from tests.property.profile import share


def axes_of(shape: tuple[int, ...], dims: tuple[int, ...], blocks: int = 1) -> list[Axis]:
    """Axes for some dimensions; the second in so many blocks of rows."""
    found, start = [], 1
    for dim in dims:
        many = blocks if dim == 1 else 1
        found.append(Axis("weight", dim, start, shape[dim] * many, many))
        start += shape[dim] * many
    return found


def naive(source: np.ndarray, axes: list[Axis], order: dict[Axis, Ids]) -> np.ndarray:
    """Row by row, entry by entry."""
    rows = next((order[a] for a in axes if a.dim == 0), np.arange(source.shape[0]))
    blocked = next((a for a in axes if a.blocks > 1), None)
    out = []
    for row in rows:
        part = source[row]
        if blocked is not None:
            own = int(row) // (source.shape[0] // blocked.blocks)
            columns = [a % source.shape[1] for a in order[blocked] if a // source.shape[1] == own]
            part = part[columns]
        for axis in axes:
            if axis.dim > 0 and axis is not blocked:
                part = np.take(part, order[axis], axis=axis.dim - 1)
        out.append(part)
    return np.stack(out)


def numbers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)


SUBSETS = [dims for count in range(5) for dims in itertools.combinations(range(4), count)]


@pytest.mark.parametrize("dims", SUBSETS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_combination_of_axes(dims: tuple[int, ...], rank: int) -> None:
    if any(d >= rank for d in dims):
        return
    shape = (6, 5, 4, 3)[:rank]
    axes = axes_of(shape, dims)
    random = np.random.default_rng(len(dims))
    for keep in ("some", "all", "one", "permuted"):
        order = {a: _kept(random, a.size, keep) for a in axes}
        source = numbers(shape)
        found = take(source, axes, order)
        assert np.array_equal(found.numpy(), naive(source.numpy(), axes, order))
        assert tuple(found.shape) == slim_shape(shape, axes, order)
        assert found.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()


def _kept(random: np.random.Generator, size: int, how: str) -> Ids:
    if how == "all":
        return np.arange(size)
    if how == "one":
        return np.array([size - 1])
    rows = random.permutation(size)[: max(1, size // 2)] if how == "some" else random.permutation(size)
    return rows if how == "permuted" else np.sort(rows)


@st.composite
def blocked(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Axis], dict[Axis, Ids]]:
    """A grouped convolution's weight: every block keeps equally many of its inputs, in an order of its own."""
    blocks = draw(st.integers(2, 4))
    rows, columns = blocks * draw(st.integers(1, 3)), draw(st.integers(2, 5))
    shape = (rows, columns, 2)[: draw(st.integers(2, 3))]
    axes = axes_of(shape, draw(st.sampled_from([(1,), (0, 1)])), blocks)
    keep = draw(st.integers(1, columns))
    atoms = [block * columns + c for block in range(blocks) for c in draw(st.permutations(range(columns)))[:keep]]
    order = {axes[-1]: np.array(atoms)}
    if len(axes) == 2:
        each = rows // blocks
        left = draw(st.integers(1, each))
        order[axes[0]] = np.array(
            [block * each + r for block in range(blocks) for r in draw(st.permutations(range(each)))[:left]]
        )
    return shape, axes, order


@share(2)
@given(blocked())
def test_blocks_of_rows_gather_their_own_columns(case: tuple[tuple[int, ...], list[Axis], dict[Axis, Ids]]) -> None:
    shape, axes, order = case
    source = numbers(shape)
    found = take(source, axes, order)
    assert np.array_equal(found.numpy(), naive(source.numpy(), axes, order))
    assert tuple(found.shape) == slim_shape(shape, axes, order)


@share(1)
@given(blocked())
def test_factors_of_a_slim_tensor_name_the_atoms_that_stand_there(
    case: tuple[tuple[int, ...], list[Axis], dict[Axis, Ids]],
) -> None:
    """The atoms in every place, read as numbers of the original, are where ``take`` gets its numbers."""
    shape, axes, order = case
    factors = dict(zip(axes, slim_factors(shape, axes, order), strict=True))
    found = take(numbers(shape), axes, order).numpy().astype(np.int64)
    row, column = np.unravel_index(found, shape)[:2]
    for axis, ids in factors.items():
        where = np.broadcast_to(ids, found.shape) - axis.start
        each = shape[0] // axis.blocks
        assert np.array_equal(where, row if axis.dim == 0 else (row // each) * shape[1] + column)


@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
def test_chunks_do_not_change_the_result(chunk: int) -> None:
    shape = (12, 5, 3)
    for dims, blocks in (((0, 1), 1), ((1,), 4), ((0, 1), 4), ((0, 1, 2), 1)):
        axes = axes_of(shape, dims, blocks)
        order = {a: np.arange(a.size)[:: 5 if a.blocks == 4 else 2] for a in axes}
        if blocks == 4 and 0 in dims:
            order[axes[0]] = np.arange(0, 12, 3)
        whole = take(numbers(shape), axes, order)
        assert torch.equal(take(numbers(shape), axes, order, chunk), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.bool])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    axes = axes_of((4, 3), (0,))
    found = take(numbers((4, 3), dtype), axes, {axes[0]: np.array([1, 3])})
    assert found.dtype == dtype
    assert torch.equal(found, numbers((4, 3), dtype)[[1, 3]])


@pytest.mark.parametrize("kept", [4, 2])
def test_channels_last_is_kept(kept: int) -> None:
    source = numbers((4, 3, 2, 2)).contiguous(memory_format=torch.channels_last)
    axes = axes_of((4, 3, 2, 2), (0, 1))
    found = take(source, axes, {axes[0]: np.arange(kept), axes[1]: np.arange(2)})
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, source[:kept, :2])


def test_what_is_expanded_or_a_view_is_taken_by_value() -> None:
    axes = axes_of((4, 3), (0,))
    source = torch.arange(3.0).expand(4, 3)
    found = take(source, axes, {axes[0]: np.array([0, 2])})
    assert torch.equal(found, source[[0, 2]])
    found[0, 0] = 9
    assert source[0, 0] == 0


def test_scalars_and_tensors_without_axes_are_cloned() -> None:
    for source in (torch.tensor(3.0), torch.arange(4.0), torch.zeros(0, 3)):
        found = take(source, [], {})
        assert torch.equal(found, source)
        assert found is not source
    assert slim_shape((), [], {}) == ()


def test_gradients_do_not_flow_into_the_original() -> None:
    source = nn.Parameter(numbers((4, 3)))
    axes = axes_of((4, 3), (0,))
    assert not take(source, axes, {axes[0]: np.array([1])}).requires_grad


def test_silent_atoms_are_read_with_weight_zero() -> None:
    axes = axes_of((3, 5), (0, 1))
    order = {axes[0]: np.arange(3), axes[1]: np.array([1, 3, 4])}
    tensor = take(torch.ones(3, 5), axes, order)
    silence(tensor, (3, 5), axes, order, {1: (3,)})
    assert tensor.tolist() == [[1.0, 0.0, 1.0]] * 3


def test_silent_atoms_of_a_grouped_weight_are_read_with_weight_zero() -> None:
    axes = axes_of((4, 3, 1), (1,), blocks=2)
    order = {axes[0]: np.array([0, 1, 3, 5])}
    tensor = take(torch.ones(4, 3, 1), axes, order)
    silence(tensor, (4, 3, 1), axes, order, {1: (1, 5)})
    assert tensor[..., 0].tolist() == [[1.0, 0.0]] * 4
    silence(tensor, (4, 3, 1), axes, order, {1: (0,)})
    assert tensor[..., 0].tolist() == [[0.0, 0.0]] * 2 + [[1.0, 0.0]] * 2


@pytest.mark.parametrize("grad", [True, False])
def test_like(grad: bool) -> None:
    new = like(nn.Parameter(torch.zeros(3), requires_grad=grad), torch.zeros(2))
    assert type(new) is nn.Parameter
    assert new.requires_grad == grad
    assert type(like(torch.zeros(3), torch.zeros(2))) is Tensor


@share(0.3)
@given(st.data())
def test_runs_of_neighbours_are_gathered_together(data: st.DataObject) -> None:
    """What a flatten leaves of channels: runs of neighbouring columns, in any order, of weights with and without a window."""
    run, channels, rows = data.draw(st.sampled_from([1, 3, 8, 49])), data.draw(st.integers(2, 9)), data.draw(st.integers(2, 7))
    window = data.draw(st.sampled_from([(), (3, 3)]))
    shape = (rows, channels * run, *window)
    axes = axes_of(shape, (0, 1))
    keep = data.draw(st.lists(st.integers(0, channels - 1), min_size=1, unique=True))
    columns = (np.array(keep)[:, None] * run + np.arange(run)).ravel()
    order = {axes[0]: np.sort(data.draw(st.permutations(range(rows)))[: rows // 2 + 1]), axes[1]: columns}
    source = torch.randn(shape, dtype=torch.float64)
    for chunk in (8, 1 << 20):
        taken = take(source, axes, order, chunk)
        assert np.array_equal(taken.numpy(), source.numpy()[order[axes[0]]][:, columns])
