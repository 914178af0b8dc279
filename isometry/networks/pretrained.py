"""Pretrained weights by name: their file, their training set, and the normalization of their inputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isometry.data import IMAGENET
from isometry.files import file_digest

__all__ = ["PRETRAINED", "Pretrained", "find_weights"]


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights of a network.

    Attributes:
        file: its name in the folder weights/ of the data folder.
        dataset: the set they were trained on.
        accuracy: on the test part of that set, a fraction.
        normalization: (mean, standard deviation) of each channel, for `isometry.data.load(normalization=...)`.
        source: where they were published, and their license.
        sha256: digest of the file.
    """

    file: str
    dataset: str
    accuracy: float
    normalization: tuple[Sequence[float], Sequence[float]]
    source: str
    sha256: str


_AKAMASTER = "github.com/akamaster/pytorch_resnet_cifar10, BSD-2-Clause"
PRETRAINED = {
    ("resnet-20", "cifar10"): Pretrained(
        "resnet20_cifar10.safetensors",
        "cifar10",
        0.9173,
        IMAGENET,
        _AKAMASTER,
        "54247b1677301235ed25e108c65a82a4290e29f056e3444db0ab89c0b6afcbf7",
    ),
    ("resnet-56", "cifar10"): Pretrained(
        "resnet56_cifar10.safetensors",
        "cifar10",
        0.9339,
        IMAGENET,
        _AKAMASTER,
        "9287d5b0d60f4f51fb7f667d46d1a19e81c080a9dbd2716109bdd5a139a502e8",
    ),
}
"""{(network, name): pretrained weights}, for `networks.build(network, weights=name)`."""


def find_weights(network: str, weights: str | os.PathLike[str]) -> Path:
    """Return the file of weights.

    Args:
        network: the network's name.
        weights: the file's path, or the name of pretrained weights.

    Raises:
        ValueError: the file of that name is not the published one.
        FileNotFoundError: neither a file nor a known name whose file is in $ISOMETRY_DATA/weights.
    """
    if Path(weights).is_file():
        return Path(weights)
    known = PRETRAINED.get((network, os.fspath(weights)))
    root = os.environ.get("ISOMETRY_DATA")
    if known is not None and root is not None and (path := Path(root) / "weights" / known.file).is_file():
        if (found := file_digest(path)) != known.sha256:
            raise ValueError(
                f"networks.build({network!r}, weights={os.fspath(weights)!r}) found {path}, which is not the published file: "
                f"expected the SHA-256 {known.sha256[:16]}..., found {found[:16]}.... Get the file again, or name weights of "
                f"your own by their path, e.g. networks.build({network!r}, weights={str(path)!r})."
            )
        return path
    names = ", ".join(repr(name) for net, name in PRETRAINED if net == network) or "none"
    where = f"; {known.file} is looked for in $ISOMETRY_DATA/weights, where ISOMETRY_DATA is {root!r}" if known else ""
    raise FileNotFoundError(
        f"networks.build({network!r}) found no weights {os.fspath(weights)!r}{where}. It takes a safetensors file or a known "
        f"name ({names}), e.g. networks.build({network!r}, weights='weights.safetensors')."
    )
