import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isometry.spectra import Bound, Matrices, Spectrum, exact, mean_with_error, orthogonal, singular_values


def with_values(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix of prescribed singular values in random directions, in float64."""
    g = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, rank, generator=g, dtype=torch.float64)).Q
    return (u * values.double()) @ v.T


SPECTRA = {
    "log": torch.logspace(0, -5, 8),
    "clustered": torch.tensor([1.0] * 4 + [1e-3] * 4),
    "zeros": torch.tensor([2.0, 1.0, 0.5, 0, 0, 0, 0, 0]),
    "rank one": torch.tensor([3.0] + [0] * 7),
    "isometry": torch.ones(8),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
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


def test_an_operator_known_by_products_has_the_spectrum_of_its_matrices() -> None:
    class Hidden(Matrices):
        dense = Matrices.__mro__[1].dense

    for shape in ((3, 5, 9), (3, 9, 5)):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        hidden = Hidden(values)
        torch.testing.assert_close(exact(hidden).values, exact(Matrices(values)).values)
        assert hidden.products == 5


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_scale_equivariance_and_moments(c: float, rows: int, columns: int, seed: int) -> None:
    a = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, scaled = exact(Matrices(a)), exact(Matrices(c * a))
    assert math.isclose(scaled.mean, c * one.mean, rel_tol=1e-9)
    assert math.isclose(one.mean_square, float(a.square().sum() / (2 * min(rows, columns))), rel_tol=1e-9)
    assert one.mean <= math.sqrt(one.mean_square) * (1 + 1e-12)
    assert math.isclose(one.isometry_gap, one.mean_square - 2 * one.mean + 1, rel_tol=1e-7, abs_tol=1e-9)


def test_statistics_of_a_known_spectrum() -> None:
    spectrum = Spectrum.of(torch.tensor([[4.0, 2.0], [1.0, 1.0]]))
    assert spectrum.mean == 2
    assert spectrum.std == pytest.approx(math.sqrt(1.5))
    assert (spectrum.min, spectrum.max) == (1, 4)
    assert spectrum.condition_number == 1.5
    assert spectrum.isometry_gap == pytest.approx((9 + 1) / 4)
    assert spectrum.quantile(0.5) == 1
    assert spectrum.cdf(torch.tensor([0.5, 1.0, 3.0, 4.0])).tolist() == [0, 0.5, 0.75, 1]
    share, error = spectrum.histogram(torch.tensor([0.0, 1.5, 4.0]))
    assert share.tolist() == [0.5, 0.5]
    assert error.tolist() == pytest.approx([0.5, 0.5])
    assert Spectrum.of(torch.tensor([[1.0, 0.0]])).condition_number == math.inf


def test_pooling_is_concatenation_also_of_unequal_sizes() -> None:
    a, b = Spectrum.of(torch.rand(3, 4)), Spectrum.of(torch.rand(2, 6))
    pooled = Spectrum.pool([a, b])
    assert len(pooled) == 5
    assert pooled.mean == pytest.approx((3 * a.mean + 2 * b.mean) / 5)
    assert pooled.max == max(a.max, b.max)
    assert pooled.min == min(a.min, b.min)


def test_what_a_quadrature_cannot_know_is_labelled() -> None:
    nodes = Spectrum(torch.tensor([[2.0, 0.5]]).double(), torch.tensor([[0.25, 0.75]]).double(), complete=False)
    assert isinstance(nodes.min, Bound)
    assert (f"{nodes.min:.3g}", f"{nodes.max:.2f}", str(nodes.condition_number)) == ("<=0.5", ">=2.00", ">=4.0")
    assert nodes.min == 0.5


def test_the_interval_of_a_mean_is_students() -> None:
    estimate = mean_with_error(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    assert estimate.value == 2.5
    assert estimate.sem == pytest.approx(math.sqrt(5 / 12))
    assert estimate.interval[1] - 2.5 == pytest.approx(3.182446 * math.sqrt(5 / 12), rel=1e-5)
    alone = mean_with_error(torch.ones(1))
    assert math.isnan(alone.sem)
    assert all(map(math.isnan, alone.interval))


def test_bad_spectra_and_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values \(1, 2\) and weights \(1, 3\)"):
        Spectrum(torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Spectrum.of(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Matrices(torch.ones(3))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_orthogonal_factors_are_orthogonal(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for factor in (orthogonal.qr(w), orthogonal.polar(w)):
        small = factor @ factor.T if shape[0] <= shape[1] else factor.T @ factor
        torch.testing.assert_close(small, torch.eye(min(shape), dtype=torch.float64), atol=1e-13, rtol=0)
    assert float((w - orthogonal.polar(w)).norm()) <= float((w - orthogonal.qr(w)).norm())
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
