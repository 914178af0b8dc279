"""Digests of what a trial is given: classes, functions, networks and tensors. What has another digest is another trial."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from isometry.data import Batches, Data
from isometry.data.nests import named_tensors
from isometry.files import digest_tensors

__all__ = ["code_digest", "data_digest", "function_digest", "network_digest", "source_digest"]

_LIBRARIES = (*sys.stdlib_module_names, "isometry", "torch", "numpy")
_SAMPLED = 64
_PLAIN = (str, int, float, bool, complex, type(None), torch.dtype, torch.device, torch.Size)


def source_digest(kind: type) -> str | None:
    """Return a digest of the source of a class and its bases outside isometry and Python's library, None without any.

    Comments, docstrings and layout do not count; functions outside the classes, which they call, are not seen.
    """
    own = [base for base in kind.__mro__ if _is_users(base.__module__)]
    return _shortened("\n".join(_normalized_source(base) for base in own)) if own else None


def function_digest(function: Callable) -> str | None:
    """Return a digest of the source that a function is part of, None for one of a library.

    That is its whole module, so that an edited helper or class beside it counts. Of a function that was defined in a notebook,
    an interpreter or a script that is run, it is the function alone, with the values that it closes over where these are plain;
    of a class its own source and that of its bases. Comments, docstrings and layout do not count; other modules are not seen.
    """
    if isinstance(function, type):
        return source_digest(function)
    inner = inspect.unwrap(getattr(function, "func", function))  # of a functools.partial
    module = sys.modules.get(getattr(inner, "__module__", None) or "")
    if not isinstance(inner, types.FunctionType):  # an object with __call__
        return source_digest(type(inner))
    if not _is_users(inner.__module__):
        return None
    bound = getattr(function, "args", ()), getattr(function, "keywords", {})
    closed = [_describe_value(cell.cell_contents) for cell in inner.__closure__ or () if _is_filled(cell)]
    given = repr([closed, [_describe_value(value) for value in (*bound[0], *sorted(bound[1].items()))]])
    if module is None or inner.__module__ == "__main__":
        return _shortened(_normalized_source(inner) + given)
    return _shortened(_normalized_source(module) + inner.__qualname__ + given)


def network_digest(model: nn.Module) -> str:
    """Return a digest of a network: its weights and buffers, its modules, and their attributes that are plain values.

    Of attributes that are functions the names count. It is the same in every process; see `code_digest` for the rest.
    """
    modules = [
        [name, type(module).__qualname__, module.extra_repr(), _describe_attributes(module, _describe_value)]
        for name, module in model.named_modules()
    ]
    state = {name: value.detach().cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return _shortened(digest_tensors(state, {}) + json.dumps(modules))


def code_digest(model: nn.Module) -> str | None:
    """Return a digest of the source of a network's classes, and of functions among its attributes; None without any.

    Classes of isometry, torch and Python's library do not count, nor do functions that the others call.
    """
    sources = {
        f"{kind.__qualname__} {digest}" for kind in map(type, model.modules()) if (digest := source_digest(kind))
    }
    for name, module in model.named_modules():
        for attribute, digest in _describe_attributes(module, _describe_source):
            sources.add(f"{name}.{attribute} {digest}")
    return _shortened("\n".join(sorted(sources))) if sources else None


def data_digest(data: Data) -> str:
    """Return a digest of a data set's tensors and of the function that changes its training images.

    Of a loader, the repr, the samples at 64 places of its data set, and the source of that set's class count; of other iterables
    their first batch. The caller seeds what these draw from.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    contents = {name: _read_contents(part) for name, part in parts.items()}
    tensors = {
        f"{name}{path}": tensor.detach().cpu()
        for name, part in contents.items()
        for path, tensor in named_tensors(part)
    }
    augment = _describe_value(data.augment) + _describe_source(data.augment)
    return _shortened(
        digest_tensors(tensors, {"augment": augment, "classes": str(data.classes), **_describe_loaders(parts)})
    )


def _read_contents(part: Any) -> Any:
    """Return the tensors by which a part of a data set is known."""
    if not isinstance(part, Batches):
        return {key: value for key, value in part._asdict().items() if value is not None}
    if isinstance(part.source, list | tuple):
        return [pair._asdict() for pair in part]
    dataset: Any = getattr(part.source, "dataset", None)
    if isinstance(part.source, DataLoader) and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
        return [_as_tensors(dataset[index]) for index in range(0, len(dataset), max(1, len(dataset) // _SAMPLED))]
    return part.first()._asdict()


def _as_tensors(sample: Any) -> Any:
    """Return a sample with its numbers as tensors."""
    if isinstance(sample, tuple | list):
        return [_as_tensors(entry) for entry in sample]
    if isinstance(sample, dict):
        return {key: _as_tensors(entry) for key, entry in sample.items()}
    return torch.as_tensor(sample) if isinstance(sample, int | float | np.generic | np.ndarray) else sample


def _describe_loaders(parts: dict[str, Any]) -> dict[str, str]:
    """Return the repr of loaders, and the digest of the source of their data sets' classes."""
    loaders = {name: part for name, part in parts.items() if isinstance(part, Batches)}
    return {
        name: f"{part!r} {source_digest(type(getattr(part.source, 'dataset', part.source)))}"
        for name, part in loaders.items()
    }


def _is_users(module: str) -> bool:
    return module == "__main__" or module.split(".")[0] not in _LIBRARIES


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe_attributes(module: nn.Module, describe: Callable[[Any], str]) -> list[tuple[str, str]]:
    """Return what `describe` says of a module's own attributes, by name, without those of which it says nothing."""
    hidden = {"training", *vars(nn.Module())}
    described = [(name, describe(value)) for name, value in sorted(vars(module).items()) if name not in hidden]
    return [(name, text) for name, text in described if text]


def _describe_value(value: Any) -> str:
    """Return a value as text that is the same in every process; an empty one for what has no such text."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return repr([_describe_value(entry) for entry in value])
    if isinstance(value, nn.Module):
        return network_digest(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else ""


def _describe_source(value: Any) -> str:
    """Return the digest of the source of a function or of a value's class; an empty text for those of libraries."""
    if isinstance(value, (*_PLAIN, nn.Module)):
        return ""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return source_digest(type(value)) or ""
    return (function_digest(value) or "") if callable(value) else ""


def _normalized_source(subject: type | types.FunctionType | types.ModuleType) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(subject)))
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter, for instance, or a lambda within a call
        functions: Iterable[Any] = [subject] if isinstance(subject, types.FunctionType) else vars(subject).values()
        return "\n".join(_describe_code(f.__code__) for f in functions if inspect.isfunction(f))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _describe_code(code: types.CodeType) -> str:
    constants = [_describe_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_name, code.co_code.hex(), code.co_names, constants))
