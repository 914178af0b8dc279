"""SNIP: how much the loss of one batch depends on the mask."""

import copy

import torch
from torch.nn import functional as F

from isometry import SNIP, networks, prune


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
    net = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, 3))
    data = torch.randn(60, 6), torch.randint(3, (60,))
    state = torch.get_rng_state()
    net.train().requires_grad_(False)
    one, same, other = (prune(net, SNIP(batch_size=8), 0.5, data=data, seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert all(p.grad is None for p in [*net.parameters(), *one.parameters()])
