"""VGG networks for CIFAR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["VGG"]

_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm in five stages, 2x2 max-pools between them, one linear layer.

    Layers are named `features.0`, `features.1`, ... as in torchvision, `classifier` last. After the last stage a 2x2
    average pool reduces a 32x32 image to 512 features.

    Args:
        depth: 16 or 19.
        classes: number of outputs.
        input_shape: (channels, 32, 32).
        norm: builds a BatchNorm from its number of channels.
        bias: whether the convolutions have biases, which the BatchNorms after them cancel.

    Source: Simonyan & Zisserman 2015. Depth 16 as in Suteu & Guo 2022: biases, 14,728,266 parameters with 10 classes,
    14,724,042 with bounded BatchNorm. Depth 19 as in Wang & Fu, ICLR 2023: no biases, 20.08 M with 100 classes.
    """

    def __init__(
        self, depth: int, classes: int, input_shape: tuple[int, ...], norm: Callable[[int], nn.Module], bias: bool
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        if len(self.input_shape) != 3 or self.input_shape[1:] != (32, 32):
            raise ValueError(
                f"VGG() got input_shape={self.input_shape}; its five stages take (channels, 32, 32), e.g. "
                f"networks.build('vgg-{depth}', input_shape=(3, 32, 32))."
            )
        layers: list[nn.Module] = []
        before = self.input_shape[0]
        for stage, (count, width) in enumerate(zip(_STAGES[depth], _WIDTHS, strict=True)):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1, bias=bias), norm(width), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 32, 32] -> [B, classes]."""
        return self.classifier(self.flatten(self.pool(self.features(x))))
