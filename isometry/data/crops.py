"""Crops of photographs, from an image file to a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CenterCrop", "RandomCrop", "to_tensor"]

_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, without importing Pillow
_TRIES = 10


@dataclass(frozen=True)
class RandomCrop:
    """A part of random area and aspect ratio, resized to a square and mirrored with probability 1/2, to train on.

    Random numbers come from torch's global generator.

    Attributes:
        size: of the square, in pixels. 224: ImageNet.
        scale: the smallest and the largest fraction of the image's area.
        aspect: the smallest and the largest ratio of width to height, drawn on a logarithmic scale.

    Source: Szegedy et al., CVPR 2015, section 6; the defaults are those with which ResNet-50 is trained in Wang & Fu, ICLR
    2023, as in torchvision's RandomResizedCrop.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: Image) -> Image:
        """Return a random crop of an image: size x size."""
        from PIL import ImageOps

        box = self._box(*image.size)
        crop = image.crop(box).resize((self.size, self.size), _BILINEAR)
        return ImageOps.mirror(crop) if float(torch.rand(())) < 0.5 else crop

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, upper, right, lower) of the part to keep; the largest centered one where 10 draws do not fit."""
        low, high = (math.log(aspect) for aspect in self.aspect)
        for _ in range(_TRIES):
            area = width * height * float(torch.empty(()).uniform_(*self.scale))
            aspect = math.exp(float(torch.empty(()).uniform_(low, high)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, upper = (int(torch.randint(0, room + 1, ())) for room in (width - w, height - h))
                return left, upper, left + w, upper + h
        w = min(width, round(height * self.aspect[1]))
        h = min(height, round(width / self.aspect[0]))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


@dataclass(frozen=True)
class CenterCrop:
    """The middle of an image whose shorter side is resized first, to test on.

    Attributes:
        size: of the square, in pixels. 224: ImageNet.
        resize: of the shorter side, in pixels. 256: ImageNet.

    Source: Krizhevsky et al., NeurIPS 2012, section 2; the sizes as in Wang & Fu, ICLR 2023.
    """

    size: int = 224
    resize: int = 256

    def __call__(self, image: Image) -> Image:
        """Return the middle of an image: size x size."""
        shorter = min(image.size)
        width, height = (int(self.resize * side / shorter) for side in image.size)
        left, upper = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.resize((width, height), _BILINEAR).crop((left, upper, left + self.size, upper + self.size))


def to_tensor(image: Image, normalization: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Return an image as colors, normalized by (mean, standard deviation) of each channel in [0, 1]: [3, H, W] float32."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div_(255)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalization)
    return pixels.sub_(mean).div_(std).contiguous()
