"""A file that is being written over stands for the old model or the new one, whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.io.atomic import replacing
from tests.unit.api.nets import seeded

QUICK, THOROUGH = 8, 50


class Wide(nn.Module):
    """Some megabytes of weights, so that a save takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(8, 700), nn.Linear(700, 700), nn.Linear(700, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.mid(self.up(x).relu()).relu())


def saving(first: nn.Module, second: nn.Module, path: Path, ready: int) -> None:
    """Save the one and the other, over and over."""
    torch.set_num_threads(1)
    os.write(ready, b"x")
    while True:
        fxprune.save(second, path)
        fxprune.save(first, path)


@pytest.mark.parametrize("kills", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.slow)])
def test_killed_while_saving(kills: int, tmp_path: Path) -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    first = fxprune.slim(seeded(Wide()), 0.3, x)
    second = fxprune.slim(seeded(Wide(), seed=1), 0.4, x)
    path = tmp_path / "model.safetensors"
    fxprune.save(second, path)
    new = path.read_bytes()
    began = time.perf_counter()
    fxprune.save(first, path)
    seconds = time.perf_counter() - began
    old = path.read_bytes()
    chance, fork = random.Random(0), multiprocessing.get_context("fork")
    seen, parts = set(), 0
    for _ in range(kills):
        reading, writing = os.pipe()
        process = fork.Process(target=saving, args=(first, second, path, writing))
        process.start()
        os.read(reading, 1)
        time.sleep(chance.uniform(0, 3 * seconds))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.close(reading)
        os.close(writing)
        content = path.read_bytes()
        assert content in (old, new), f"{len(content)} bytes"
        seen.add(content == new)
        left = [p for p in tmp_path.iterdir() if p != path]
        parts += len(left)
        for p in left:
            assert p.name.startswith(".model.safetensors.")
            p.unlink()
    if kills == THOROUGH:
        assert seen == {True, False}, "the kills came all at the same point"
        assert parts > kills / 5, "the kills did not come while a file was written"
    assert torch.equal(fxprune.load(Wide().double(), path)(x), (second if content == new else first)(x))


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder to write 'file' into: '.*/no'"), replacing(tmp_path / "no" / "file"):
        pass


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="this is a folder"), replacing(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
