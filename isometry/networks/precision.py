"""Full float32 precision on devices whose default is less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from isometry.networks.preservation import restoring

__all__ = ["full_precision", "no_fast_path"]


@contextlib.contextmanager
def full_precision(*, cudnn: bool = True) -> Iterator[None]:
    """Compute products of float32 in float32, also where the caller uses autocast; afterwards every setting is what it was.

    CUDA's convolutions use TensorFloat-32 by default, with a relative error of about 1e-3: too much for checks of
    equality, for least squares and for small singular values.

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

    with contextlib.ExitStack() as stack:
        for kind in filter(torch.amp.is_autocast_available, ("cpu", "cuda", "mps", "xpu")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(restoring(restore))
        raise_precision()
        backends.cudnn.enabled = enabled and cudnn
        yield


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Let torch's transformer layers run module by module, on ordinary tensors, in eval mode without gradients, too."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    with restoring(partial(torch.backends.mha.set_fastpath_enabled, enabled)):
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _set_all(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions


def _set(kinds: Sequence[Any], precisions: Sequence[str]) -> None:
    for kind, precision in zip(kinds, precisions, strict=True):
        kind.fp32_precision = precision
