"""Intervals of a mean: which one, and whether it holds."""

import math

import pytest
import torch
from torch import Tensor

from isometry.spectra.intervals import bracketed_half_width, choose_rule, confidence_interval


def coverage(draw, truth: float, count: int, repeats: int = 1500) -> float:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(repeats):
        low, high = confidence_interval(draw(count, generator))
        held += low <= truth <= high
    return held / repeats


def lognormal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=torch.float64).mul(1.2).exp()


def normal(count: int, generator: torch.Generator) -> Tensor:
    return 1 + 0.2 * torch.randn(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_intervals_of_skewed_units_hold(count: int) -> None:
    assert 0.91 < coverage(lognormal, math.exp(0.72), count) < 0.97  # Student's: 0.76 to 0.88


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_intervals_of_normal_units_hold(count: int) -> None:
    assert 0.93 < coverage(normal, 1.0, count) < 0.97


def test_few_positive_units_are_taken_on_the_log_scale() -> None:
    assert choose_rule(torch.tensor([1.0, 1.1, 5.0])) == "cox"


def test_units_that_may_be_negative_never_are() -> None:
    assert choose_rule(torch.tensor([-1.0, 1.1, 5.0])) == "student"


def test_a_mixture_that_is_not_lognormal_gets_the_correction_for_skewness() -> None:
    units = torch.cat([torch.linspace(0.9, 1.1, 40), torch.tensor([5.0, 5.1, 4.9])])
    assert choose_rule(units) == "hall"


def test_equal_units_leave_no_doubt() -> None:
    assert confidence_interval(torch.full((5,), 2.0)) == (2.0, 2.0)


def test_more_confidence_is_a_wider_interval() -> None:
    units = normal(20, torch.Generator().manual_seed(1))
    low, high = confidence_interval(units)
    lower, higher = confidence_interval(units, confidence=0.99)
    assert lower < low < high < higher


def test_errors_of_brackets_and_probes_hold_the_truth_wherever_it_lies() -> None:
    deviation = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    half = torch.tensor([0.0, 0.3, 5.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    reach = bracketed_half_width(deviation, half)
    errors = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bias in (-1.0, 0.0, 0.5, 1.0):
        held = ((bias * half + errors[:, None] * deviation).abs() <= reach + 1e-12).double().mean(0)
        assert bool((held > 0.948).all())
        if abs(bias) == 1:  # the worst places
            assert bool((held[:4] < 0.952).all())
    assert reach[0] == pytest.approx(1.959964)
    assert reach[2] == pytest.approx(5 + 1.644854)
    assert reach[4:].tolist() == pytest.approx([1, 0])


def test_brackets_turned_round_by_rounding_have_no_length() -> None:
    zero = torch.tensor(0.0)
    assert float(bracketed_half_width(zero, zero)) == 0
    assert float(bracketed_half_width(zero.double(), torch.tensor(-1e-16))) == 0
