"""Repairs work on data of every form and networks of several inputs and outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isometry import L1, prune, recalibrate, repair, train
from isometry.data import read_data
from isometry.data.nests import tensors_in
from isometry.networks.modules import call
from tests.tasks import CLASSES, IMAGES, TASKS, Task, X, built


def gap(net: nn.Module, dense: nn.Module, data: Any) -> float:
    """The mean squared difference of two networks' outputs on a loader."""
    total = 0.0
    with torch.no_grad():
        for pair in read_data(data):
            outputs = (tensors_in(call(one, pair.inputs)) for one in (net.eval(), dense.eval()))
            total += sum(float((a - b).square().mean()) for a, b in zip(*outputs, strict=True))
    return total


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_reconstruction_brings_every_task_nearer_to_the_dense_network(task: Task) -> None:
    dense = built(task)
    list(train(dense, task.tensors, lr=0.02, epochs=4, batch_size=8, loss=task.loss))
    pruned = prune(dense, L1(), 0.4, data=task.tensors).model
    for data in (task.loader, task.tensors):
        repaired = repair(pruned, reference=dense, data=data, progress=False)
        assert gap(repaired, dense, task.loader) < 0.9 * gap(pruned, dense, task.loader)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_recalibration_takes_the_statistics_of_the_loaders_batches(task: Task) -> None:
    net = built(task)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.add_(3)
    found = recalibrate(net, task.loader)
    expected = copy.deepcopy(net)
    norms = [m for m in expected.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for pair in read_data(task.loader):
        call(expected.train(), pair.inputs)
    for one, two in zip(found.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(one, two)


def test_only_as_many_batches_are_read_as_are_needed() -> None:
    read = []

    def batches() -> Any:
        for start in range(0, 24, 4):
            read.append(start)
            yield X[start : start + 4]

    recalibrate(built(TASKS["regression"]), batches(), samples=10)
    assert read == [0, 4, 8]


def test_recalibration_on_images_is_the_same_from_tensors_and_batches() -> None:
    net = built(TASKS["segmentation"])
    loader = DataLoader(TensorDataset(IMAGES, CLASSES), 24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for one, two in zip(
        recalibrate(net, (IMAGES, CLASSES)).buffers(), recalibrate(net, [IMAGES[order]]).buffers(), strict=True
    ):
        assert torch.equal(one, two)
    assert len(list(recalibrate(net, loader).buffers())) == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [([X[:1], X[1:2]], "batches of one sample each"), ([], "gives no batches"), (3, "data of type int"), (None, "data of type NoneType")],
)  # fmt: skip
def test_batches_without_statistics_are_refused(data: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"recalibrate\(\) got .*{message}"):
        recalibrate(built(TASKS["regression"]), data)
