"""Data of any kind as checked tensors or batches: image sets, folders of images, and what users bring."""

from isometry.data.augmentation import CropFlip
from isometry.data.batches import Batches, Pair, Split
from isometry.data.cifar import IMAGENET
from isometry.data.datasets import Data, load, names
from isometry.data.images import Folder, folder
from isometry.data.reading import read_data

__all__ = ["IMAGENET", "Batches", "CropFlip", "Data", "Folder", "Pair", "Split", "folder", "load", "names", "read_data"]
