"""Image sets as tensors in memory, each in three disjoint parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.data.augmentation import CropFlip
from isometry.data.batches import Split
from isometry.data.cifar import CIFAR_SETS, load_cifar_set
from isometry.data.digits import load_digits_set
from isometry.data.idx import IDX_SETS, load_idx_set

__all__ = ["Data", "load", "names"]


@dataclass(frozen=True)
class Data:
    """A data set in three disjoint parts. Never select anything on `test`.

    Attributes:
        name: the argument of `load`.
        train, validation, test: `Split`s; `validation` is drawn from the published training part.
        classes: the number of classes.
        input_shape: (C, H, W).
        augment: the function that `isometry.train` applies to every batch [B, C, H, W] of training images; None for
            none.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    input_shape: tuple[int, ...]
    augment: Callable[[Tensor], Tensor] | None = None


_VALIDATION = {"digits": 180, "mnist": 5000, "fashion-mnist": 5000, "cifar10": 5000, "cifar100": 5000}


def names() -> list[str]:
    """Return the names that `load` knows."""
    return sorted(_VALIDATION)


def load(
    name: str = "digits",
    root: str | os.PathLike[str] | None = None,
    *,
    validation: int | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    augment: bool = True,
) -> Data:
    """Load an image set into memory.

    `digits` is scikit-learn's (1,797 real 8x8 images; a stratified fifth is the test part, inputs divided by the
    training part's mean and standard deviation); nothing is downloaded. `mnist` and `fashion-mnist` are resized to
    32x32 (bilinear, as in the papers) and normalized by the published mean and standard deviation. `cifar10`
    and `cifar100` are read from their binary version and normalized by their own means and standard deviations.

    Args:
        name: one of `names()`.
        root: the folder that contains the files, or a subfolder of the set's name with them; defaults to
            $ISOMETRY_DATA, then to the user's cache, to which the files are downloaded once and checked against their
            MD5. Where the SHA-256 of the unpacked files is known (mnist, cifar10), it is checked every time.
        validation: how many training images become the validation part (the same ones in every call). Defaults to 180
            of digits, a tenth, and 5,000 of the others; 0 leaves the published training part whole.
        normalization: (mean, standard deviation) of each channel of CIFAR's pixels in [0, 1], where pretrained weights
            need others than the set's own, for instance `data.IMAGENET`.
        augment: whether `isometry.train` crops and mirrors CIFAR's images at random; the other sets are never
            augmented.

    Returns:
        `Data` with `train`, `validation` and `test`.

    Raises:
        ValueError: unknown name; a file that is truncated, corrupt, of another kind or not the published one; a `validation` that is too large.
        FileNotFoundError: `root` does not contain the set.
    """
    if name not in _VALIDATION:
        raise ValueError(f"data.load() got the name {name!r}; it knows {', '.join(names())}.")
    if normalization is not None and name not in CIFAR_SETS:
        raise ValueError(
            f"data.load({name!r}) got a normalization, which only {' and '.join(CIFAR_SETS)} take, e.g. "
            "data.load('cifar10', normalization=isometry.data.IMAGENET)."
        )
    train, test = _read(name, root, normalization)
    count = _VALIDATION[name] if validation is None else validation
    if not 0 <= count < len(train.targets):
        raise ValueError(
            f"data.load({name!r}) got validation={count}; it takes 0 to {len(train.targets) - 1} of the "
            f"{len(train.targets)} training images, e.g. data.load({name!r}, validation={_VALIDATION[name]})."
        )
    shape = tuple(train.inputs.shape[1:])
    order = torch.randperm(len(train.targets), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[:count].sort().values, order[count:].sort().values
    validation_part = Split(train.inputs[held_out], train.targets[held_out])
    train_part = Split(train.inputs[rest], train.targets[rest]) if count else train
    classes = CIFAR_SETS[name].classes if name in CIFAR_SETS else 10
    augmentation = CropFlip() if augment and name in CIFAR_SETS else None
    return Data(name, train_part, validation_part, test, classes, shape, augmentation)


def _read(
    name: str, root: str | os.PathLike[str] | None, normalization: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[Split, Split]:
    """Return the published training and test part of a set."""
    if name == "digits":
        train, test = load_digits_set()
    elif name in IDX_SETS:
        train, test = load_idx_set(name, root)
    else:
        train, test = load_cifar_set(name, root, normalization)
    return Split(*train), Split(*test)
