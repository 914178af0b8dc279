"""Orthogonal factors of matrices, and the distance of a matrix from orthogonality."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distance", "polar", "qr"]


def qr(weight: Tensor) -> Tensor:
    """Return the orthogonal factor of the QR decomposition, that of OrthP.

    This is Q of the reduced decomposition of `weight` (of its transpose where m < n), with its columns multiplied by the
    signs of R's diagonal, which makes it unique: the result of Gram-Schmidt. Its rows are orthonormal where m <= n, its
    columns otherwise.

    Args:
        weight: matrices [..., m, n] of any dtype; the computation is in float64.

    Returns:
        [..., m, n] in the dtype of `weight`.

    Source: Wang & Fu, ICLR 2023 (TPP), the "exact isometry from existing weights" of its oracle.
    """
    wide = weight.shape[-2] < weight.shape[-1]
    tall = weight.double().mT if wide else weight.double()
    q, r = torch.linalg.qr(tall)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q)
    q = q * signs.unsqueeze(-2)
    return (q.mT if wide else q).to(weight.dtype)


def polar(weight: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal rows (m <= n) or columns, in the Frobenius norm: U Vᵀ of the SVD.

    Args:
        weight: matrices [..., m, n] of any dtype; the computation is in float64.

    Returns:
        [..., m, n] in the dtype of `weight`.
    """
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u @ vh).to(weight.dtype)


def distance(weight: Tensor) -> Tensor:
    """Return the root mean square distance of the singular values from 1.

    sqrt(mean_i (s_i - 1)²), where s_i are the min(m, n) singular values of `weight`; 0 for an isometry.
    The Frobenius distance to the nearest orthogonal matrix, ||weight - polar(weight)||_F, is sqrt(min(m, n)) times this.

    Args:
        weight: matrices [..., m, n] of any dtype; the computation is in float64.

    Returns:
        [...] in float64.
    """
    values = torch.linalg.svdvals(weight.double())
    return (values - 1).square().mean(-1).sqrt()
