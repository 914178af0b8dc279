"""Statistics of spectra."""

import math

import pytest
import torch

from isometry.spectra import Bound, Spectrum


def test_moments_and_extremes_of_a_known_spectrum() -> None:
    spectrum = Spectrum.of(torch.tensor([[4.0, 2.0], [1.0, 1.0]]))
    assert spectrum.mean == 2
    assert spectrum.std == pytest.approx(math.sqrt(1.5))
    assert (spectrum.min, spectrum.max) == (1, 4)
    assert spectrum.condition_number == 1.5
    assert spectrum.isometry_gap == pytest.approx((9 + 1) / 4)


def test_quantiles_and_the_distribution_of_a_known_spectrum() -> None:
    spectrum = Spectrum.of(torch.tensor([[4.0, 2.0], [1.0, 1.0]]))
    assert spectrum.quantile(0.5) == 1
    assert spectrum.cdf(torch.tensor([0.5, 1.0, 3.0, 4.0])).tolist() == [0, 0.5, 0.75, 1]


def test_histograms_of_a_known_spectrum_have_errors() -> None:
    spectrum = Spectrum.of(torch.tensor([[4.0, 2.0], [1.0, 1.0]]))
    share, error = spectrum.histogram(torch.tensor([0.0, 1.5, 4.0]))
    assert share.tolist() == [0.5, 0.5]
    assert error.tolist() == pytest.approx([0.5, 0.5])


def test_a_singular_value_of_zero_makes_the_condition_number_infinite() -> None:
    assert Spectrum.of(torch.tensor([[1.0, 0.0]])).condition_number == math.inf


def test_pooling_is_concatenation_also_of_unequal_sizes() -> None:
    a, b = Spectrum.of(torch.rand(3, 4)), Spectrum.of(torch.rand(2, 6))
    pooled = Spectrum.pool([a, b])
    assert len(pooled) == 5
    assert pooled.mean == pytest.approx((3 * a.mean + 2 * b.mean) / 5)
    assert pooled.max == max(a.max, b.max)
    assert pooled.min == min(a.min, b.min)


def test_what_a_quadrature_cannot_know_is_labeled() -> None:
    nodes = Spectrum(torch.tensor([[2.0, 0.5]]).double(), torch.tensor([[0.25, 0.75]]).double(), complete=False)
    assert isinstance(nodes.min, Bound)
    assert (f"{nodes.min:.3g}", f"{nodes.max:.2f}", str(nodes.condition_number)) == ("<=0.5", ">=2.00", ">=4.0")
    assert nodes.min == 0.5


def test_values_and_weights_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values \(1, 2\) and weights \(1, 3\)"):
        Spectrum(torch.ones(1, 2), torch.ones(1, 3))


def test_spectra_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Spectrum.of(torch.tensor([[math.nan]]))
