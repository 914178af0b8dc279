"""Short runs, corrected by long ones: without bias, and with an error that is known."""

import pytest
import torch
from torch import Tensor

from isometry.measurement.calibration import LENGTHS, Pilot
from isometry.spectra import Matrices, bidiagonalize, probes, singular_vectors


def maps(count: int, seed: int = 0) -> Tensor:
    """Return random maps [count, 40, 60] of sizes that vary."""
    g = torch.Generator().manual_seed(seed)
    scales = (0.3 * torch.randn(count, 1, 1, generator=g, dtype=torch.float64)).exp()
    return scales * torch.randn(count, 40, 60, generator=g, dtype=torch.float64)


def long_pilot(count: int, steps: int = 30, seed: int = 0, probes_each: int = 2) -> Pilot:
    a = maps(count, seed)
    start = probes(count, probes_each, 40, torch.Generator().manual_seed(seed), a)
    return Pilot.of(bidiagonalize(Matrices(a), start, steps=steps, keep_basis=True))


def test_calibrated_short_runs_have_the_mean_of_all_values() -> None:
    a = maps(600)
    truth = torch.linalg.svdvals(a).mean(1)
    short = {c.steps: c for c in long_pilot(60, seed=1).calibrations()}[3]
    start = probes(600, 2, 40, torch.Generator().manual_seed(2), a)
    lower, upper = bidiagonalize(Matrices(a), start, steps=3).bracket()
    plain = float(((lower + upper) / 2).mean(1).sum() / truth.sum())
    assert abs(short.factor * plain - 1) < 0.01 < abs(plain - 1)


def test_the_error_of_a_factor_is_that_seen_over_pilots() -> None:
    found = [long_pilot(8, seed=seed).calibrations()[1] for seed in range(60)]
    factors = torch.tensor([each.factor for each in found])
    told = torch.tensor([each.error for each in found]).mean() / 2.365  # Student's quantile for 8 samples
    assert float(told) == pytest.approx(float((factors / factors.mean()).std()), rel=0.3)


def test_the_longest_run_needs_no_calibration() -> None:
    last = long_pilot(5).calibrations()[-1]
    assert last.steps == 30
    assert last.factor == pytest.approx(1, abs=1e-6)
    assert last.error < 1e-6
    assert last.half > 0


def test_longer_runs_are_nearer_to_the_end() -> None:
    errors = [each.error for each in long_pilot(20).calibrations()]
    assert errors[0] > 3 * errors[5] > 0


def test_all_values_calibrate_as_long_runs_do() -> None:
    a = maps(40)
    values, vectors = singular_vectors(a)
    start = probes(40, 8, 40, torch.Generator().manual_seed(0), a)
    limit = ((start @ vectors).square() * values.unsqueeze(1)).sum(-1)
    exact = Pilot.of(bidiagonalize(Matrices(a), start, steps=LENGTHS[-1], keep_basis=True), limit)
    for one, other in zip(exact.calibrations(), long_pilot(40, steps=40).calibrations(), strict=False):
        assert abs(one.factor - other.factor) < one.error + other.error + 1e-9
        assert one.half == 0


def test_pilots_in_parts_are_one_pilot() -> None:
    a = maps(6)
    start = probes(6, 2, 40, torch.Generator().manual_seed(0), a)
    parts = [
        Pilot.of(bidiagonalize(Matrices(a[i]), start[i], steps=12, keep_basis=True)) for i in torch.arange(6).split(2)
    ]
    whole = Pilot.of(bidiagonalize(Matrices(a), start, steps=12, keep_basis=True))
    assert len(Pilot.pool(parts)) == 6
    for one, other in zip(Pilot.pool(parts).calibrations(), whole.calibrations(), strict=True):
        assert one.factor == pytest.approx(other.factor, rel=1e-12)
        assert one.error == pytest.approx(other.error, rel=1e-9)


def test_maps_that_are_zero_leave_nothing_to_calibrate() -> None:
    zero = torch.zeros(3, 40, 60, dtype=torch.float64)
    start = probes(3, 2, 40, torch.Generator().manual_seed(0), zero)
    (calibration,) = Pilot.of(bidiagonalize(Matrices(zero), start, steps=12, keep_basis=True)).calibrations()
    assert (calibration.factor, calibration.error, calibration.half) == (1.0, 0.0, 0.0)
