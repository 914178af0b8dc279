"""Full float32 precision on devices whose default is less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from isometry.networks.preservation import restoring

__all__ = ["full_precision"]


@contextlib.contextmanager
def full_precision(*, cudnn: bool = True) -> Iterator[None]:
    """Compute products of float32 in float32; afterwards every setting has its former value again.

    CUDA's convolutions use TensorFloat-32 by default, with a relative error of about 1e-3: too much for checks of
    equality and for small singular values.

    Args:
        cudnn: whether cuDNN may be used at all; its recurrent layers have no second derivative.
    """
    backends: Any = torch.backends
    enabled = backends.cudnn.enabled
    try:
        matmul, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # the user has set precisions kernel by kernel, as torch allows since 2.9
        kinds = (
            backends.cudnn.conv,
            backends.cudnn.rnn,
            backends.cuda.matmul,
            backends.mkldnn.conv,
            backends.mkldnn.matmul,
        )
        precisions = [kind.fp32_precision for kind in kinds]
        raise_precision = partial(_set, kinds, ["ieee"] * len(kinds))
        restore_precision = partial(_set, kinds, precisions)
    else:
        raise_precision = partial(_set_all, "highest", False)
        restore_precision = partial(_set_all, matmul, convolutions)

    def restore() -> None:
        backends.cudnn.enabled = enabled
        restore_precision()

    with restoring(restore):
        raise_precision()
        backends.cudnn.enabled = enabled and cudnn
        yield


def _set_all(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions


def _set(kinds: Sequence[Any], precisions: Sequence[str]) -> None:
    for kind, precision in zip(kinds, precisions, strict=True):
        kind.fp32_precision = precision
