"""Sparse forms and their file: exact round trips, the paper's worked example, and files that are damaged in every way."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse as scipy_sparse
from torch import Tensor, nn

from fxprune import BudgetError, FxpruneError, PlanMismatchError, WeightError, sparse, zoo
from fxprune.sparse import encode as forms
from fxprune.sparse import file as files
from fxprune.sparse.errors import SparseFileError
from tests.property.profile import share

FORMS = ("auto", "dense", "csr", "csc", "relative")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64)
NASTY = (-0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 1.5)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 7), min_size=0, max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    values = torch.randn(shape, generator=generator)
    values = torch.where(torch.rand(shape, generator=generator) < draw(st.floats(0, 1)), values, 0.0)
    if values.numel() and draw(st.booleans()):
        values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(NASTY))
    return values.to(dtype)


@share(2)
@given(st.lists(tensors(), max_size=4), st.sampled_from(FORMS), st.integers(1, 8), st.booleans())
def test_what_is_read_is_what_was_written_bit_for_bit(found: list[Tensor], form: str, bits: int, zstd: bool) -> None:
    state = {f"layer{i}.weight": tensor for i, tensor in enumerate(found)}
    back = files.decode(files.encode(state, form=form, conv_bits=bits, linear_bits=bits, zstd=zstd))
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert raw(back[name]) == raw(tensor)


def test_the_paper_s_example_of_a_filler() -> None:
    # Figure 2 of Han et al. 2016: values 3.4 at 1, 0.9 at 4 and 1.7 at 15, spans of 8 (3 bits): a filler zero stands at 12.
    row = np.zeros(16, np.float32)
    row[[1, 4, 15]] = 3.4, 0.9, 1.7
    found = forms.relate(row.view(np.uint32), (1, 16), 3)
    # The paper writes distances (1, 3, 8, 3) from position 0; here they are the zeros between, from before the first element.
    assert found.gaps.tolist() == [1, 2, 7, 2]
    assert found.values.view(np.float32).tolist() == pytest.approx([3.4, 0.9, 0, 1.7])
    assert found.fillers == 1


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 8))
def test_relative_indices_against_a_loop(gaps: list[int], bits: int) -> None:
    dense: list[int] = []
    for gap in gaps:
        dense += [0] * gap + [7]
    dense += [0, 0]
    values, codes, zeros = [], [], 0
    for number in dense:
        if number:
            values.append(number)
            codes.append(zeros)
            zeros = 0
        elif zeros == 2**bits - 1:
            values.append(0)
            codes.append(zeros)
            zeros = 0
        else:
            zeros += 1
    while values and values[-1] == 0:  # a loop that cannot look ahead puts fillers after the last value
        values.pop()
        codes.pop()
    found = forms.relate(np.array(dense, np.uint32), (len(dense),), bits)
    assert found.values.tolist() == values
    assert found.gaps.tolist() == codes
    assert forms.unrelate(found).tolist() == dense


@given(st.lists(st.integers(0, 255)), st.integers(1, 8))
def test_codes_are_packed_without_loss(codes: list[int], width: int) -> None:
    given_codes = np.array([code % (1 << width) for code in codes], np.uint8)
    data = forms.pack(given_codes, width)
    assert len(data) == -(-len(codes) * width // 8)
    assert forms.unpack(data, len(codes), width).tolist() == given_codes.tolist()


@pytest.mark.parametrize("rows", [True, False])
def test_compressed_lines_are_scipy_s_and_count_2a_n_1(rows: bool) -> None:
    torch.manual_seed(0)
    weight = torch.where(torch.rand(9, 4, 3, 3) < 0.2, torch.randn(9, 4, 3, 3), 0.0)
    found = forms.compress(forms.bits_of(weight), (9, 4, 3, 3), rows=rows)
    other = (scipy_sparse.csr_array if rows else scipy_sparse.csc_array)(weight.reshape(9, 36).numpy())
    assert found.indices.tolist() == other.indices.tolist()
    assert found.pointers.tolist() == other.indptr.tolist()
    assert found.values.view(np.float32).tolist() == other.data.tolist()
    lines = 9 if rows else 36
    assert found.numbers == 2 * int((weight != 0).sum()) + lines + 1


def pruned(density: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    model = zoo.lenet5(batch_norm=True)
    sparse.set_masks(model, sparse.by_density(model, density))
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_model_comes_back_from_its_file(tmp_path: Path, form: str) -> None:
    model, x = pruned(), torch.randn(3, 1, 28, 28)
    size = sparse.save(model, tmp_path / "net.fxsp", form=form)
    assert (tmp_path / "net.fxsp").stat().st_size == size
    fresh = sparse.load_into(zoo.lenet5(batch_norm=True), tmp_path / "net.fxsp").eval()
    assert torch.equal(fresh(x), model(x))
    assert list(sparse.load(tmp_path / "net.fxsp")) == list(zoo.lenet5(batch_norm=True).state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["net.fxsp"]


def test_auto_is_never_larger_than_the_best_form() -> None:
    for density in (0.01, 0.1, 0.5, 1.0):
        model = pruned(density)
        found = {form: len(files.encode(model, form=form)) for form in FORMS}
        assert found["auto"] <= min(found.values()) + 100  # the header of another form may be longer
    assert len(files.encode(pruned(0.05))) < 0.1 * len(files.encode(pruned(0.05), form="dense"))


def test_sizes_are_sizes_of_files(tmp_path: Path) -> None:
    model = zoo.mlp(16, 40, 10)
    sparse.set_masks(model, sparse.by_density(model, 0.1))
    found = sparse.sizes(model)
    assert found.bytes["csr + zstd"] == sparse.save(model, tmp_path / "a", form="csr", zstd=True)
    assert found.bytes["dense"] == sum(t.numel() * t.element_size() for t in sparse.permanent(model).state_dict().values())
    assert "| csr |" in found.table()
    assert "safetensors" not in found.bytes or found.bytes["safetensors"] > found.bytes["dense"]


def test_sparse_modules_compute_what_the_dense_ones_do() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2, bias=False)
            self.b = nn.Conv2d(8, 8, (3, 1), groups=2)
            self.c = nn.Conv2d(8, 6, (1, 2), padding=(0, 1))
            self.d = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.d(self.c(self.b(self.a(x)).relu()).movedim(1, -1))
            return y

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(2, 3, 13, 12, dtype=torch.float64)
    sparse.set_masks(model, sparse.by_density(model, 0.3))
    found = sparse.to_csr(model)
    assert [type(m).__name__ for m in found.children()] == ["SparseConv2d", "Conv2d", "SparseConv2d", "SparseLinear"]
    assert found.d.weight.layout == torch.sparse_csr
    assert torch.allclose(found(x), model(x), rtol=1e-12, atol=1e-13)
    kept = sparse.to_csr(model, density=0.0)
    assert not any("Sparse" in type(m).__name__ for m in kept.modules())
    assert "entries=" in repr(found)
    assert sparse.to_csr(nn.Linear(3, 2))(torch.randn(4, 3)).shape == (4, 2)


def test_modules_that_cannot_be_sparse() -> None:
    with pytest.raises(WeightError, match="bfloat16"):
        sparse.to_csr(pruned().bfloat16())
    with pytest.raises(BudgetError):
        sparse.to_csr(pruned(), density=2)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_scipy_takes_and_gives_the_same_tensor(form: str) -> None:
    weight = sparse.permanent(pruned()).conv2.weight.detach()
    matrix = sparse.to_scipy(weight, form)
    assert matrix.format == form
    assert matrix.nnz == int((weight != 0).sum())
    assert np.array_equal(matrix.toarray(), weight.reshape(50, -1).numpy())
    assert torch.equal(sparse.from_scipy(matrix, tuple(weight.shape)), weight)
    for call in (
        lambda: sparse.to_scipy(weight, "coo"),
        lambda: sparse.to_scipy(weight.half()),
        lambda: sparse.from_scipy(weight),
        lambda: sparse.from_scipy(matrix, (49, 500)),
    ):
        with pytest.raises(FxpruneError):
            call()


def test_what_is_not_stored() -> None:
    for wrong in (torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()):
        with pytest.raises(WeightError, match="not stored"):
            files.encode({"a": wrong})
    for options in ({"form": "coo"}, {"conv_bits": 9}, {"linear_bits": 0}):
        with pytest.raises(BudgetError):
            files.encode({}, **options)  # type: ignore[arg-type]


def test_files_of_another_model(tmp_path: Path) -> None:
    sparse.save(pruned(), tmp_path / "net")
    for other in (zoo.lenet300(), zoo.lenet5(3, batch_norm=True)):
        before = {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(PlanMismatchError, match="does not fit"):
            sparse.load_into(other, tmp_path / "net")
        assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    with pytest.raises(SparseFileError, match="cannot be read"):
        sparse.load(tmp_path / "nothing")


def small(form: str = "relative", zstd: bool = False) -> bytes:
    weight = torch.zeros(6, 9)
    weight[[0, 2, 5], [1, 8, 3]] = torch.tensor([1.0, -2.0, 3.5])
    return files.encode({"a.weight": weight, "a.bias": torch.ones(6), "n": torch.tensor(3)}, form=form, zstd=zstd)


@given(st.data())
def test_damaged_and_cut_files_are_refused(data: st.DataObject) -> None:
    content = bytearray(small(data.draw(st.sampled_from(FORMS)), data.draw(st.booleans())))
    how = data.draw(st.sampled_from(["flip", "cut", "add", "random"]))
    if how == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "add":
        content += data.draw(st.binary(min_size=1, max_size=9))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    with pytest.raises(SparseFileError):
        files.decode(bytes(content))


def resealed(header: Any, payload: bytes, flags: int = 0) -> bytes:
    """A file with a good digest around a header and a payload that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = files.HEAD.pack(files.MAGIC, files.VERSION, flags, len(text), len(payload)) + text + payload
    return content + hashlib.sha256(content).digest()


def opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    _, _, _, length, _ = files.HEAD.unpack_from(content)
    return json.loads(content[files.HEAD.size : files.HEAD.size + length]), content[files.HEAD.size + length : -32]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@share(2)
@given(st.data())
def test_headers_that_lie_are_refused_or_harmless(data: st.DataObject) -> None:
    header, payload = opened(small(data.draw(st.sampled_from(FORMS))))
    item = data.draw(st.sampled_from(header["tensors"]))
    key = data.draw(
        st.sampled_from(["name", "dtype", "shape", "form", "count", "index", "pointer", "bits", "", "bytes", "tensors"])
    )
    likely = st.sampled_from(
        ["float16", "csr", "csc", "relative", "dense", [6, 9], [54], [9, 6], [2**40, 2**20], [0, 2**61], 1, 2, 8, 3, 54, -1]
    )
    value = data.draw(likely | JSON)
    if key in ("bytes", "tensors"):
        header[key] = value
    elif key:
        item[key] = value
    else:
        item.pop(data.draw(st.sampled_from(sorted(item))))
    try:
        found = files.decode(resealed(header, payload), limit=10_000)
    except SparseFileError:
        return
    assert all(isinstance(tensor, Tensor) for tensor in found.values())


@given(st.sampled_from(["csr", "csc", "relative", "dense"]), st.data())
def test_payloads_that_lie_are_refused_or_harmless(form: str, data: st.DataObject) -> None:
    header, payload = opened(small(form))
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = files.decode(resealed(header, bytes(changed)))
    except SparseFileError:
        return
    assert found["a.weight"].shape == (6, 9)


def test_a_few_bytes_do_not_unfold_to_a_flood() -> None:
    pytest.importorskip("zstandard")
    header, _ = opened(small("csr"))
    header["tensors"] = [{"name": "a", "dtype": "float32", "shape": [2**30, 2**20], "form": "relative", "count": 0, "bits": 5}]
    header["bytes"] = 0
    with pytest.raises(SparseFileError, match="limit"):
        files.decode(resealed(header, b""))
    bomb = files.zstandard().ZstdCompressor().compress(bytes(10_000_000))
    header["tensors"] = [{"name": "a", "dtype": "float32", "shape": [2], "form": "dense", "count": 2}]
    header["bytes"] = 8
    with pytest.raises(SparseFileError, match="payload"):
        files.decode(resealed(header, bomb, flags=files.ZSTD))


def test_versions_from_elsewhere() -> None:
    content = small()
    with pytest.raises(SparseFileError, match="version 9"):
        files.decode(content[:4] + struct.pack("<H", 9) + content[6:])
    with pytest.raises(SparseFileError, match="no file"):
        files.decode(b"PK\x03\x04" + content[4:])
    for header in (b"{", b"[]", b"\xff", b"[" * 100_000, {"tensors": [1], "bytes": 0}):
        with pytest.raises(SparseFileError, match="header"):
            files.decode(resealed(header, b""))


def test_without_zstandard_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(FxpruneError, match=r"fxprune\[sparse\]"):
        small(zstd=True)
