"""Training loops of users, shared by the tests of Pruning."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.data import Split
from isometry.training.optimizer import build_sgd
from isometry.training.recipe import Recipe

SHORT = {"delta": 0.05, "interval": 2, "stabilize": 30, "zero_out": 5, "batch_size": 64}


def net(norm: str = "batch", seed: int = 0) -> nn.Module:
    return isometry.networks.build("conv-4", seed=seed, input_shape=(1, 8, 8), widths=(10, 8, 8, 6), norm=norm)


def batches(split: Split, size: int = 64, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in the order of `train`."""
    order = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(split.inputs), generator=order).split(size):
            yield split.inputs[batch], split.targets[batch]


def run(
    pruning: isometry.Pruning,
    stream: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 10**6,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before: Callable[[int], object] = lambda step: None,
) -> None:
    """The loop of the documentation, until the units have receded, the stage changes or `steps` are taken."""
    stage, model = pruning.stage, pruning.model.train()
    for step in range(steps):
        before(step)
        x, y = next(stream)
        loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), y) + pruning.loss()
        optimizer.zero_grad()
        loss.backward()
        pruning.regularize()
        optimizer.step()
        if pruning.step() or pruning.stage != stage:
            return


def run_like_prune(pruning: isometry.Pruning, split: Split, recipe: Recipe) -> isometry.pruners.Pruned:
    """Exactly what `train` does: its layout, optimizer, order and schedule, afresh in every stage."""
    pruning.model.to(memory_format=torch.channels_last)
    length = -(-len(split.inputs) // recipe.batch_size)
    while pruning.stage is not None:
        optimizer = build_sgd(pruning.model, recipe)
        rates = [group["lr"] for group in optimizer.param_groups]

        def set_rates(step: int, optimizer: torch.optim.Optimizer = optimizer, rates: list[float] = rates) -> None:
            factor = recipe.schedule(step // length + 1, recipe.epochs) if recipe.schedule else 1.0
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

        run(pruning, batches(split, recipe.batch_size), optimizer, before=set_rates)
    return pruning.finish()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
