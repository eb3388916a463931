"""Slim networks leave fxprune: exporters, compilers, memory formats, mixed precision, several processes.

The reference is always the slim module itself, run eagerly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import fxprune
from tests.models.exporting import NETS, Net

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=NETS, ids=lambda name: name.partition(" ")[0])
def net(request: pytest.FixtureRequest) -> tuple[Net, fx.GraphModule]:
    chosen = NETS[request.param]
    slim = fxprune.slim(chosen.model(), chosen.ratio, chosen.batch(2), layout=chosen.layout)
    assert fxprune.plan_of(slim).achieved > 0.2
    return chosen, slim


@pytest.fixture(autouse=True)
def _others_warnings() -> Iterator[None]:
    """Exporters and compilers warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * a.abs().max()


def batch_dimension() -> tuple[dict[int, Dim], ...]:
    return ({0: Dim("batch", min=1, max=64)},)


def test_torch_export(net: tuple[Net, fx.GraphModule], tmp_path: Path) -> None:
    chosen, slim = net
    program = torch.export.export(slim, (chosen.batch(2),), dynamic_shapes=batch_dimension())
    torch.export.save(program, tmp_path / "slim.pt2")
    again = torch.export.load(tmp_path / "slim.pt2").module()
    for count in (1, 2, 5):
        close(run(slim, chosen.batch(count)), run(again, chosen.batch(count)))
    assert sum(p.numel() for p in program.parameters()) == sum(p.numel() for p in slim.parameters())


@pytest.mark.slow
def test_onnx(net: tuple[Net, fx.GraphModule], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    chosen, slim = net
    path = tmp_path / "slim.onnx"
    torch.onnx.export(slim, (chosen.batch(2),), path, dynamo=True, dynamic_shapes=batch_dimension(), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for count in (1, 2, 5):
        (found,) = session.run(None, {given.name: chosen.batch(count).numpy()})
        close(run(slim, chosen.batch(count)), torch.from_numpy(found))


def test_torch_jit_trace(net: tuple[Net, fx.GraphModule], tmp_path: Path) -> None:
    chosen, slim = net
    torch.jit.trace(slim, chosen.batch(2)).save(tmp_path / "slim.pt")
    again = torch.jit.load(tmp_path / "slim.pt")
    for count in (1, 2, 5):
        close(run(slim, chosen.batch(count)), run(again, chosen.batch(count)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile(net: tuple[Net, fx.GraphModule], backend: str) -> None:
    chosen, slim = net
    torch._dynamo.reset()
    compiled = torch.compile(slim, backend=backend, fullgraph=True, dynamic=None)
    for count in (2, 3, 5):
        close(run(slim, chosen.batch(count)), run(compiled, chosen.batch(count)))


def test_channels_last(net: tuple[Net, fx.GraphModule]) -> None:
    chosen, slim = net
    x = chosen.batch(2)
    if x.dim() != 4:
        pytest.skip("no images")
    model = chosen.model().to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    other = fxprune.slim(model, chosen.ratio, x, layout=chosen.layout)
    weights = [p for p in other.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    close(run(slim, chosen.batch(2)), run(other, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(net: tuple[Net, fx.GraphModule], dtype: torch.dtype) -> None:
    chosen, slim = net
    with torch.autocast("cpu", dtype=dtype):
        out = run(slim, chosen.batch(2))
    reference = run(slim, chosen.batch(2))
    assert (out.float() - reference).abs().mean() <= 0.1 * reference.abs().mean()
    slim.train()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = slim(chosen.batch(2)).float().square().mean()
        loss.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in slim.parameters())
        assert any(p.grad is not None for p in slim.parameters())
    finally:
        slim.zero_grad()
        slim.eval()


def test_save_load_export(net: tuple[Net, fx.GraphModule], tmp_path: Path) -> None:
    chosen, slim = net
    fxprune.save(slim, tmp_path / "slim.safetensors")
    loaded = fxprune.load(chosen.model(), tmp_path / "slim.safetensors").eval()
    program = torch.export.export(loaded, (chosen.batch(2),), dynamic_shapes=batch_dimension())
    close(run(slim, chosen.batch(3)), run(program.module(), chosen.batch(3)))


def trained(rank: int, world: int, address: str, path: str) -> None:
    """One process of a data-parallel step; the first one writes its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    chosen = NETS["resnet (shortcuts)"]
    slim = fxprune.slim(chosen.model(), 0.4, chosen.batch(2), verify=False)
    parallel = nn.parallel.DistributedDataParallel(slim.eval())
    parallel(chosen.batch(4)[2 * rank : 2 * rank + 2]).square().mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in slim.named_parameters()}, path)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(trained, (2, str(tmp_path / "meet"), str(tmp_path / "gradients.pt")), nprocs=2)
    chosen = NETS["resnet (shortcuts)"]
    slim = fxprune.slim(chosen.model(), 0.4, chosen.batch(2), verify=False)
    slim(chosen.batch(4)).square().mean().backward()
    found = torch.load(tmp_path / "gradients.pt")
    for name, parameter in slim.named_parameters():
        close(parameter.grad, found[name])
