"""OrthP, the published repair of any network."""

import pytest
import torch
from torch import nn

from isometry import networks, orthogonalize


def test_every_weight_becomes_orthogonal_on_any_net() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    result = orthogonalize(net, gain=2.0)
    for module in result.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            values = torch.linalg.svdvals(module.weight.flatten(1).double())
            torch.testing.assert_close(values, torch.full_like(values, 2.0), rtol=1e-5, atol=0)
    assert torch.equal(result.conv1.bias, net.conv1.bias)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="found no convolution or linear layer"):
        orthogonalize(nn.ReLU())
