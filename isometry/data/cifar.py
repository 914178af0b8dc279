"""CIFAR-10 and CIFAR-100 in their binary version."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isometry.data.location import check_content, download, find_file, find_folder, read_bytes

__all__ = ["CIFAR_SETS", "IMAGENET", "load_cifar_set"]

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _CifarSet:
    """One of the CIFAR sets in the binary version: records of label bytes and 3x32x32 pixels.

    Attributes:
        url, md5: the archive to download and its checksum.
        folder: the archive's folder.
        files: of the training part and of the test part.
        labels: label bytes per record, of which the last one is the class.
        classes: number of classes.
        mean, std: of the pixels of every channel, in [0, 1].
        counts: images of the training part and of the test part.
        sha256: {file: digest of its unpacked content}; files that are missing are not known.
    """

    url: str
    md5: str
    folder: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    labels: int
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: tuple[int, int] = (50000, 10000)
    sha256: Mapping[str, str] = field(default_factory=dict)


CIFAR_SETS = {
    "cifar10": _CifarSet(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)),
        1,
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        sha256={
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
    ),
    "cifar100": _CifarSet(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        (("train.bin",), ("test.bin",)),
        2,
        100,
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
}

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels, with which many CIFAR networks were trained, too."""


def load_cifar_set(
    name: str, root: str | os.PathLike[str] | None, normalization: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[Part, Part]:
    """Return (inputs [N, 3, 32, 32] float32, targets [N] int64) of the training and of the test part.

    Args:
        name: a key of `CIFAR_SETS`.
        root: the folder of the files; None means $ISOMETRY_DATA, then the user's cache, to which they are downloaded.
        normalization: (mean, standard deviation) of every channel; None means the set's own.

    Raises:
        ValueError: a file is truncated or corrupt, or two are equal, the training and the test part for instance.
        FileNotFoundError: `root` does not contain the set.
    """
    source = CIFAR_SETS[name]
    folder = find_folder(name, root, source.files[0][0]) or _download(name, source)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalization or (source.mean, source.std))
    parts: list[Part] = []
    seen: dict[str, str] = {}
    for files, count in zip(source.files, source.counts, strict=True):
        width, per_file = source.labels + 3072, count // len(files)
        paths = [find_file(name, folder, file) for file in files]
        contents = [_records(path, width, per_file) for path in paths]
        for file, path, content in zip(files, paths, contents, strict=True):
            digest = check_content(path, content.data, source.sha256.get(file))
            if digest in seen:
                raise ValueError(
                    f"{path} has the same content as {seen[digest]}: one of them is a copy under another name. Delete both "
                    "and download the set again."
                )
            seen[digest] = file
        records = np.concatenate(contents)
        pixels = torch.from_numpy(records[:, source.labels :].reshape(-1, 3, 32, 32))
        inputs = pixels.float().div_(255).sub_(mean).div_(std)
        labels = torch.from_numpy(records[:, source.labels - 1].astype(np.int64))
        if int(labels.max()) >= source.classes:
            raise ValueError(
                f"{name} in {folder} is corrupt: it has the label {int(labels.max())}, but the set has {source.classes} "
                f"classes. Delete that folder and download the set again: isometry.data.load({name!r})."
            )
        parts.append((inputs, labels))
    return parts[0], parts[1]


def _download(name: str, source: _CifarSet) -> Path:
    """Download and unpack the archive into the user's cache, unless it is there; return the folder of the files."""
    wanted = [file for part in source.files for file in part]
    files = download(name, source.url, f"{name}.tar.gz", source.md5, wanted, unpack=True)
    return next(path.parent for path in files if path.name == wanted[0])


def _records(path: Path, width: int, count: int) -> np.ndarray:
    """Return the records of a file: [count, width] uint8."""
    content = read_bytes(path)
    if len(content) != width * count:
        raise ValueError(
            f"{path} is truncated or of another format: expected {count} records of {width} bytes, {width * count} bytes in all; "
            f"found {len(content)} bytes."
        )
    return np.frombuffer(content, np.uint8).reshape(count, width)
