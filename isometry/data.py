"""Image sets as tensors in memory: read from disk, checked, split; downloaded with checksums when absent."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["IMAGENET", "CropFlip", "Data", "Split", "load", "names"]


class Split(NamedTuple):
    """Part of a data set: `inputs` [N, C, H, W] float32, normalised, and `targets` [N] int64."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class CropFlip:
    """Random crops and mirror images of a batch, on its device, by torch's global generator.

    Every image is padded with `padding` zeros on each side, of which a window of its own size is cut at a random
    place, and mirrored left to right with probability 1/2. Padding comes after normalisation: it has the mean colour.

    Attributes:
        padding: pixels; 4 is the common choice for CIFAR (He et al., CVPR 2016, section 4.2).
    """

    padding: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        count, channels, height, width = images.shape
        device, p = images.device, self.padding
        padded = F.pad(images, (p, p, p, p))
        down, right = (torch.randint(0, 2 * p + 1, (count, 1), device=device) for _ in range(2))
        rows = down + torch.arange(height, device=device)
        columns = right + torch.arange(width, device=device)
        columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
        picked = (rows[:, :, None] * (width + 2 * p) + columns[:, None, :]).view(count, 1, -1)
        return padded.flatten(2).gather(2, picked.expand(-1, channels, -1)).view_as(images)


@dataclass(frozen=True)
class Data:
    """A data set in three disjoint parts. Nothing is ever to be selected on `test`.

    Attributes:
        name: as given to `load`.
        train, validation, test: `Split`s; `validation` is cut from the published training part.
        classes: the number of classes.
        input_shape: (C, H, W).
        augment: what `train` does to every batch [B, C, H, W] of training images; None leaves them as they are.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    input_shape: tuple[int, ...]
    augment: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class _IdxSet:
    """An image set in the four IDX files of MNIST: where it comes from and how it is normalised."""

    url: str
    md5: tuple[str, str, str, str]
    mean: float
    std: float
    counts: tuple[int, int] = (60000, 10000)


_IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_IDX = {
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


@dataclass(frozen=True)
class _CifarSet:
    """CIFAR's binary version: records of label bytes (the last one is the class) and 3x32x32 pixels."""

    url: str
    md5: str
    folder: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    labels: int
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    counts: tuple[int, int] = (50000, 10000)


_CIFAR = {
    "cifar10": _CifarSet(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)),
        1,
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
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
"""Mean and standard deviation of ImageNet's pixels, which many CIFAR networks were trained with too."""

_VALIDATION = {"digits": 180, "mnist": 5000, "fashion-mnist": 5000, "cifar10": 5000, "cifar100": 5000}


def names() -> list[str]:
    """Return the names that `load` knows."""
    return sorted(_VALIDATION)


def load(
    name: str = "digits",
    root: str | os.PathLike[str] | None = None,
    *,
    validation: int | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    augment: bool = True,
) -> Data:
    """Load an image set into memory.

    `digits` is scikit-learn's (1,797 real 8x8 images; a stratified fifth is the test part, inputs divided by the
    training part's mean and standard deviation); nothing is downloaded. `mnist` and `fashion-mnist` are resized to
    32x32 (bilinear, as the papers have them) and normalised by the published mean and standard deviation. `cifar10`
    and `cifar100` are read from their binary version and normalised by their own means and standard deviations.

    Args:
        name: one of `names()`.
        root: the folder that holds the files, itself or in a subfolder of the set's name; defaults to $ISOMETRY_DATA,
            then to the user's cache, where absent files are downloaded once and checked against their MD5.
        validation: how many training images become the validation part (drawn once, the same for every call).
            Defaults to a tenth of digits' and 5,000 of the others'; 0 trains on all of the published training part.
        normalisation: (mean, standard deviation) of each channel to divide CIFAR's pixels in [0, 1] by, where weights
            need another than the set's own: `data.IMAGENET` for instance.
        augment: whether `train` is to crop and mirror CIFAR's images at random; the other sets are never changed.

    Returns:
        `Data` with `train`, `validation` and `test`.

    Raises:
        ValueError: unknown name; a file that is truncated, corrupt or of another kind; too large a `validation`.
        FileNotFoundError: `root` was given and holds no such set.
    """
    if name not in _VALIDATION:
        raise ValueError(f"data.load() got the name {name!r}; it knows {', '.join(names())}.")
    if normalisation is not None and name not in _CIFAR:
        raise ValueError(
            f"data.load({name!r}) got a normalisation, which only {' and '.join(_CIFAR)} take, e.g. "
            "data.load('cifar10', normalisation=isometry.data.IMAGENET)."
        )
    train, test = (
        _digits()
        if name == "digits"
        else _idx_set(name, root)
        if name in _IDX
        else _cifar_set(name, root, normalisation)
    )
    count = _VALIDATION[name] if validation is None else validation
    if not 0 <= count < len(train.targets):
        raise ValueError(
            f"data.load({name!r}) got validation={count}; it takes 0 to {len(train.targets) - 1} of the "
            f"{len(train.targets)} training images, e.g. data.load({name!r}, validation={_VALIDATION[name]})."
        )
    order = torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(0))
    held, kept = (index.sort().values for index in (order[:count], order[count:]))
    parts = [Split(train.inputs[index], train.targets[index]) if count else train for index in (kept, held)]
    if not count:
        parts[1] = Split(train.inputs[:0], train.targets[:0])
    classes = _CIFAR[name].classes if name in _CIFAR else 10
    change = CropFlip() if augment and name in _CIFAR else None
    return Data(name, parts[0], parts[1], test, classes, tuple(train.inputs.shape[1:]), change)


def _digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8), labels, test_size=0.2, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    mean, std = train_x.mean(), train_x.std()
    return Split((train_x - mean) / std, train_y), Split((test_x - mean) / std, test_y)


def _idx_set(name: str, root: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    source = _IDX[name]
    folder = _folder(name, root, _IDX_FILES[0])
    parts = []
    for part, count in enumerate(source.counts):
        images, labels = (
            read_idx(_file(name, folder, file, source.url, md5), dimensions, count)
            for file, md5, dimensions in zip(
                _IDX_FILES[2 * part : 2 * part + 2], source.md5[2 * part : 2 * part + 2], (3, 1), strict=True
            )
        )
        resized = F.interpolate(torch.from_numpy(images)[:, None], size=(32, 32), mode="bilinear", antialias=True)
        inputs = resized.float().div_(255).sub_(source.mean).div_(source.std)
        parts.append(Split(inputs, torch.from_numpy(labels).long()))
    return parts[0], parts[1]


def _cifar_set(
    name: str, root: str | os.PathLike[str] | None, normalisation: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[Split, Split]:
    source = _CIFAR[name]
    folder = _folder(name, root, source.files[0][0])
    if folder is None:
        cache = Path(pooch.os_cache("isometry")) / name
        unpack = pooch.Untar(extract_dir=".")
        pooch.retrieve(
            source.url,
            known_hash=f"md5:{source.md5}",
            fname=f"{name}.tar.gz",
            path=cache,
            processor=unpack,
            progressbar=True,
        )
        folder = cache / source.folder
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalisation or (source.mean, source.std))
    parts = []
    for files, count in zip(source.files, source.counts, strict=True):
        width, share = source.labels + 3072, count // len(files)
        records = np.concatenate([_records(_file(name, folder, file, "", ""), width, share) for file in files])
        pixels = torch.from_numpy(records[:, source.labels :].reshape(-1, 3, 32, 32))
        inputs = pixels.float().div_(255).sub_(mean).div_(std)
        labels = torch.from_numpy(records[:, source.labels - 1].astype(np.int64))
        if int(labels.max()) >= source.classes:
            raise ValueError(
                f"{name} in {folder} is corrupt: it has the label {int(labels.max())}, but the set has {source.classes} "
                f"classes. Fetch it again: isometry.data.load({name!r}) with the folder absent."
            )
        parts.append(Split(inputs, labels))
    return parts[0], parts[1]


def _records(path: Path, width: int, count: int) -> np.ndarray:
    content = read_bytes(path)
    if len(content) != width * count:
        raise ValueError(
            f"{path} is truncated or foreign: expected {count} records of {width} bytes, {width * count} bytes; found "
            f"{len(content)} bytes."
        )
    return np.frombuffer(content, np.uint8).reshape(count, width)


def _folder(name: str, root: str | os.PathLike[str] | None, probe: str) -> Path | None:
    """Return the folder that holds `probe` (compressed or plain); None where it is to be downloaded to the cache."""
    given = root if root is not None else os.environ.get("ISOMETRY_DATA")
    if given is None:
        return None
    for folder in (Path(given) / name, Path(given)):
        if any(_present(folder, probe)):
            return folder
    if root is not None:
        raise FileNotFoundError(
            f"data.load({name!r}, root={os.fspath(root)!r}) found no {probe} (compressed or plain) there or in its "
            f"subfolder {name!r}. Leave root out to download the set: data.load({name!r})."
        )
    return None


def _present(folder: Path, file: str) -> list[Path]:
    """Return the variants of `file` in `folder`: as named, and with the suffix .gz or .xz taken away or changed."""
    plain = file.removesuffix(".gz").removesuffix(".xz")
    return [path for suffix in (".gz", ".xz", "") if (path := folder / (plain + suffix)).is_file()]


def _file(name: str, folder: Path | None, file: str, url: str, md5: str) -> Path:
    if folder is not None:
        if found := _present(folder, file):
            return found[0]
        raise FileNotFoundError(f"data.load({name!r}) found other files of the set in {folder}, but not {file}.")
    cache = Path(pooch.os_cache("isometry")) / name
    return Path(pooch.retrieve(url + file, known_hash=f"md5:{md5}", fname=file, path=cache, progressbar=True))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, decompressed where its name ends in .gz or .xz.

    Raises:
        ValueError: the compressed file is truncated or corrupt.
    """
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix)
    content = path.read_bytes()
    try:
        return unpack(content) if unpack else content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} is truncated or corrupt: expected a whole {path.suffix} file, found {path.stat().st_size} bytes "
            f"that do not decompress ({error}). Delete it and load the set again."
        ) from error


def read_idx(path: Path, dimensions: int, count: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, the format of MNIST.

    Args:
        path: plain, .gz or .xz.
        dimensions: 3 for images [N, H, W], 1 for labels [N].
        count: how many items it must hold.

    Returns:
        uint8 array of `dimensions` dimensions.

    Raises:
        ValueError: the file is truncated, corrupt or of another kind; the message names it, what was expected and
            what was found.
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
            f"{path} is truncated or foreign: expected {count} items, {header + int(np.prod(shape))} bytes for the "
            f"shape {shape} of its header; found {len(content)} bytes."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
