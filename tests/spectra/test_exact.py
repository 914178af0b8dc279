"""Exact singular values, from matrices and from products with them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.spectra import Matrices, exact, row_singular_values, singular_values, singular_vectors
from tests.references import SPECTRA, with_values


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (8, 8)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_prescribed_singular_values_come_back(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    truth = SPECTRA[name].double()
    found = exact(Matrices(with_values(truth, *shape).to(dtype))).values[0]
    tolerance = 1e-13 if dtype == torch.float64 else 3e-7
    torch.testing.assert_close(found, truth, rtol=0, atol=tolerance * float(truth.max()))


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (7, 1), (1, 1), (3, 200)])
def test_thin_shapes_agree_with_the_svd(rows: int, columns: int) -> None:
    matrices = torch.randn(4, rows, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(singular_values(matrices), torch.linalg.svdvals(matrices.double()), rtol=1e-6, atol=1e-7)


def test_float32_gram_is_not_used_for_small_values() -> None:
    truth = torch.tensor([1.0, 1e-6], dtype=torch.float64)
    found = singular_values(torch.diag(truth).float())
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=0)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_singular_values_scale_with_the_matrix(c: float, rows: int, columns: int, seed: int) -> None:
    a = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, scaled = exact(Matrices(a)), exact(Matrices(c * a))
    assert math.isclose(scaled.mean, c * one.mean, rel_tol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_moments_are_those_of_the_entries(rows: int, columns: int, seed: int) -> None:
    a = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one = exact(Matrices(a))
    assert math.isclose(one.mean_square, float(a.square().sum() / (2 * min(rows, columns))), rel_tol=1e-9)
    assert one.mean <= math.sqrt(one.mean_square) * (1 + 1e-12)
    assert math.isclose(one.isometry_gap, one.mean_square - 2 * one.mean + 1, rel_tol=1e-7, abs_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_vectors_of_the_smaller_side_belong_to_their_values(dtype: torch.dtype) -> None:
    maps = torch.randn(3, 8, 30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    values, vectors = singular_vectors(maps)
    torch.testing.assert_close(values.flip(-1), singular_values(maps), rtol=1e-6, atol=1e-9)
    gram = maps.double() @ maps.double().mT
    torch.testing.assert_close(gram @ vectors, vectors * values.square().unsqueeze(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(10, 9000), (7, 7), (12, 5), (1, 3)], ids=str)
def test_values_of_rows_are_those_of_the_matrices(shape: tuple[int, int], dtype: torch.dtype) -> None:
    spread = torch.logspace(0, -5, min(shape), dtype=torch.float64)
    matrices = torch.stack([with_values(spread * scale, *shape) for scale in (1, 30, 1e-6)] * 4).to(dtype)
    kept = matrices.clone()
    values = row_singular_values([*matrices.unbind(1)])
    torch.testing.assert_close(values, singular_values(matrices), rtol=1e-4, atol=0)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrices.double()), rtol=1e-4, atol=0)
    assert torch.equal(matrices, kept)
