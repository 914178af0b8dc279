"""Image sets in the IDX format of MNIST."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isometry.data.location import check_content, find_file, find_folder, read_bytes

__all__ = ["IDX_SETS", "load_idx_set", "read_idx"]

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _IdxSet:
    """An image set in four IDX files named as those of MNIST.

    Attributes:
        url: the folder to download them from.
        md5: their checksums.
        mean, std: of the pixels, in [0, 1].
        sha256: of the four unpacked files, None where it is not known.
        counts: images of the training part and of the test part.
        size: height and width of the images.
        classes: number of classes.
    """

    url: str
    md5: tuple[str, str, str, str]
    mean: float
    std: float
    sha256: tuple[str | None, ...] = (None,) * 4
    counts: tuple[int, int] = (60000, 10000)
    size: tuple[int, int] = (28, 28)
    classes: int = 10


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
IDX_SETS = {
    "mnist": _IdxSet(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        0.1307,
        0.3081,
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": _IdxSet(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        0.2860,
        0.3530,
    ),
}


def load_idx_set(name: str, root: str | os.PathLike[str] | None) -> tuple[Part, Part]:
    """Return (inputs [N, 1, 32, 32] float32, targets [N] int64) of the training and of the test part.

    Args:
        name: a key of `IDX_SETS`.
        root: the folder of the files; None means $ISOMETRY_DATA, then the user's cache, to which they are downloaded.

    Raises:
        ValueError: a file is truncated, corrupt or of another kind.
        FileNotFoundError: `root` does not contain the set.
    """
    source = IDX_SETS[name]
    folder = find_folder(name, root, _IDX_FILES[0])
    parts = []
    for first, count in zip((0, 2), source.counts, strict=True):
        images, labels = (_read_part(name, folder, i, count) for i in (first, first + 1))
        resized = F.interpolate(torch.from_numpy(images)[:, None], size=(32, 32), mode="bilinear", antialias=True)
        inputs = resized.float().div_(255).sub_(source.mean).div_(source.std)
        parts.append((inputs, torch.from_numpy(labels).long()))
    return parts[0], parts[1]


def _read_part(name: str, folder: Path | None, index: int, count: int) -> np.ndarray:
    """Return the images [N, H, W] or labels [N] of one of the four files, checked."""
    source, is_images = IDX_SETS[name], index % 2 == 0
    path = find_file(name, folder, _IDX_FILES[index], source.url, source.md5[index])
    found = read_idx(path, 3 if is_images else 1, count, source.sha256[index])
    if is_images and found.shape[1:] != source.size:
        raise ValueError(
            f"{path} is corrupt or of another set: expected images of {source.size[0]}x{source.size[1]}, found "
            f"{found.shape[1]}x{found.shape[2]}. Delete it and load the set again: isometry.data.load({name!r})."
        )
    if not is_images and found.max() >= source.classes:
        raise ValueError(
            f"{path} is corrupt or of another set: it has the label {found.max()}, but the set has {source.classes} classes. "
            f"Delete it and load the set again: isometry.data.load({name!r})."
        )
    return found


def read_idx(path: Path, dimensions: int, count: int, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes, the format of MNIST.

    Args:
        path: the file, plain or compressed (.gz, .xz).
        dimensions: 3 for images [N, H, W], 1 for labels [N].
        count: how many images or labels it must contain.
        sha256: of its unpacked content, None where it is not known.

    Returns:
        uint8 array of `dimensions` dimensions.

    Raises:
        ValueError: the file is truncated, corrupt or of another kind; the message names the file, its content and the
            expected content.
    """
    content = read_bytes(path)
    expected = 2048 + dimensions
    magic = int.from_bytes(content[:4], "big")
    if magic != expected:
        raise ValueError(f"{path} is no IDX file of this kind: expected the magic number {expected}, found {magic}.")
    header = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">u4"))
    if shape[0] != count or len(content) != header + int(np.prod(shape)):
        raise ValueError(
            f"{path} is truncated or of another format: expected {count} items, {header + int(np.prod(shape))} bytes for the "
            f"shape {shape} of its header; found {len(content)} bytes."
        )
    check_content(path, content, sha256)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
