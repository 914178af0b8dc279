"""A small convolutional network with BatchNorm, for experiments of minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, a 2x2 max-pool after every second one, average pooling, a linear layer.

    Layers are named `features.0`, `features.1`, ..., `classifier` last.

    Args:
        input_shape: (channels, height, width), of at least 4x4.
        widths: filters of the convolutions.
        classes: number of outputs.
        norm: builds a BatchNorm from its number of channels.
    """

    def __init__(
        self, input_shape: Sequence[int], widths: Sequence[int], classes: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        layers: list[nn.Module] = []
        before = self.input_shape[0]
        for index, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if index and index % 2 == 0 else []
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        return self.classifier(self.features(x).mean((2, 3)))
