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
