"""Augmentation of training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CropFlip"]


@dataclass(frozen=True)
class CropFlip:
    """Random crops and mirror images of a batch, drawn from torch's global generator, computed on the batch's device.

    Every image is padded with `padding` zeros on each side and cropped to its own size at a random place, then mirrored
    left to right with probability 1/2. Images are padded after normalization, so that 0 is the mean color.

    Attributes:
        padding: pixels. 4: CIFAR, He et al., CVPR 2016, section 4.2.
    """

    padding: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        """Return a random change of images [B, C, H, W], in the same shape."""
        count, channels, height, width = images.shape
        device, p = images.device, self.padding
        padded = F.pad(images, (p, p, p, p))
        down, right = (torch.randint(0, 2 * p + 1, (count, 1), device=device) for _ in range(2))
        rows = down + torch.arange(height, device=device)
        columns = right + torch.arange(width, device=device)
        columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
        chosen = (rows[:, :, None] * (width + 2 * p) + columns[:, None, :]).view(count, 1, -1)
        return padded.flatten(2).gather(2, chosen.expand(-1, channels, -1)).view_as(images)
