"""Control variates: further probes of one product each, without bias and with an error that is known."""

import pytest
import torch
from torch import Tensor

from isometry.spectra import Bidiagonal, Controlled, Matrices, bidiagonalize, probes
from tests.references import with_values

SPECTRA = {
    "uniform": torch.linspace(0.5, 1.5, 300),
    "half-normal": torch.erfinv((torch.arange(300) + 0.5) / 300),
    "half zeros": torch.cat([torch.linspace(0.5, 1.5, 150), torch.zeros(150)]),
    "one large": torch.cat([torch.tensor([60.0]), torch.linspace(0.5, 1.5, 299)]),
}


def runs(matrix: Tensor, draws: int, count: int, steps: int, seed: int = 0) -> Bidiagonal:
    """Return `count` runs for each of so many draws of probes."""
    start = probes(draws, count, len(matrix), torch.Generator().manual_seed(seed), matrix)
    return bidiagonalize(Matrices(matrix.expand(draws, -1, -1)), start, steps=steps, keep_basis=True)


def estimates(matrix: Tensor, further: int, count: int = 2, steps: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Return 200 estimates, their standard errors, and half-widths of their brackets."""
    control = Controlled.of(runs(matrix, 200, count, steps))
    more = probes(200, further, len(matrix), torch.Generator().manual_seed(1), matrix)
    low, high = control.ends(control.levels(more, (more @ matrix).square().sum(-1)))
    return (low + high) / 2, control.variance(further).sqrt(), (high - low) / 2


@pytest.mark.parametrize("name", SPECTRA)
def test_the_estimate_has_no_bias_and_the_error_it_tells(name: str) -> None:
    values = SPECTRA[name].double()
    found, error, half = estimates(with_values(values, 300, 400), 24)
    truth = float(values.mean())
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / 200**0.5 + float(half.mean())
    assert 0.8 < float(error.mean() / found.std()) < 1.6
    held = ((found - truth).abs() <= 1.96 * error + half).double().mean()
    assert float(held) >= 0.93


@pytest.mark.parametrize("name", SPECTRA)
def test_further_probes_are_worth_more_than_runs_of_the_same_price(name: str) -> None:
    values = SPECTRA[name].double()
    matrix = with_values(values, 300, 400)
    found, _, _ = estimates(matrix, 24, steps=8)  # 2 x 16 + 24 products: more than three runs
    plain = sum(runs(matrix, 200, 4, 8).bracket())[:, :4].mean(1) / 2
    assert float(found.std()) < 0.75 * float(plain.std())


def test_nothing_varies_at_isometry() -> None:
    found, error, half = estimates(with_values(torch.ones(60).double(), 60, 80), 8)
    torch.testing.assert_close(found, torch.ones(200).double(), rtol=1e-9, atol=0)
    assert float(error.max()) < 1e-6
    assert float(half.max()) < 1e-9


def test_maps_that_are_zero_are_zero() -> None:
    found, error, half = estimates(torch.zeros(20, 30).double(), 8)
    assert not found.any()
    assert not error.any()
    assert not half.any()


def test_one_run_alone_takes_nothing_out() -> None:
    values = SPECTRA["uniform"].double()
    found, error, _ = estimates(with_values(values, 300, 400), 24, count=1)
    assert float(found.mean()) == pytest.approx(1, abs=0.01)
    assert 0.8 < float(error.mean() / found.std()) < 1.6


def test_runs_joined_are_runs_together() -> None:
    matrix = with_values(torch.linspace(0.1, 1.5, 60).double(), 60, 80)
    one, two = runs(matrix, 3, 2, 6, seed=0), runs(matrix, 3, 2, 6, seed=1)
    start = torch.cat([one.start, two.start], 1)
    whole = bidiagonalize(Matrices(matrix.expand(3, -1, -1)), start, steps=6, keep_basis=True)
    joined = one.joined(two)
    for a, b in zip((*joined.bracket(), joined.squared()), (*whole.bracket(), whole.squared()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_run_that_ended_joins_a_longer_one() -> None:
    maps = torch.stack([with_values(torch.linspace(0.1, 1.5, 60).double(), 60, 80)])
    long = bidiagonalize(
        Matrices(maps), probes(1, 2, 60, torch.Generator().manual_seed(0), maps), steps=6, keep_basis=True
    )
    first = torch.linalg.svd(maps[0]).U[:, :2].T[None].contiguous()  # invariant: these runs end after a step
    short = bidiagonalize(Matrices(maps), first, steps=6, keep_basis=True)
    assert short.alpha.shape[-1] == 1
    torch.testing.assert_close(long.joined(short).bracket()[1][:, 2:], torch.linalg.svdvals(maps)[:, :2])


def test_squared_maps_follow_from_the_recursion() -> None:
    matrix = with_values(torch.logspace(0, -1, 40).double(), 40, 60)
    run = runs(matrix, 3, 2, 7)
    torch.testing.assert_close(run.squared(), run.basis @ (matrix @ matrix.mT), rtol=1e-9, atol=1e-11)
    cut = run.first(4)
    torch.testing.assert_close(cut.squared(), cut.basis @ (matrix @ matrix.mT), rtol=1e-9, atol=1e-11)
