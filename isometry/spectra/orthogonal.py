"""Orthogonal factors of a matrix, and how far a matrix is from having one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distance", "polar", "qr"]


def qr(weight: Tensor) -> Tensor:
    """Return the orthogonal factor that Gram-Schmidt gives, the one of OrthP.

    The reduced QR factor of `weight` (of its transpose where it has fewer rows than columns), its columns multiplied
    by the signs of R's diagonal, which makes it unique. Rows come out orthonormal where m <= n, columns otherwise.

    Args:
        weight: matrices [..., m, n], computed in float64 whatever their dtype.

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
        weight: matrices [..., m, n], computed in float64 whatever their dtype.

    Returns:
        [..., m, n] in the dtype of `weight`.
    """
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u @ vh).to(weight.dtype)


def distance(weight: Tensor) -> Tensor:
    """Return the Frobenius distance to the nearest orthogonal matrix, a root mean square over singular values.

    sqrt(mean_i (s_i - 1)²), where s_i are the min(m, n) singular values of `weight` [..., m, n]; 0 for an isometry.
    The Frobenius norm of `weight - polar(weight)` is sqrt(min(m, n)) times this number.

    Returns:
        [...] in float64.
    """
    values = torch.linalg.svdvals(weight.double())
    return (values - 1).square().mean(-1).sqrt()
