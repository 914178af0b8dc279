"""Linear operators: batches of linear maps, accessed through products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Matrices", "Operator"]


class Operator(ABC):
    """B linear maps J of shape m x n, accessed only through v -> J v and u -> Jᵀ u.

    Every call takes k vectors per sample. A subclass counts the cost in `products`: the number of vectors per sample to
    which J or Jᵀ was applied, so that one product is one pass over the batch.
    """

    batch: int
    rows: int
    columns: int
    dtype: torch.dtype
    device: torch.device
    products: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, m, n)."""
        return self.batch, self.rows, self.columns

    @property
    def rank(self) -> int:
        """The number of singular values of one map, min(m, n)."""
        return min(self.rows, self.columns)

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """Apply J: v [B, k, n] -> [B, k, m]."""

    @abstractmethod
    def rmatvec(self, u: Tensor) -> Tensor:
        """Apply Jᵀ: u [B, k, m] -> [B, k, n]."""

    def dense(self) -> Tensor:
        """Return the maps as explicit matrices [B, r, s], r <= s, of the same singular values.

        This is J where m <= n, from m products with Jᵀ; otherwise Jᵀ, from n products with J.
        """
        wide = self.rows <= self.columns
        apply = self.rmatvec if wide else self.matvec
        eye = torch.eye(self.rank, dtype=self.dtype, device=self.device)
        return apply(eye.expand(self.batch, -1, -1))


class Matrices(Operator):
    """Explicit matrices [B, m, n] (or one, [m, n]) as an operator."""

    def __init__(self, values: Tensor) -> None:
        if values.ndim not in (2, 3) or not values.is_floating_point():
            raise ValueError(
                f"Matrices() got a tensor of shape {tuple(values.shape)} and dtype {values.dtype}; it takes floating "
                "point matrices [m, n] or [B, m, n], e.g. Matrices(torch.randn(8, 10, 30))."
            )
        self.values = values if values.ndim == 3 else values[None]
        self.batch, self.rows, self.columns = self.values.shape
        self.dtype, self.device = values.dtype, values.device

    def matvec(self, v: Tensor) -> Tensor:
        """Apply the matrices: [B, k, n] -> [B, k, m]."""
        self.products += v.shape[1]
        return v @ self.values.mT

    def rmatvec(self, u: Tensor) -> Tensor:
        """Apply the transposed matrices: [B, k, m] -> [B, k, n]."""
        self.products += u.shape[1]
        return u @ self.values

    def dense(self) -> Tensor:
        """Return the matrices, transposed where they are taller than wide: [B, r, s], r <= s."""
        return self.values if self.rows <= self.columns else self.values.mT
