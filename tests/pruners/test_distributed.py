"""Pruning in two processes that train together, over gloo."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import isometry
from isometry import TPP, Pruning
from tests.pruners.loops import SHORT, batches, net

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def train_in_parallel(rank: int, folder: str) -> None:
    """Train one of two processes on its half of every batch; the second starts from other weights."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    split = isometry.data.load("digits").train
    pruning = Pruning(net(seed=rank), TPP(**SHORT), 0.5, inputs=X)
    states = [pruning.state_dict()]
    distributed.broadcast_object_list(states)  # the selection of the first process
    pruning.load_state_dict(states[0])
    model = DistributedDataParallel(pruning.model)  # sends the weights of the first process to all
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for x, y in batches(split):
        loss = F.cross_entropy(model(x.chunk(2)[rank]), y.chunk(2)[rank]) + pruning.loss()
        optimizer.zero_grad()
        loss.backward()
        pruning.regularize()
        optimizer.step()
        if pruning.step():
            break
    pruned = pruning.finish()
    # The smaller network can be trained on, in parallel too.
    model = DistributedDataParallel(pruned.model.train())
    F.cross_entropy(model(split.inputs[rank : rank + 4]), split.targets[rank : rank + 4]).backward()
    isometry.save(pruned, Path(folder) / f"{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()) or os.name != "posix", reason="needs gloo"
)
def test_processes_that_train_together_prune_alike() -> None:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train_in_parallel, (folder,), nprocs=2)
        one, other = (isometry.load(Path(folder) / f"{rank}.safetensors", net(), inputs=X) for rank in range(2))
    assert one.plan == other.plan == isometry.prune(net(), isometry.L1(), 0.5, inputs=X).plan
    # The statistics of the BatchNorms are each process's own, the weights are common.
    for parameter, same in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(parameter, same)
