"""Operators known by their matrices or by their products."""

import pytest
import torch

from isometry.spectra import Matrices, exact


def test_an_operator_known_by_products_has_the_spectrum_of_its_matrices() -> None:
    class Hidden(Matrices):
        dense = Matrices.__mro__[1].dense

    for shape in ((3, 5, 9), (3, 9, 5)):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        hidden = Hidden(values)
        torch.testing.assert_close(exact(hidden).values, exact(Matrices(values)).values)
        assert hidden.products == 5


def test_matrices_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Matrices(torch.ones(3))
