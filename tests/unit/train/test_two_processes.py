"""The same training by one process and by two with half the batch each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune import train
from tests.unit.api.nets import Chain, image, seeded
from tests.unit.train.processes import run
from tests.unit.train.test_penalties import trained_at_once

PROGRAM = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from fxprune import train
from tests.unit.train.test_penalties import Chain, image, loss, per_sample, seeded

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
inner = per_sample()
model = DistributedDataParallel(inner)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
sparsity = train.GammaL1(model, 0.1)
for step in range(3):
    optimizer.zero_grad()
    images, labels = image(8, 3, 8, 8, seed=step), torch.arange(8) % 4
    loss(model, images[4 * rank : 4 * rank + 4], labels[4 * rank : 4 * rank + 4]).backward()
    sparsity.add_gradient()
    optimizer.step()
torch.save(inner.state_dict(), sys.argv[1] + str(rank))
net = seeded(Chain())
count = train.recalibrate(net, [image(4, 3, 8, 8, seed=seed) for seed in range(rank, 6, 2)])
assert count == 3
torch.save(net.state_dict(), sys.argv[1] + f"norms{rank}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_under_ddp_the_subgradient_counts_once_and_recalibration_averages(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run([str(program), str(tmp_path / "out")], world=2)
    expected = trained_at_once().state_dict()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"out{rank}", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    net = seeded(Chain())
    assert train.recalibrate(net, [image(4, 3, 8, 8, seed=seed) for seed in range(6)]) == 6
    for rank in (0, 1):
        found = torch.load(tmp_path / f"outnorms{rank}", weights_only=True)
        for name in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
            torch.testing.assert_close(found[name], net.state_dict()[name], rtol=1e-9, atol=1e-12)
