"""What the words of the command line name: networks, weights, data, pruners, files to write."""

from __future__ import annotations

import ast
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isometry import data as sets
from isometry import networks, pruners
from isometry.data import Data, Folder, Split
from isometry.errors import join_names
from isometry.files import read_tensors
from isometry.pruners import Masking, Pruner
from isometry.surgery import adopt, load

__all__ = [
    "build_network",
    "check_network",
    "check_output",
    "count_tests",
    "draw_inputs",
    "find_device",
    "find_pruner",
    "load_weights",
    "read_data",
    "read_weights",
]

_DRAWN = 1024  # random inputs at most, where as many are measured as it takes
_WRAPPED = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and Lightning


def find_device(name: str) -> torch.device:
    """Return a device by its name.

    Raises:
        ValueError: torch does not have it here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: torch has no such device here; e.g. --device cpu") from error
    return device


def check_output(option: str, path: str | None, *, suffixes: Sequence[str] = ()) -> None:
    """Raise an error unless a file can be written there; nothing is written.

    Args:
        option: that names the file.
        path: the file, None for none.
        suffixes: those that its name may end in; none for any.
    """
    if path is None:
        return
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise ValueError(
            f"{option} {path}: no file can be written there; name one in a folder that exists, e.g. {option} {Path(path).name or 'out'}"
        )
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"{option} {path}: its name has to end in {', '.join(suffixes)}")


def check_network(reference: str, weights: Sequence[str | None]) -> None:
    """Raise an error unless there is a network of that name, and every one of its weights; functions are not looked for."""
    if ":" not in reference and reference not in networks.names():
        hint = "; a file of weights is named by --weights" if Path(reference).is_file() else ""
        raise ValueError(
            f"got the network {reference}; it takes {', '.join(networks.names())}, or package.module:function{hint}"
        )
    for name in weights:
        if name is not None and (reference, name) not in networks.PRETRAINED and not Path(name).is_file():
            known = ", ".join(other for network, other in networks.PRETRAINED if network == reference) or "none"
            raise FileNotFoundError(
                f"got the weights {name}: there is no such file; published weights of {reference}: {known}"
            )


def read_weights(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, or of one of `torch.save`, and the header's text. Nothing is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or it holds pickled objects.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path}: that is a folder; it takes a file, e.g. {Path(path) / 'pruned.safetensors'}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile and torch alike
        raise ValueError(
            f"{path} holds no plain tensors ({type(error).__name__}): whatever else it holds is not executed. Write the weights alone, "
            "torch.save(model.state_dict(), 'weights.pt'), or safetensors"
        ) from error
    for key in _WRAPPED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds {type(content).__name__} in place of {{name: tensor}}; write torch.save(model.state_dict(), 'weights.pt')"
        )
    return {str(name): tensor for name, tensor in content.items()}, {}


def read_data(name: str | None, network: str, weights: str | None) -> Data | Folder | None:
    """Return a data set by its name, normalized as published weights need it, a folder of images, or the tensors of a file."""
    if name is None:
        return None
    if name in sets.names():
        known = networks.PRETRAINED.get((network, weights or ""))
        return sets.load(name, normalization=known.normalization if known and name.startswith("cifar") else None)
    if Path(name).is_dir():
        return sets.folder(name)
    if not Path(name).is_file():
        raise ValueError(
            f"--data {name}: it takes {', '.join(sets.names())}, a folder of images, or a file with the tensors inputs and targets"
        )
    tensors, _ = read_weights(name)
    if "inputs" not in tensors:
        raise ValueError(
            f"--data {name}: the file holds {join_names(list(tensors)) or 'nothing'}; it takes the tensors inputs [N, ...] and targets [N]"
        )
    inputs = tensors["inputs"]
    targets = tensors.get("targets", torch.zeros(len(inputs), dtype=torch.long))
    if not len(inputs) or len(targets) != len(inputs):
        raise ValueError(
            f"--data {name}: the file holds {len(inputs)} inputs and {len(targets)} targets; it takes one target per input"
        )
    split = Split(inputs, targets)
    classes = 10 if targets.is_floating_point() else int(targets.max()) + 1
    return Data(Path(name).stem, split, split, split, classes, tuple(inputs.shape[1:]))


def count_tests(data: Data | Folder) -> int:
    """Return the number of samples of the test part."""
    return len(data.test.inputs) if isinstance(data, Data) else len(_images(data))


def count_classes(data: Data | Folder | None) -> int:
    """Return the number of classes, 10 where there are no data."""
    return 10 if data is None else data.classes if isinstance(data, Data) else len(data.classes)


def _images(data: Folder) -> Any:
    """Return the test images of a folder, by index."""
    loader: Any = data.test.source
    return loader.dataset


def draw_inputs(options: Namespace, data: Data | Folder | None, device: torch.device) -> Tensor | None:
    """Return the inputs [samples, ...] to measure at: of the test part, or drawn in the shape that was named; None without both."""
    generator = torch.Generator().manual_seed(options.seed)
    if data is not None:
        order = torch.randperm(count_tests(data), generator=generator)[: options.samples]
        if isinstance(data, Folder):
            return torch.stack([_images(data)[int(index)][0] for index in order]).to(device)
        return data.test.inputs[order].to(device)
    if options.input_shape:
        count = _DRAWN if options.samples == sys.maxsize else options.samples
        return torch.randn(count, *options.input_shape, generator=generator).to(device)
    return None


def build_network(reference: str, weights: str | None, options: Namespace, data: Data | Folder | None) -> nn.Module:
    """Return a network by its name or function, for the shape and the classes of the data, with published weights where named."""
    if ":" in reference:
        from isometry.trials.architecture import read_architecture  # takes long to import

        return read_architecture(reference).build(count_classes(data), options.seed, {})
    published = weights if (reference, weights) in networks.PRETRAINED else None
    shape = tuple(options.input_shape) if options.input_shape else data.input_shape if data else None
    settings: dict[str, Any] = {} if shape is None else {"input_shape": shape}
    return networks.build(reference, count_classes(data), seed=options.seed, weights=published, **settings)


def load_weights(model: nn.Module, reference: str, weights: str | None, inputs: Tensor | None) -> nn.Module:
    """Return the network with the weights of a file: replayed by the file's plan, or as narrow as its tensors are.

    Args:
        model: as `build_network` returned it.
        reference: the name of the network.
        weights: the file, or the name of published weights, which the network has already; None leaves it as initialized.
        inputs: [B, ...], what the network accepts, for the trace; None takes the shape from the network.
    """
    if weights is None or (reference, weights) in networks.PRETRAINED:
        return model.eval()
    tensors, header = read_weights(weights)
    if "plan" in header:
        return load(weights, model, inputs=None if inputs is None else inputs[:2].cpu()).model.eval()
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors) and not hasattr(model, prefix[:-1]):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    try:
        return adopt(model, tensors).eval()
    except ValueError as error:
        raise ValueError(f"{weights} does not fit {reference}: {error}") from error


def find_pruner(name: str, settings: Sequence[str]) -> Pruner:
    """Return a pruner by its name in lower case or "package.module:Class", with hyperparameters as "name=value"."""
    known = {n.lower(): kind for n in pruners.__all__ if _is_pruner(kind := getattr(pruners, n))}
    if ":" in name:
        from isometry.trials.architecture import find_function

        kind = find_function(name)
        if not _is_pruner(kind):
            raise ValueError(
                f"--pruner {name}: it is no class derived from isometry.Pruner; known by name: {', '.join(sorted(known))}"
            )
    elif name.lower() in known:
        kind = known[name.lower()]
    else:
        raise ValueError(f"--pruner {name}: it takes {', '.join(sorted(known))}, or package.module:Class")
    allowed = [entry.name for entry in fields(kind)]
    values: dict[str, Any] = {}
    for word in settings:
        key, equals, text = word.partition("=")
        if not equals or key not in allowed:
            raise ValueError(f"--set {word}: {name} takes {', '.join(allowed)}, e.g. --set {allowed[-1]}=1")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return kind(**values)


def _is_pruner(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Pruner) and kind not in (Pruner, Masking)
