"""The command `info`: what is here, and what a file holds."""

from __future__ import annotations

import json
import os
import platform
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from isometry import data as sets
from isometry import networks
from isometry.command.sources import read_weights
from isometry.data.cifar import CIFAR_SETS
from isometry.data.idx import IDX_SETS
from isometry.data.location import find_folder
from isometry.files import software
from isometry.surgery import Plan

__all__ = ["inform"]

_MOST = 40  # tensors that are listed


def inform(options: Namespace) -> None:
    """Print versions, devices and data, or what the file holds."""
    lines = _describe_machine() if options.file is None else _describe_file(options.file)
    print("\n".join(f"{name:<18} {text}" if name else text for name, text in lines))


def _describe_machine() -> list[tuple[str, str]]:
    versions = software()
    devices = [f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    root = os.environ.get("ISOMETRY_DATA")
    return [
        ("isometry", f"{versions.pop('isometry')}, commit {versions.pop('commit')}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("devices", ", ".join(devices)),
        ("ISOMETRY_DATA", root or "not set"),
        *[(f"data {name}", _find_set(name)) for name in sets.names()],
        *[
            (f"weights {network}", _find_weights(root, name, known.file))
            for (network, name), known in networks.PRETRAINED.items()
        ],
        ("networks", ", ".join(networks.names())),
    ]


def _find_set(name: str) -> str:
    """Return where a data set is."""
    if name == "digits":
        return "part of scikit-learn"
    probe = CIFAR_SETS[name].files[0][0] if name in CIFAR_SETS else "train-images-idx3-ubyte.gz"
    assert name in CIFAR_SETS or name in IDX_SETS
    folder = find_folder(name, None, probe)
    return (
        str(folder) if folder is not None else "not in ISOMETRY_DATA; downloaded to the user's cache where it is needed"
    )


def _find_weights(root: str | None, name: str, file: str) -> str:
    path = Path(root or "") / "weights" / file
    return f"{name}, {path}" if root and path.is_file() else f"{name}, not found (weights/{file} in ISOMETRY_DATA)"


def _describe_file(path: str) -> list[tuple[str, str]]:
    tensors, header = read_weights(path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    size = Path(path).stat().st_size
    lines = [
        ("file", f"{path}, {size:,} bytes"),
        ("tensors", f"{len(tensors)}, {numbers:,} numbers, {_kinds(tensors)}"),
    ]
    if "plan" in header:
        plan = Plan.from_json(header["plan"])
        architecture = json.loads(header.get("architecture", "{}"))
        lines[0] = (
            "file",
            f"{path}, {size:,} bytes, a pruned network of class {architecture.get('class', 'unknown')} with its plan",
        )
        lines += [
            ("plan" if not i else "", line if not i else f"{'':<18} {line}")
            for i, line in enumerate(str(plan).splitlines())
        ]
        lines.append(("removed", f"{plan.ratio:.1%} of the units of these layers"))
    elif "training" in header:
        lines[0] = (
            "file",
            f"{path}, {size:,} bytes, a checkpoint of a training after epoch {header.get('done')}, step {header.get('step')}",
        )
    elif header:
        lines.append(("header", ", ".join(f"{name}: {text[:60]}" for name, text in header.items())))
    shapes = [
        f"{name}: {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items()
    ]
    lines += [
        ("shapes" if not i else "", line if not i else f"{'':<18} {line}") for i, line in enumerate(shapes[:_MOST])
    ]
    if len(shapes) > _MOST:
        lines.append(("", f"{'':<18} and {len(shapes) - _MOST} more"))
    return lines


def _kinds(tensors: dict[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})) or "none"
