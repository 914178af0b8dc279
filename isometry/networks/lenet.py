"""LeNet-5 with 2x2 max-pooling, with and without nonlinear activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["LeNet5"]


class LeNet5(nn.Module):
    """Conv 6@5x5, pool, conv 16@5x5, pool, conv 120@5x5, fc 84, fc classes, on 1x32x32 images.

    Without activations (`activation=nn.Identity`) the max-pools stay, so that the network is piecewise linear.

    Args:
        input_shape: (channels, 32, 32).
        classes: number of outputs.
        activation: the class of the activation.

    Source: LeNet-5-Linear of Wang & Fu, ICLR 2023; LeCun et al. 1998 with max-pools.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        if len(self.input_shape) != 3 or self.input_shape[1:] != (32, 32):
            raise ValueError(
                f"LeNet5() got input_shape={self.input_shape}; its three 5x5 convolutions take (channels, 32, 32), "
                "e.g. networks.build('lenet-5-relu', input_shape=(1, 32, 32))."
            )
        self.conv1 = nn.Conv2d(self.input_shape[0], 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)
        self.fc2 = nn.Linear(84, classes)
        self.pool = nn.MaxPool2d(2)
        self.activation = activation()
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 32, 32] -> [B, classes]."""
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x)))
        x = self.flatten(self.activation(self.conv3(x)))
        return self.fc2(self.activation(self.fc1(x)))
