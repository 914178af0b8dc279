"""Estimates of a mean: their standard errors and intervals."""

import math

import pytest
import torch
from scipy import stats

from isometry.spectra import mean_with_error, student_quantile


def test_the_interval_of_a_mean_that_may_be_negative_is_students() -> None:
    estimate = mean_with_error(torch.tensor([1.0, 2.0, 3.0, 4.0]).double() - 2.5)
    assert estimate.value == 0
    assert estimate.sem == pytest.approx(math.sqrt(5 / 12))
    assert estimate.interval[1] == pytest.approx(3.182446 * math.sqrt(5 / 12), rel=1e-5)


def test_the_error_of_one_sample_is_unknown() -> None:
    alone = mean_with_error(torch.ones(1))
    assert math.isnan(alone.sem)
    assert all(map(math.isnan, alone.interval))


@pytest.mark.parametrize("count", [2, 3, 10, 64, 5000])
def test_the_quantile_is_that_of_students_distribution(count: int) -> None:
    assert student_quantile(count) == stats.t.ppf(0.975, count - 1)


@pytest.mark.parametrize("count", [2, 8, 32])
@pytest.mark.parametrize("half", [0.0, 0.3, 1.0, 5.0])  # standard errors of the mean
@pytest.mark.parametrize("shared", [0.0, 1.0])  # likewise, of an error that all units have in common
def test_intervals_around_brackets_hold_the_truth_at_either_end_and_no_more(
    count: int, half: float, shared: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    repeats = 2000
    units = torch.randn(repeats, count, generator=generator, dtype=torch.float64)
    common = shared * torch.randn(repeats, 1, generator=generator, dtype=torch.float64) / math.sqrt(count)
    bracket = half / math.sqrt(count)
    for place in (-1, 0, 1):
        held = 0
        for each in units + common + place * bracket - 100:  # not positive: none is taken on the log scale
            low, high = mean_with_error(
                each, each - bracket, each + bracket, shared=1.96 * shared / math.sqrt(count)
            ).interval
            held += low <= -100 <= high
        at_least = 0.935
        at_most = 0.975 if place and not shared else 1.0  # Student's quantile is too much for the error in common
        assert at_least < held / repeats <= at_most, (place, held / repeats)


def test_the_interval_around_a_long_bracket_is_one_sided_at_either_end() -> None:
    units = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_with_error(units, units - 100, units + 100)
    assert found.interval[1] == pytest.approx(found.value + 100 + stats.t.ppf(0.95, 19) * found.sem, abs=1e-6)


@pytest.mark.parametrize(("sigma", "count"), [(1.0, 4), (1.0, 30), (0.3, 4), (0.5, 7)])
def test_intervals_of_skewed_units_in_brackets_hold_about_as_often_as_without(sigma: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(2000, count, generator=generator, dtype=torch.float64).mul(sigma).exp()
    truth = math.exp(sigma**2 / 2)
    half = float(units.mean(1).std()) / truth  # of brackets, as a share
    known = held = 0
    for each in units:  # at the upper end of its bracket, where the truth is missed most often
        low, high = mean_with_error(each).interval
        known += low <= truth <= high
        middle = each / (1 + half)
        low, high = mean_with_error(middle, middle * (1 - half), each).interval
        held += low <= truth <= high
    assert held > known - 0.02 * 2000, (held, known)
