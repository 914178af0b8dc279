"""The multi-layer perceptrons of the trainability papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected network: linear layers with biases, and an activation between any two, the identity in the linear one.

    Inputs of any shape are flattened. Layers are named `net.0`, `net.2`, ...; every other entry is
    the activation.

    Args:
        input_shape: shape of one input, e.g. (1, 32, 32).
        widths: units of the hidden layers.
        classes: units of the last layer.
        activation: the class of the modules between layers.

    Source: MLP-7-Linear of Wang & Fu, ICLR 2023, after Lee et al., ICLR 2020: 1024-6x100-10.
    """

    def __init__(
        self, input_shape: Sequence[int], widths: Sequence[int], classes: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        sizes = [math.prod(self.input_shape), *widths, classes]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), activation()]
        self.flatten = nn.Flatten()
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """[B, *input_shape] -> [B, classes]."""
        return self.net(self.flatten(x))
