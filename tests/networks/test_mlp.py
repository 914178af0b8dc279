"""Multilayer perceptrons."""

import torch
from torch import nn

from isometry import networks


def test_the_linear_mlp_is_affine() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(9,), widths=(8, 7)).double()
    x, y = torch.randn(2, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(net(x + y) + net(torch.zeros_like(x)), net(x) + net(y))
    assert [n for n, m in net.named_modules() if isinstance(m, nn.Linear)] == ["net.0", "net.2", "net.4"]
