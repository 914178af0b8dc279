"""Precision: float32 arithmetic that is float32, on devices whose default is less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["full_precision"]


@contextlib.contextmanager
def full_precision(*, cudnn: bool = True) -> Iterator[None]:
    """Compute products of float32 in float32, and give every setting back afterwards.

    CUDA's convolutions take TensorFloat-32 by default, with a relative error of about 1e-3: too much for checks of
    equality and for small singular values.

    Args:
        cudnn: whether cuDNN may be used at all; its recurrent layers have no second derivative.
    """
    backends: Any = torch.backends
    wanted: list[tuple[Any, str, Any]] = [
        (place, "allow_tf32", False) for place in (backends.cudnn, backends.cuda.matmul)
    ]
    try:
        for place, name, _ in wanted:
            getattr(place, name)
    except RuntimeError:  # the user has set precisions kernel by kernel, as torch allows since 2.9
        kinds = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        wanted = [(kind, "fp32_precision", "ieee") for kind in kinds]
    if not cudnn:
        wanted.append((backends.cudnn, "enabled", False))
    held = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in reversed(held):
            setattr(place, name, value)
