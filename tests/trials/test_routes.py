"""All routes lead to the same mean JSVs."""

import pytest
import torch
from torch import nn

from isometry.trials.routes import ROUTES, build_floor


@pytest.mark.parametrize("name", ROUTES)
def test_all_routes_give_the_mean_of_all_singular_values(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    x = torch.randn(3, 3, 2, 2)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda s: net(s[None])[0], sample) for sample in x])
    truth = torch.linalg.svdvals(jacobians.flatten(2)).mean(1)
    # svds cannot find the smallest of four values.
    tolerance = 0.3 if name.endswith("svds") else 1e-5
    assert ROUTES[name](net, x).detach().double() == pytest.approx(truth.double(), rel=tolerance)


def test_the_floor_leaves_the_network_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(3, 3, 6, 6)
    build_floor(net, x)(x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
