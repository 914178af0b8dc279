"""Parameters and FLOPs of a network."""

import torch
from torch import nn

from isometry.networks import size


def test_flops_are_those_of_the_forward_pass_whatever_is_frozen() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(1, 5, 16)
    free = size(layer, x).flops
    with torch.no_grad():
        assert size(layer.requires_grad_(False), x).flops == free
    assert (
        free == 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 16
    )  # projections and MLP; scores and their sums
