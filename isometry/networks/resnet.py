"""Residual networks: those for CIFAR with parameter-free shortcuts, and ResNet-50."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet", "ResNet50"]


class _Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm; where the shape changes, the shortcut subsamples and pads with zeros."""

    def __init__(self, before: int, planes: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
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
        norm: builds a BatchNorm from its number of channels.

    Source: He et al., CVPR 2016, section 4.2, option A; 853,018 parameters at depth 56 with 10 classes, 850,986 with
    bounded BatchNorm.
    """

    def __init__(
        self, depth: int, classes: int, input_shape: tuple[int, ...], norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(self.input_shape[0], 16, 3, 1, 1, bias=False)
        self.bn1 = norm(16)
        blocks, before = (depth - 2) // 6, 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            layers = []
            for block in range(blocks):
                layers.append(_Block(before, planes, 2 if stage > 1 and block == 0 else 1, norm))
                before = planes
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm; a 1x1 convolution in the shortcut where the shape changes."""

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.downsample = nn.Sequential()
        if stride != 1 or before != 4 * planes:
            shortcut = nn.Conv2d(before, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet50(nn.Module):
    """ResNet-50 of bottleneck blocks, 3-4-6-3, with 2,048 features before the last layer; 25,557,032 parameters.

    Args:
        classes: number of outputs.
        input_shape: (channels, height, width); at least 32x32.

    Source: He et al., CVPR 2016, with the stride in the 3x3 convolution; names as in torchvision.
    """

    def __init__(self, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(self.input_shape[0], 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        before = 64
        for stage, (planes, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layers = []
            for block in range(blocks):
                layers.append(_Bottleneck(before, planes, 2 if stage > 1 and block == 0 else 1))
                before = 4 * planes
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, classes]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))
