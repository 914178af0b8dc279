"""What all pruners share: scores of units, seeds, the model given."""

from itertools import pairwise

import pytest
import torch

import isometry
from isometry import L1, Random, networks, prune
from tests.models import joined


@pytest.mark.parametrize("pruner", [L1(), Random()], ids=lambda pruner: type(pruner).__name__)
def test_a_larger_ratio_removes_a_superset(pruner: isometry.Pruner) -> None:
    net = networks.build("lenet-5-relu", seed=3)
    plans = [prune(net, pruner, ratio, seed=5).plan for ratio in (0.0, 0.2, 0.5, 0.8)]
    assert plans[0].ratio == 0
    for small, large in pairwise(plans):
        assert all(set(small.removed[layer]) <= set(large.removed[layer]) for layer in small.removed)
    assert prune(net, pruner, 0.5, seed=5).plan == plans[2]


@pytest.mark.parametrize(
    "pruner", [L1(), isometry.Slimming(epochs=0, scope="layer", floor=1)], ids=lambda pruner: type(pruner).__name__
)
def test_coupled_layers_are_averaged_unit_by_unit(pruner: isometry.Pruner) -> None:
    x = torch.randn(4, 3, 5, 5)
    plan = prune(joined(), pruner, 0.25, inputs=x, data=(x, torch.arange(4) % 2)).plan
    assert plan.removed["a"] == plan.removed["s"] == (0, 1, 2, 3)
    assert plan.removed["b"] == ()


def test_frozen_layers_stay_frozen() -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6))
    net.net[0].requires_grad_(False)
    result = prune(net, L1(), 0.5)
    assert [p.requires_grad for p in result.model.parameters()] == [False, False, True, True, True, True]
