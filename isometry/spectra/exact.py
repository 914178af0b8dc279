"""The complete spectrum of explicit matrices, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isometry.spectra.operator import Operator
from isometry.spectra.spectrum import Spectrum

__all__ = ["RESOLUTION", "exact", "row_singular_values", "singular_values", "singular_vectors"]

RESOLUTION = {torch.float64: 2e-15, torch.float32: 1.2e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Rounding errors of a matrix's entries and of its decomposition, as a share of the largest singular value."""

_BLOCK, _ROWS_BLOCK = 2**19, 2**20  # entries of a float64 block that stays in the cache: 4 and 8 MiB


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
    if len(rows) > rows[0].shape[-1] or rows[0].dtype == torch.float64:
        return singular_values(torch.stack(list(rows), -2))
    return _roots(_gram_of_rows(rows))


def _roots(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(-1)


def _gram(wide: Tensor) -> Tensor:
    """Return wide @ wide.mT [..., r, r] in float64, wide [..., r, n]."""
    *batch, count, columns = wide.shape
    width = max(64, _BLOCK // max(1, wide[..., 0].numel()))
    gram = wide.new_zeros(*batch, count, count, dtype=torch.float64)
    # One buffer for all blocks, as fresh memory can cost more than the products.
    buffer = wide.new_empty(wide[..., 0].numel() * min(width, columns), dtype=torch.float64)
    for block in wide.split(width, -1):
        doubled = buffer[: block.numel()].view(block.shape).copy_(block)
        gram += doubled @ doubled.mT
    return gram


def _gram_of_rows(rows: Sequence[Tensor]) -> Tensor:
    """Return the Gram matrices [B, m, m] in float64 of matrices whose m rows [B, n] lie apart: some samples, whole rows, at once."""
    count, (batch, columns) = len(rows), rows[0].shape
    padded = count + (-count % 4 if count > 4 else 0)  # products of ten rows take a quarter longer than those of twelve
    width = max(64, min(columns, _ROWS_BLOCK // padded))
    samples = max(1, min(batch, _ROWS_BLOCK // (padded * width)))
    gram = rows[0].new_zeros(batch, padded, padded, dtype=torch.float64)
    buffer = rows[0].new_zeros(samples, padded, width, dtype=torch.float64)
    for first in range(0, batch, samples):
        some = slice(first, first + samples)
        for start in range(0, columns, width):
            blocks = [row[some, start : start + width] for row in rows]
            doubled = buffer[: len(blocks[0]), :, : blocks[0].shape[-1]]
            for index, block in enumerate(blocks):
                doubled[:, index].copy_(block)
            gram[some] += doubled @ doubled.mT
    return gram[:, :count, :count]


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
