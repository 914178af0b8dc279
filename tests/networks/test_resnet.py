"""Residual networks."""

import pytest
import torch

from isometry import networks


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet-20", 10, 269_722),
        ("resnet-56", 10, 853_018),
        ("resnet-110", 10, 1_727_962),
        ("resnet-50", 1000, 25_557_032),
    ],
)
def test_residual_networks_have_the_published_size(name: str, classes: int, parameters: int) -> None:
    net = networks.build(name, classes, input_shape=(3, 32, 32)).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
