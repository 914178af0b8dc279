"""Residual networks for CIFAR, with parameter-free zero-padded shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet"]


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm; where the shape changes, the shortcut subsamples and pads with zeros."""

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.extra = stride, planes - before

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            front = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.extra - front))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2: three stages of n blocks with 16, 32 and 64 channels, then global average pooling.

    Args:
        depth: 20, 32, 44, 56 or 110, that is 6n + 2.
        classes: number of outputs.
        input_shape: (channels, height, width).

    Source: He et al., CVPR 2016, section 4.2, option A; 853,018 parameters at depth 56 with 10 classes.
    """

    def __init__(self, depth: int, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(self.input_shape[0], 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = nn.Sequential(*[_Block(16, 16, 1) for _ in range(blocks)])
        self.layer2 = nn.Sequential(*[_Block(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(blocks)])
        self.layer3 = nn.Sequential(*[_Block(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(blocks)])
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
