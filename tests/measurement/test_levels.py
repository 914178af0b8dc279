"""Samples in low precision, corrected by a few in both: without bias, with an error that is known, and only where that pays."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry.measurement.estimators import Exact, LowPrecision, TwoPrecisions
from isometry.measurement.levels import PAIRS, Levels
from isometry.measurement.planner import Planner


def levels(count: int, pairs: int, seed: int, noise: float = 0.02, cost: float = 0.5) -> tuple[Levels, Tensor]:
    """Return sample means whose low precision is 1 % too small, `pairs` of them in both precisions, and all of the true ones."""
    g = torch.Generator().manual_seed(seed)
    true = (0.3 * torch.randn(count, generator=g, dtype=torch.float64)).exp()
    coarse = 0.99 * true * (1 + noise * torch.randn(count, generator=g, dtype=torch.float64))
    known = torch.arange(count) < pairs
    fine = torch.where(known, true, math.nan)
    return Levels(coarse, fine, torch.where(known, cost, math.nan)), true


def test_corrected_means_have_no_bias_and_their_error_is_that_seen() -> None:
    misses, held = [], []
    for seed in range(400):
        found, true = levels(200, PAIRS, seed)
        brackets = found.brackets(0.0)
        miss = float((brackets.middle - true).mean())
        own = 1.96 * math.sqrt(float(brackets.probe_variance.mean()) / 200)
        misses.append(miss)
        held.append(abs(miss) <= math.hypot(own, float(brackets.shared.mean())))
    mean = torch.tensor(misses)
    assert abs(float(mean.mean())) < 3 * float(mean.std()) / math.sqrt(400) + 1e-4  # a ratio's bias is of second order
    assert 0.92 <= sum(held) / 400 <= 0.98


def test_samples_in_full_precision_are_taken_as_they_are() -> None:
    found, true = levels(50, 20, 0)
    brackets = found.brackets(0.0)
    assert torch.equal(brackets.middle[:20], true[:20])
    assert not brackets.shared[:20].any()
    assert not brackets.probe_variance[:20].any()
    assert bool((brackets.shared[20:] > 0).all())


def test_pools_keep_the_order_of_samples() -> None:
    found = Levels.pool([Levels.of(fine=torch.ones(2)), Levels.of(coarse=torch.zeros(3))])
    assert found.corrected.tolist() == [False, False, True, True, True]
    assert found.pairs == 0


@pytest.mark.parametrize(("cost", "noise"), [(0.5, 0.02), (0.3, 0.1), (0.8, 0.02)])
def test_the_gain_is_that_of_the_best_number_of_pairs(cost: float, noise: float) -> None:
    found, true = levels(4000, 4000, 1, noise, cost)
    residual = true - found.factor * found.coarse
    unexplained = float(residual.var() / true.var())
    total = 4000
    shares = [pairs / total for pairs in range(PAIRS, total + 1)]
    best = max(1 / ((cost + p) * (1 - unexplained + unexplained / p)) for p in shares)
    assert found.gain(total) == pytest.approx(best, rel=1e-3)


def test_where_low_precision_says_nothing_there_is_no_gain() -> None:
    found, _ = levels(4000, 4000, 2, noise=10.0)
    assert found.gain(4000) < 1


def test_identical_samples_are_corrected_without_error() -> None:
    same = torch.full((20,), 2.0, dtype=torch.float64)
    found = Levels.pool([Levels.of(coarse=0.99 * same, fine=same, cost=0.5), Levels.of(coarse=0.99 * same)])
    brackets = found.brackets(0.0)
    assert brackets.middle.tolist() == pytest.approx([2.0] * 40)
    assert float(brackets.shared.max()) < 1e-12


NET = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 5))
X = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let low precision take half the time, whatever this machine makes of it."""
    monkeypatch.setattr(Levels, "relative_cost", 0.5)


@pytest.mark.usefixtures("fast")
def test_a_mixed_measurement_agrees_with_the_exact_one() -> None:
    exact, mixed = isometry.measure(NET, X), isometry.measure(NET, X, method="mixed")
    assert mixed.method == "mixed"
    assert len(mixed.sample_means) == 300
    assert abs(mixed.mean_jsv - exact.mean_jsv) < 2 * mixed.estimation_error * exact.mean_jsv
    assert 0 < mixed.estimation_error < 0.01
    assert mixed.cost.products < 1.3 * exact.cost.products
    assert any("corrected by" in note for note in mixed.notes)
    assert isometry.Report.from_dict(mixed.to_dict()).interval == mixed.interval
    assert "mixed" in str(mixed)


@pytest.mark.usefixtures("fast")
def test_a_tolerance_ends_a_mixed_measurement() -> None:
    report = isometry.measure(NET, X.repeat(10, 1), method="mixed", rtol=0.02)
    low, high = report.interval
    assert (high - low) / 2 <= 0.02 * report.mean_jsv
    assert len(report.sample_means) < 3000


@pytest.mark.usefixtures("fast")
def test_a_mixed_measurement_has_a_reference_and_a_budget() -> None:
    pruned = isometry.prune(NET, isometry.L1(), 0.5, inputs=X[:2]).model
    mixed, exact = (isometry.measure(pruned, X, reference=NET, method=method).ratio for method in ("mixed", "exact"))
    assert mixed is not None
    assert exact is not None
    assert mixed == pytest.approx(exact, rel=0.01)
    report = isometry.measure(NET, X, method="mixed", budget=900)
    assert report.cost.products <= 900


def test_exact_where_low_precision_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Levels, "relative_cost", 1.2)
    report = isometry.measure(NET, X, method="mixed")
    assert report.method == "exact"
    assert report.brackets is None
    assert any("rather than 'mixed'" in note and "1.2 of the time" in note for note in report.notes)
    exact = isometry.measure(NET, X)
    assert report.sample_means.sort().values.tolist() == pytest.approx(exact.sample_means.sort().values.tolist())


def test_exact_for_few_samples() -> None:
    report = isometry.measure(NET, X[:60], method="mixed")
    assert report.method == "exact"
    assert any("128 samples" in note for note in report.notes)


class FullPrecisionOnly(nn.Module):
    """A layer that refuses low precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        if x.dtype == torch.bfloat16:
            raise RuntimeError("no kernel for BFloat16")
        return x * 1


def test_exact_where_the_network_does_not_work_in_low_precision() -> None:
    report = isometry.measure(nn.Sequential(NET, FullPrecisionOnly()), X, method="mixed")
    assert report.method == "exact"
    assert len(report.sample_means) == 300
    assert any("does not work in torch.bfloat16" in note for note in report.notes)


class FailsOnce(nn.Module):
    """A layer that refuses low precision in one batch of many samples."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        if x.dtype == torch.bfloat16 and len(x) > PAIRS:
            raise RuntimeError("no kernel for BFloat16")
        return x * 1


@pytest.mark.usefixtures("fast")
def test_batches_that_fail_in_low_precision_are_measured_in_full() -> None:
    report = isometry.measure(nn.Sequential(NET, FailsOnce()), X, method="mixed")
    assert report.method == "exact"
    assert len(report.sample_means) == 300


def test_a_network_of_a_bottleneck_is_measured_through_it() -> None:
    net = nn.Sequential(nn.Linear(30, 4), nn.Tanh(), nn.Linear(4, 40))
    report = isometry.measure(net, torch.randn(200, 30), method="mixed")
    assert any("bottleneck takes fewer" in note for note in report.notes)
    assert report.method == "exact"


@pytest.mark.parametrize(("cost", "estimator"), [(0.5, LowPrecision), (2.0, Exact)])
def test_the_plan_after_the_pairs(monkeypatch: pytest.MonkeyPatch, cost: float, estimator: type) -> None:
    monkeypatch.setattr(Levels, "relative_cost", cost)
    seen: list[type] = []
    after = Planner.after

    def watched(self: Planner, plan: Any, tally: Any) -> Any:
        found = after(self, plan, tally)
        seen.append(type(found.estimator))
        return found

    monkeypatch.setattr(Planner, "after", watched)
    isometry.measure(NET, X, method="mixed")
    assert seen[0] is TwoPrecisions
    assert seen[-1] is estimator


def test_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="got layers= with method='mixed'"):
        isometry.measure(NET, X, method="mixed", layers=True)
