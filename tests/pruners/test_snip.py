"""SNIP: how much the loss of one batch depends on the mask."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isometry import SNIP, networks, prune
from tests.models import Wired


def test_scores_are_the_derivatives_of_the_loss_by_the_mask() -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(5,), widths=(6,)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(10, (40,))
    result = prune(net, SNIP(batch_size=40), 0.6, data=(x, y))

    def loss(layer: int, entry: int, mask: float) -> torch.Tensor:
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.net[layer].weight.view(-1)[entry] *= mask
            return F.cross_entropy(changed(x), y)

    scores, masked = [], []
    for layer in (0, 2):
        for entry in range(net.net[layer].weight.numel()):
            scores.append(float((loss(layer, entry, 1 + 1e-5) - loss(layer, entry, 1 - 1e-5)).abs()))
        masked += (result.model.net[layer].weight == 0).flatten().tolist()
    lowest = torch.tensor(scores).argsort()[: sum(masked)]
    assert sum(masked) == 54  # of 90
    assert sorted(lowest.tolist()) == torch.tensor(masked).nonzero()[:, 0].tolist()


def test_the_batch_follows_the_seed_and_the_global_generator_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 3))
    data = torch.randn(60, 6), torch.randint(3, (60,))
    state = torch.get_rng_state()
    net.train().requires_grad_(False)
    one, same, other = (prune(net, SNIP(batch_size=8), 0.5, data=data, seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert all(p.grad is None for p in [*net.parameters(), *one.parameters()])


def test_other_losses_several_inputs_and_loaders_are_taken() -> None:
    net = Wired(
        lambda net, a, b: net.head(net.left(a) * net.right(b)),
        left=nn.Linear(4, 6),
        right=nn.Linear(5, 6),
        head=nn.Linear(6, 1),
    )
    a, b, y = torch.randn(40, 4), torch.randn(40, 5), torch.randn(40, 1)
    loader = [(a[:20], b[:20], y[:20]), (a[20:], b[20:], y[20:])]
    whole = prune(net, SNIP(batch_size=20), 0.5, data=((a[:20], b[:20]), y[:20]), loss=F.mse_loss)
    first = prune(net, SNIP(), 0.5, data=loader, loss=F.mse_loss)
    assert first.sparsity == whole.sparsity
    assert torch.equal(first.model.left.weight_mask, whole.model.left.weight_mask)
    with pytest.raises(ValueError, match="cross-entropy"):
        prune(net, SNIP(), 0.5, data=loader)
