"""Orthogonal factors of matrices, and the distance from them."""

import math

import pytest
import torch
from torch import Tensor

from isometry.spectra import orthogonal

SHAPES = pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)], ids=["wide", "tall", "square"])


@SHAPES
def test_orthogonal_factors_are_orthogonal(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for factor in (orthogonal.qr(w), orthogonal.polar(w)):
        small = factor @ factor.T if shape[0] <= shape[1] else factor.T @ factor
        torch.testing.assert_close(small, torch.eye(min(shape), dtype=torch.float64), atol=1e-13, rtol=0)


@SHAPES
def test_the_polar_factor_is_nearer_than_the_qr_factor(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert float((w - orthogonal.polar(w)).norm()) <= float((w - orthogonal.qr(w)).norm())


@SHAPES
def test_the_distance_is_that_of_the_polar_factor(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_hand = torch.linalg.norm(w - orthogonal.polar(w)) / math.sqrt(min(shape))
    torch.testing.assert_close(orthogonal.distance(w), by_hand)


def test_the_qr_factor_is_gram_schmidt_in_row_order() -> None:
    w = torch.randn(3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows: list[Tensor] = []
    for row in w:
        for earlier in rows:
            row = row - (row @ earlier) * earlier
        rows.append(row / row.norm())
    torch.testing.assert_close(orthogonal.qr(w), torch.stack(rows))
    assert float(orthogonal.distance(orthogonal.qr(w))) < 1e-14
