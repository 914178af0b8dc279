"""The price of a measurement."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """What a measurement cost.

    Attributes:
        forwards: forward passes of one sample each.
        products: products of one sample's J or Jᵀ with a vector; Jᵀu is about one backward pass of one sample.
        seconds: wall-clock time.
    """

    forwards: int
    products: int
    seconds: float
