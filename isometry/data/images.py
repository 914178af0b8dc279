"""Folders of image files, a subfolder per class, read batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isometry.data.batches import Batches
from isometry.data.cifar import IMAGENET
from isometry.data.crops import CenterCrop, RandomCrop, to_tensor
from isometry.errors import InvalidValueError, join_names, signed

__all__ = ["Folder", "ImageFiles", "folder"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
_TEST = ("val", "validation", "valid", "test")
_LAYOUT = "path/train/cat/1.jpg, path/val/cat/2.jpg"


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files with their classes; each is read when it is asked for.

    Args:
        files: (path, class) of every image.
        crop: from an image to a square part of it.
        normalization: (mean, standard deviation) of each channel.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        crop: Callable[[Any], Any],
        normalization: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        self.files, self.crop, self.normalization = list(files), crop, normalization

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return image [3, S, S] float32 and class of a file."""
        from PIL import Image

        path, target = self.files[index]
        try:
            with Image.open(path) as image:
                return to_tensor(self.crop(image.convert("RGB")), self.normalization), target
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
            raise ValueError(
                f"{path} is no whole image ({error}); replace or delete it, and call isometry.data.folder again."
            ) from error


@dataclass(frozen=True)
class Folder:
    """A folder of images. Never select anything on `test`.

    Attributes:
        train: `Batches` in random order, of random crops.
        test: `Batches` in the order of the files, of center crops.
        classes: their names, in the order of their numbers.
        input_shape: (3, S, S).
    """

    train: Batches
    test: Batches
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]


@signed("data.folder")
def folder(
    path: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    size: int = 224,
    normalization: tuple[Sequence[float], Sequence[float]] = IMAGENET,
    workers: int = 0,
) -> Folder:
    """Return a folder of images, one subfolder per class, as batches; images are read when they are needed.

    The layout is ImageNet's, path/train/<class>/... and path/val/<class>/..., or path/<class>/... alone: then a fifth of
    every class is the test part, the same one in every call. Training images are random crops of 8 % to 100 % of the area,
    mirrored at random; test images are the center of the image resized to 8/7 of the crop's size (256 for 224). Both are
    normalized. Pass the result to `train`, `prune`, `evaluate`, `measure` and the repairs.

    Args:
        path: the folder.
        batch_size: images per batch.
        size: of the crops, in pixels.
        normalization: (mean, standard deviation) of each channel of the pixels in [0, 1].
        workers: processes that read images; 0 reads them in this one.

    Raises:
        ValueError: no images where they are expected, test classes that are not training classes; a file that is no
            image, when it is read.
        ImportError: Pillow is not installed.

    Source: the crops are those of Wang & Fu, ICLR 2023, for ResNet-50 on ImageNet; see `RandomCrop`, `CenterCrop`.
    """
    _check_pillow()
    if size < 1 or batch_size < 1 or workers < 0:
        raise InvalidValueError(
            f"got size={size}, batch_size={batch_size}, workers={workers}; it takes positive numbers, and at least 0 workers, "
            "e.g. isometry.data.folder('imagenet', batch_size=64, workers=4)."
        )
    root = Path(path)
    named = next((root / name for name in _TEST if (root / name).is_dir()), None)
    if (root / "train").is_dir() and named is not None:
        train, test = _find(root / "train"), _find(named)
        if unknown := sorted(test.keys() - train.keys()):
            raise InvalidValueError(
                f"found the classes {join_names(unknown)} in {named} that are not in {root / 'train'}; both need the same "
                f"subfolders, as in {_LAYOUT}."
            )
    else:
        train, test = _held_out(_find(root))
    classes = tuple(train)
    crops: tuple[Callable[[Any], Any], ...] = (RandomCrop(size), CenterCrop(size, round(size * 256 / 224)))
    parts = []
    for images, crop in zip((train, test), crops, strict=True):
        files = [(file, classes.index(name)) for name, found in images.items() for file in found]
        dataset = ImageFiles(files, crop, normalization)
        parts.append(Batches(DataLoader(dataset, batch_size, shuffle=crop is crops[0], num_workers=workers)))
    return Folder(parts[0], parts[1], classes, (3, size, size))


def _check_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "data.folder() reads images with Pillow, which is not installed: pip install 'isometry[images]', or pip install "
            "pillow."
        ) from error


def _find(root: Path) -> dict[str, list[Path]]:
    """Return {class: image files} of a folder, in the order of their names."""
    if not root.is_dir():
        raise InvalidValueError(
            f"got {root}, which is no folder; it takes one with a subfolder per class, as in {_LAYOUT}."
        )
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    found = {name: _images(root / name) for name in names if not name.startswith(".")}
    empty = [name for name, files in found.items() if not files]
    if empty or not found:
        what = f"no images in {join_names(empty)} of {root}" if found else f"no subfolders of classes in {root}"
        raise InvalidValueError(
            f"found {what}; it takes a subfolder of images ({', '.join(sorted(_SUFFIXES))}) per class, as in {_LAYOUT}."
        )
    return found


def _images(folder: Path) -> list[Path]:
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."))


def _held_out(images: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return a training and a test part: a fifth of every class, one image at least."""
    generator = torch.Generator().manual_seed(0)
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, files in images.items():
        if len(files) < 2:
            raise InvalidValueError(
                f"found one image of the class {name!r} and no folders train and val; it takes two images per class at least, "
                f"one of which is for testing, or such folders, as in {_LAYOUT}."
            )
        count = max(1, len(files) // 5)
        chosen = set(torch.randperm(len(files), generator=generator)[:count].tolist())
        test[name] = [file for index, file in enumerate(files) if index in chosen]
        train[name] = [file for index, file in enumerate(files) if index not in chosen]
    return train, test
