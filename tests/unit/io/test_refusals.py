"""What ``load`` and ``save`` refuse, and how they say so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxprune
import fxprune.io
from fxprune.io.container import DIGEST, NONE
from tests.property.profile import share
from tests.unit.api.nets import Chain, Residual, run, seeded
from tests.unit.io.nets import image


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file."""
    path = tmp_path_factory.mktemp("written") / "slim.safetensors"
    fxprune.save(fxprune.slim(seeded(Chain()), 0.4, image()), path)
    return path.read_bytes()


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    """A file with a right digest, whatever it says."""
    header["__metadata__"][DIGEST] = NONE
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    return whole.replace(NONE.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def reworded(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with another document, and a right digest."""
    header, data = parts(content)
    document = json.loads(header["__metadata__"]["fxprune"])
    change(document)
    header["__metadata__"]["fxprune"] = json.dumps(document)
    return joined(header, data)


def loaded(content: bytes, folder: Path, model: nn.Module | None = None) -> nn.Module:
    path = folder / "given.safetensors"
    path.write_bytes(content)
    return fxprune.load(Chain().double().eval() if model is None else model, path)


def test_the_way_files_are_changed_here_is_right(written: bytes, tmp_path: Path) -> None:
    assert joined(*parts(written)).rstrip() != b""
    same = loaded(reworded(written, lambda d: d.update(torch="another")), tmp_path)
    assert torch.equal(run(same, image()), run(loaded(written, tmp_path), image()))


# -- architecture ------------------------------------------------------------------------------------------------------


class Twice(Chain):
    """The same parameters, another program."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Strided(Chain):
    """The same parameters, another setting of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2.stride = (2, 2)


class Wider(Chain):
    def __init__(self) -> None:
        super().__init__(12)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Residual, "it had 'conv1.bias' of shape|'conv1.weight' had shape"),
        (Wider, r"'conv1.weight' had shape \(8, 3, 3, 3\), and has \(12, 3, 3, 3\) in this model"),
        (Twice, "the program is another one from node '.*' on"),
        (Strided, "the program is another one from node 'conv2' on"),
    ],
)
def test_another_architecture(written: bytes, tmp_path: Path, build: type[nn.Module], says: str) -> None:
    with pytest.raises(fxprune.PlanMismatchError, match=says):
        loaded(written, tmp_path, build().double())


def test_the_same_architecture_in_another_class_dtype_and_mode(written: bytes, tmp_path: Path) -> None:
    class Renamed(Chain):
        pass

    assert torch.equal(
        run(loaded(written, tmp_path, Renamed().train().half()).eval(), image()), run(loaded(written, tmp_path), image())
    )


# -- damage ------------------------------------------------------------------------------------------------------------


def test_truncated(written: bytes, tmp_path: Path) -> None:
    for size in (0, 1, 7, 8, 9, 100, len(written) // 2, len(written) - 1):
        with pytest.raises(fxprune.FileFormatError, match=r"given.safetensors") as caught:
            loaded(written[:size], tmp_path)
        if size > 8 + 1:
            assert "truncated" in str(caught.value), (size, caught.value)


def test_lengthened(written: bytes, tmp_path: Path) -> None:
    with pytest.raises(fxprune.FileFormatError, match="1 bytes follow"):
        loaded(written + b"\0", tmp_path)


def test_tampered_weights(written: bytes, tmp_path: Path) -> None:
    changed = bytearray(written)
    changed[-5] ^= 1
    with pytest.raises(fxprune.FileFormatError, match="changed after it was written"):
        loaded(bytes(changed), tmp_path)


def test_tampered_plan(written: bytes, tmp_path: Path) -> None:
    assert written.count(b'\\"kept\\":0') > 0
    with pytest.raises(fxprune.FileFormatError, match="changed after it was written"):
        loaded(written.replace(b'\\"kept\\":0', b'\\"kept\\":1', 1), tmp_path)


def test_a_tampered_digest(written: bytes, tmp_path: Path) -> None:
    digest = parts(written)[0]["__metadata__"][DIGEST].encode()
    for other in (NONE.encode(), digest[::-1], digest.upper()):
        with pytest.raises(fxprune.FileFormatError):
            loaded(written.replace(digest, other), tmp_path)


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, True, [1]])
def test_an_unknown_format(written: bytes, tmp_path: Path, version: Any) -> None:
    with pytest.raises(fxprune.FileFormatError, match=r"this fxprune reads format 1.*written by fxprune 7.5"):
        loaded(reworded(written, lambda d: d.update(format=version, fxprune="7.5")), tmp_path)


def test_weights_without_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(Chain().state_dict(), path)
    with pytest.raises(fxprune.FileFormatError, match="holds weights, but no plan"):
        fxprune.load(Chain(), path)


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "pickle.pt"
    torch.save(Chain().state_dict(), path)
    with pytest.raises(fxprune.FileFormatError, match="no safetensors file"):
        fxprune.load(Chain(), path)
    with pytest.raises(fxprune.FileFormatError, match=r"holds no fxprune.safetensors"):
        fxprune.load(Chain(), tmp_path)
    with pytest.raises(FileNotFoundError):
        fxprune.load(Chain(), tmp_path / "not there")


def test_a_tensor_more_or_less(written: bytes, tmp_path: Path) -> None:
    header, data = parts(written)
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    start = header[last]["data_offsets"][0]
    with pytest.raises(fxprune.FileFormatError, match=f"has no tensor '{last}'"):
        loaded(joined({k: v for k, v in header.items() if k != last}, data[:start]), tmp_path)
    more = {"dtype": "U8", "shape": [2], "data_offsets": [len(data), len(data) + 2]}
    with pytest.raises(fxprune.FileFormatError, match="has a tensor 'more'"):
        loaded(joined({**header, "more": more}, data + b"ab"), tmp_path)


def test_a_tensor_of_another_shape(written: bytes, tmp_path: Path) -> None:
    header, data = parts(written)
    shape = header["fc.weight"]["shape"]
    with pytest.raises(fxprune.FileFormatError, match=r"'fc.weight' with shape"):
        loaded(joined({**header, "fc.weight": {**header["fc.weight"], "shape": shape[::-1]}}, data), tmp_path)


# -- what cannot be saved ----------------------------------------------------------------------------------------------


def test_a_model_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(fxprune.PlanMismatchError, match="carries no plan"):
        fxprune.save(Chain(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_wraps_a_slim_model_or_was_made_of_one(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    made = {
        "its .module": nn.DataParallel(slim),
        "its ._orig_mod": torch.compile(slim),
        "deploy what load": fxprune.deploy(slim, image()),
    }
    for words, module in made.items():
        with pytest.raises(fxprune.PlanMismatchError, match=words):
            fxprune.save(module, tmp_path / "s.safetensors")


def test_what_is_loaded_into(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(written)
    with pytest.raises(fxprune.InputError, match="the original that"):
        fxprune.load(tmp_path / "s.safetensors", tmp_path / "s.safetensors")
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    with pytest.raises(fxprune.PlanMismatchError, match="It is slim already"):
        fxprune.load(slim, tmp_path / "s.safetensors")


def test_a_model_that_was_changed_by_hand(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    slim.fc = nn.Linear(slim.fc.in_features, 7).double()
    with pytest.raises(fxprune.PlanMismatchError, match="was changed after it was slimmed"):
        fxprune.save(slim, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_model_without_numbers(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image()).to("meta")
    with pytest.raises(fxprune.WeightError, match="meta device"):
        fxprune.save(slim, tmp_path / "x.safetensors")


def test_a_dtype_that_files_do_not_know(tmp_path: Path) -> None:
    slim = fxprune.slim(seeded(Chain()), 0.4, image())
    slim.get_parameter("fc.bias").data = slim.get_parameter("fc.bias").data.to(torch.complex128)
    with pytest.raises(fxprune.WeightError, match="complex128"):
        fxprune.save(slim, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


# -- anything at all ---------------------------------------------------------------------------------------------------


def clean(content: bytes, folder: Path, expected: Tensor) -> bool:
    """Loading fails with an error of the family, or gives the model that was saved."""
    try:
        found = loaded(content, folder)
    except fxprune.FxpruneError as error:
        assert str(error)  # noqa: PT017
        return False
    assert torch.equal(run(found, image()), expected)
    return True


@pytest.fixture(scope="module")
def expected(written: bytes, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return run(loaded(written, tmp_path_factory.mktemp("expected")), image())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@share(3)
@given(place=st.integers(0, 1 << 20), flip=st.integers(1, 255))
def test_flipped_bytes(written: bytes, expected: Tensor, folder: Path, place: int, flip: int) -> None:
    changed = bytearray(written)
    changed[place % len(written)] ^= flip
    assert not clean(bytes(changed), folder, expected)


@share(1)
@given(cut=st.integers(0, 1 << 20), start=st.integers(0, 1 << 20), instead=st.binary(max_size=40))
def test_cuts_and_inserts(written: bytes, expected: Tensor, folder: Path, cut: int, start: int, instead: bytes) -> None:
    start %= len(written)
    changed = written[:start] + instead + written[start + cut % 200 :]
    assert clean(changed, folder, expected) == (changed == written)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@share(1)
@given(
    content=st.binary(max_size=300)
    | st.builds(
        lambda h, d: len(h).to_bytes(8, "little") + h + d, JSON.map(lambda j: json.dumps(j).encode()), st.binary(max_size=64)
    )
)
def test_random_files(expected: Tensor, folder: Path, content: bytes) -> None:
    assert not clean(content, folder, expected)


@share(1)
@given(
    name=st.sampled_from(["fc.weight", "conv1.weight", "__metadata__", "new"]),
    value=JSON,
    key=st.sampled_from(["", "dtype", "shape", "data_offsets"]),
)
def test_random_headers(written: bytes, expected: Tensor, folder: Path, name: str, value: Any, key: str) -> None:
    header, data = parts(written)
    if key and name in header and name != "__metadata__":
        header[name][key] = value
    elif name == "__metadata__":
        header[name]["fxprune"] = json.dumps(value) if isinstance(value, dict) else str(value)
    else:
        header[name] = value
    clean(joined(header, data), folder, expected)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in JSON data; of long lists, of the first entries."""
    items = list(data.items()) if isinstance(data, dict) else list(enumerate(data[:3])) if isinstance(data, list) else []
    return [path, *(found for key, value in items for found in places(value, (*path, key)))]


@share(4)
@given(data=st.data())
def test_random_documents_with_a_right_digest(written: bytes, expected: Tensor, folder: Path, data: st.DataObject) -> None:
    """Whoever can compute digests can write any document: still no crash."""
    document = json.loads(parts(written)[0]["__metadata__"]["fxprune"])
    place = data.draw(st.sampled_from(places(document)[1:]))
    value = data.draw(JSON | st.sampled_from([0, 1, -1, 2**31, 10**12, "", [], {}]))

    def change(found: Any) -> None:
        for key in place[:-1]:
            found = found[key]
        found[place[-1]] = value

    content = reworded(written, change)
    try:
        loaded(content, folder)
        fxprune.io.describe(folder / "given.safetensors")
    except fxprune.FxpruneError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["", ".", "..", "../given.safetensors", "\0", "missing.safetensors"])
def test_a_shard_is_a_file_beside_the_first(name: str, written: bytes, folder: Path) -> None:
    content = reworded(written, lambda document: document.update(shards={name: None}))
    with pytest.raises(fxprune.FileFormatError, match="holds a part of the model"):
        loaded(content, folder)
