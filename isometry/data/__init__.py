"""Image sets, read from their files into checked tensors."""

from isometry.data.augmentation import CropFlip
from isometry.data.cifar import IMAGENET
from isometry.data.datasets import Data, Split, load, names

__all__ = ["IMAGENET", "CropFlip", "Data", "Split", "load", "names"]
