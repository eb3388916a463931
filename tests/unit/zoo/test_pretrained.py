"""Trained checkpoints load and classify: skipped where the files are absent."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import data, zoo

ROOT = Path(os.environ.get("FXPRUNE_DATA", Path(__file__).parents[4] / "shared" / "data"))
WEIGHTS = {
    "resnet20-12fca82f.th": zoo.resnet20,
    "resnet32-d509ac18.th": zoo.resnet32,
    "resnet44-014dd654.th": zoo.resnet44,
    "resnet56-4bfd9763.th": zoo.resnet56,
}


def need(path: Path) -> Path:
    """The path, or a skip that says what is missing and how to point at it."""
    if not path.exists():
        pytest.skip(f"{path} is absent; point $FXPRUNE_DATA at the folder that holds {path.parent.name}/")
    return path


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    folder = need(ROOT / "cifar10-jpeg" / "test.npz").parent
    _, test = data.cifar10_jpeg(folder)
    assert len(test) == 8000
    return test.batch(torch.arange(500))


@pytest.mark.parametrize("name", WEIGHTS)
def test_published_weights_classify(name: str, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    build: Callable[[], nn.Module] = WEIGHTS[name]
    model = zoo.load_pretrained(build(), need(ROOT / "resnet-cifar10" / name)).eval()
    pixels, labels = images
    with torch.no_grad():
        accuracy = (model(pixels).argmax(1) == labels).double().mean()
    # 81-83 % on all 8,000 images; the standard error of 500 images is 1.7 points
    assert 0.76 < accuracy < 0.89


def test_checkpoints_load_bare_and_with_a_prefix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.resnet20()
    state = model.state_dict()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "wrapped.pt")
    for name in ("bare.pt", "wrapped.pt"):
        loaded = zoo.load_pretrained(zoo.resnet20(), tmp_path / name)
        for key, value in loaded.state_dict().items():
            torch.testing.assert_close(value, state[key])


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(zoo.resnet20().state_dict(), tmp_path / "resnet20.pt")
    with pytest.raises(RuntimeError, match="Missing key"):
        zoo.load_pretrained(zoo.resnet32(), tmp_path / "resnet20.pt")
