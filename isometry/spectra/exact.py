"""The complete spectrum of explicit matrices, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from isometry.spectra.operator import Operator
from isometry.spectra.spectrum import Spectrum

__all__ = ["RESOLUTION", "exact", "row_singular_values", "singular_values", "singular_vectors"]

RESOLUTION = {torch.float64: 2e-15, torch.float32: 1.2e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Rounding errors of a matrix's entries and of its decomposition, as a share of the largest singular value."""

_BLOCK = 2**19  # entries of a float64 block: 4 MiB


def singular_values(matrices: Tensor) -> Tensor:
    """Return all singular values of `matrices` [..., m, n], descending: [..., min(m, n)] float64.

    Matrices in float32 or less have a relative rounding error of about 1e-7, which the float64 Gram matrix of the
    smaller side resolves (its own limit is 1.5e-8 of the largest value) at a fraction of the cost of an SVD. For
    matrices in float64 the SVD is computed (of the R factor of a QR decomposition where one side is much longer),
    because there smaller values are significant.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    if matrices.dtype == torch.float64:
        if 2 * wide.shape[-2] < wide.shape[-1]:
            wide = torch.linalg.qr(wide.mT, mode="r").R
        return torch.linalg.svdvals(wide)
    return _roots(_gram(wide))


def singular_vectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values [..., r] float64 of `matrices` [..., r, n], r <= n, and the vectors of the smaller side.

    The columns of the vectors [..., r, r] belong to the values, which ascend. From the Gram matrix: values below 1.5e-8 of
    the largest are rounding errors.
    """
    squares, vectors = torch.linalg.eigh(_gram(matrices))
    return squares.clamp_min(0).sqrt(), vectors


def row_singular_values(rows: Sequence[Tensor]) -> Tensor:
    """Return all singular values of matrices whose m rows [B, n] come one by one, descending: [B, min(m, n)] float64.

    As `singular_values`, to rounding, but long rows are never copied into matrices.
    """
    count, entries = len(rows), rows[0].shape[-1]
    if count > entries or rows[0].dtype == torch.float64:
        return singular_values(torch.stack(list(rows), -2))
    # Products of ten rows take a quarter longer than those of twelve: their number is made a multiple of four.
    padded = [*rows, *[torch.zeros_like(rows[0])] * (-count % 4)]
    width = _block_width(len(padded) * len(rows[0]))
    blocks = (torch.stack(block, -2) for block in zip(*(row.split(width, -1) for row in padded), strict=True))
    return _roots(_sum_of_grams(blocks)[:, :count, :count])


def _roots(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)


def _gram(wide: Tensor) -> Tensor:
    """Return wide @ wide.mT [..., r, r] in float64."""
    return _sum_of_grams(wide.split(_block_width(wide[..., 0].numel()), -1))


def _block_width(entries: int) -> int:
    """Return the number of columns of a block, `entries` long each, whose float64 copy stays in the cache."""
    return max(64, _BLOCK // max(1, entries))


def _sum_of_grams(blocks: Iterable[Tensor]) -> Tensor:
    """Return the sum of block @ block.mT [..., r, r] in float64, over blocks [..., r, w] of which none is wider than the first."""
    gram = buffer = torch.zeros(0)
    for index, block in enumerate(blocks):
        if not index:  # one buffer for all, as fresh memory can cost more than the products
            gram = block.new_zeros(*block.shape[:-1], block.shape[-2], dtype=torch.float64)
            buffer = block.new_empty(block.numel(), dtype=torch.float64)
        doubled = buffer[: block.numel()].view(block.shape).copy_(block)
        gram += doubled @ doubled.mT
    return gram


def exact(operator: Operator, max_bytes: int = 2**28) -> Spectrum:
    """Return the complete `Spectrum` of an operator: min(m, n) products per sample, then float64 linear algebra.

    Args:
        operator: B maps m x n.
        max_bytes: memory for float64 copies; samples are processed in chunks of this size.
    """
    matrices = operator.dense()
    per_sample = 8 * matrices.shape[-1] * matrices.shape[-2]
    chunks = matrices.split(max(1, max_bytes // max(per_sample, 1)))
    values = torch.cat([singular_values(chunk) for chunk in chunks])
    return Spectrum.of(values, RESOLUTION[matrices.dtype])
