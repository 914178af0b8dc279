"""The complete spectrum of explicit matrices, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from isometry.spectra.operator import Operator
from isometry.spectra.spectrum import Spectrum

__all__ = ["RESOLUTION", "exact", "singular_values", "singular_vectors"]

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
    return torch.linalg.eigvalsh(_gram(wide)).clamp_min(0).sqrt().flip(-1)


def singular_vectors(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values [..., r] float64 of `matrices` [..., r, n], r <= n, and the vectors of the smaller side.

    The columns of the vectors [..., r, r] belong to the values, which ascend. From the Gram matrix: values below 1.5e-8 of
    the largest are rounding errors.
    """
    squares, vectors = torch.linalg.eigh(_gram(matrices))
    return squares.clamp_min(0).sqrt(), vectors


def _gram(wide: Tensor) -> Tensor:
    """Return wide @ wide.mT [..., r, r] in float64."""
    gram = wide.new_zeros(*wide.shape[:-1], wide.shape[-2], dtype=torch.float64)
    # In blocks of columns, so that the float64 copies stay in the cache.
    width = max(64, _BLOCK // max(1, wide[..., 0].numel()))
    for columns in wide.split(width, dim=-1):
        doubled = columns.double()
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
