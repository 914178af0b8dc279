"""Pruners that train work on data of every form and with every loss."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import isometry
from isometry import TPP, GReg, Slimming, prune
from isometry.pruners import Pruner
from tests.tasks import CLASSES, TASKS, Task, X, built

SHORT: dict[str, Any] = {"delta": 0.5, "interval": 1, "stabilize": 2, "zero_out": None}
PRUNERS = {
    "TPP": TPP(**SHORT),
    "GReg": GReg(**SHORT),
    "Slimming": Slimming(strength=1e-3, epochs=1, lr=0.01, batch_size=8, floor=1),
}


@pytest.mark.parametrize("pruner", PRUNERS.values(), ids=PRUNERS)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_pruned_from_a_loader(task: Task, pruner: Pruner) -> None:
    net = built(task)
    pruned = prune(net, pruner, 0.4, data=task.loader, loss=task.loss, metric=task.metric, progress=False)
    assert pruned.after.parameters < pruned.before.parameters
    assert ("metric" in pruned.history) == (task.metric is not None)
    assert pruned.history["accuracy"].isna().all() == (task.loss is not None)
    assert pruned.history["loss"].notna().all()
    loss = isometry.evaluate(pruned.model, task.loader, loss=task.loss).loss
    assert math.isfinite(loss)
    one_shot = prune(net, isometry.L1(), 0.4, data=task.tensors)
    assert one_shot.after.parameters < one_shot.before.parameters


def test_two_inputs_are_pruned_in_ones_own_loop() -> None:
    task = TASKS["two inputs"]
    (x, c), y = task.tensors
    pruning = isometry.Pruning(built(task), TPP(**SHORT), 0.4, inputs=(x[:2], c[:2]))
    optimizer = torch.optim.SGD(pruning.model.parameters(), lr=0.01)
    receded = False
    while not receded:
        optimizer.zero_grad()
        F.cross_entropy(pruning.model(x, c), y).backward()
        pruning.regularize()
        optimizer.step()
        receded = pruning.step()
    pruned = pruning.finish()
    assert pruned.after.parameters < pruned.before.parameters


class Stream(IterableDataset):
    """Batches without a length, which end."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, CLASSES, strict=True))


class Endless(Dataset):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index % 24], CLASSES[index % 24]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))


def test_data_without_a_length_end_with_the_penalty() -> None:
    pruned = prune(net(), TPP(**SHORT), 0.4, data=DataLoader(Stream(), 8), progress=False)
    assert pruned.history["steps"].tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"prune\(\) got data without a length.*len\(\).*epoch_steps=1000"):
        prune(net(), PRUNERS["Slimming"], 0.4, data=DataLoader(Stream(), 8), progress=False)
    counted = Slimming(epochs=2, epoch_steps=2, lr=0.01, floor=1)
    assert prune(net(), counted, 0.4, data=DataLoader(Stream(), 8), progress=False).history["steps"].tolist() == [2, 4]


def test_a_data_set_is_read_in_batches_of_the_pruners_size() -> None:
    pruner = TPP(**SHORT, batch_size=8)
    first, second = (prune(net_, pruner, 0.4, data=data, progress=False) for net_, data in (_same(TensorDataset(X, CLASSES)), _same(DataLoader(TensorDataset(X, CLASSES), 8, shuffle=True))))  # fmt: skip
    assert first.history["loss"].tolist() == second.history["loss"].tolist()


def _same(data: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return net(), data


REFUSED: dict[str, tuple[Any, str]] = {
    "a data set without a length": (Endless(), r"data of type Endless; it takes .*DataLoader"),
    "an iterator": (iter([(X, CLASSES)]), r"can be read only once"),
    "an empty loader": ([], "gives no batches"),
    "a data set that is no data set": (3, "data of type int"),
    "floats for classes": ((X, X), r"cross-entropy takes classes.*mse_loss"),
    "inputs alone": (X, "data without targets, which cross-entropy needs"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_data_that_cannot_be_trained_on_are_refused(data: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\(\) got .*{message}"):
        prune(net(), TPP(**SHORT), 0.4, data=data, progress=False)


def test_two_batches_are_no_pair() -> None:
    batches = [(X[:12], CLASSES[:12]), (X[12:], CLASSES[12:])]
    found = [prune(_same(0)[0], TPP(**SHORT), 0.4, data=kind(batches), progress=False) for kind in (list, tuple)]
    assert found[0].history["steps"].tolist() == [2, 4]
    assert found[0].plan == found[1].plan


def test_the_random_state_and_the_loader_are_left_alone_by_the_trace() -> None:
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(X, CLASSES), 8, shuffle=True, generator=generator)
    model = net()
    states = torch.get_rng_state(), generator.get_state()
    prune(model, isometry.L1(), 0.4, data=loader)
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], generator.get_state())
