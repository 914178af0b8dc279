"""Budgets: kept, and spent where they shorten the interval."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from isometry import measure
from isometry.measurement.allocation import Option, Prospect, Route, allocate, between_samples, routes
from isometry.measurement.brackets import Brackets
from isometry.measurement.calibration import Calibration
from tests.models import Wired, wide_net


def test_a_budget_is_kept() -> None:
    net = wide_net()
    x = torch.randn(600, 3, 16, 16)
    for budget in (1500, 6000):
        report = measure(net, x, budget=budget)
        assert report.cost.products <= 1.05 * budget
        assert any("budget" in note for note in report.notes)


def test_something_is_measured_whatever_a_pilot_says() -> None:
    net = wide_net()
    x = torch.randn(200, 3, 16, 16)
    for few_inputs, budget in ((x[:6], 3000), (x[:3], 400), (x, 150)):
        for method in ("auto", "krylov"):
            assert measure(net, few_inputs, budget=budget, method=method).mean_jsv > 0


def test_few_samples_are_measured_as_well_as_a_budget_allows() -> None:
    torch.manual_seed(0)
    net = nn.Linear(300, 300, bias=False)
    truth = float(torch.linalg.svdvals(net.weight.detach()).mean())
    for samples, budget, half_width in ((1, 60, 0.045), (1, 300, 0.02), (3, 180, 0.03), (7, 300, 0.03)):
        x, held = torch.randn(samples, 300), 0
        for seed in range(6):
            report = measure(net, x, method="krylov", budget=budget, seed=seed, progress=False)
            assert len(report.spectrum) == samples
            assert 0.95 * budget <= report.cost.products <= budget
            assert report.estimation_error < half_width
            held += abs(report.mean_jsv / truth - 1) <= report.estimation_error
        assert held >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_leaves_of_a_small_rank_is_not_amplified(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ranks = {1: torch.randn(150, 1) @ torch.randn(1, 150), 5: torch.randn(150, 5) @ torch.randn(5, 150)}
    for weight in ranks.values():
        net = nn.Linear(150, 150, bias=False)
        net.weight = nn.Parameter(weight)
        truth = float(torch.linalg.svdvals(weight.double()).mean())
        for seed in range(6):
            report = measure(
                net, torch.randn(2, 150), method="krylov", budget=200, seed=seed, dtype=dtype, progress=False
            )
            assert abs(report.mean_jsv / truth - 1) <= report.estimation_error + 1e-5
            assert report.estimation_error < 0.2


def test_one_huge_value_hides_no_error() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(200, 200))[0] for _ in range(2))
    values = torch.cat([torch.tensor([20_000.0]), 0.5 + torch.rand(199)])
    net = nn.Linear(200, 200, bias=False)
    net.weight = nn.Parameter((left * values) @ right)
    truth = float(torch.linalg.svdvals(net.weight.detach().double()).mean())
    reports = [
        measure(net, torch.randn(1, 200), method="krylov", budget=100, seed=seed, progress=False) for seed in range(20)
    ]
    held = sum(abs(report.mean_jsv / truth - 1) <= report.estimation_error for report in reports)
    assert held >= 17


def test_one_sample_is_measured_to_the_tolerance() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 600)), torch.randn(1, 400)
    found = [measure(net, x, method="krylov", rtol=rtol, progress=False) for rtol in (0.1, 0.05, 0.025)]
    assert all(report.estimation_error <= rtol for report, rtol in zip(found, (0.1, 0.05, 0.025), strict=True))
    assert found[0].cost.products < found[1].cost.products < found[2].cost.products < 600
    assert any("rtol=0.1 reached: the one sample" in note for note in found[0].notes)
    assert measure(net, x, rtol=0.05, progress=False).method == "krylov"
    fine = measure(net, x, rtol=0.001, progress=False)
    assert fine.method == "exact"
    assert 400 < fine.cost.products < 1.6 * 400
    note = measure(net, x, rtol=0.001, budget=60, progress=False).notes[-1]
    assert "NOT reached, as the budget was spent" in note
    orthogonal = nn.Linear(400, 400, bias=False)
    nn.init.orthogonal_(orthogonal.weight)
    assert measure(orthogonal, x, rtol=0.001, progress=False).cost.products < 40


def test_few_samples_and_their_reference_are_measured_alike() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 300)), torch.randn(3, 200)
    for options in ({"budget": 120}, {"rtol": 0.03}):
        report = measure(net, x, method="krylov", reference=copy.deepcopy(net), progress=False, **options)
        assert report.ratio == pytest.approx(1, abs=1e-9)


def test_few_samples_of_an_iterable_are_measured_like_those_of_a_tensor() -> None:
    torch.manual_seed(0)
    net = Wired(lambda m, x: m.layer(x).square(), layer=nn.Linear(200, 200))
    x, memory = torch.randn(3, 200) * torch.tensor([[1.0], [2.0], [4.0]]), torch.empty(1, 200)
    truth = measure(net, x, method="exact", progress=False).mean_jsv
    sources: dict[str, Callable[[], Any]] = {
        "list": lambda: list(x.split(1)),
        "loader": lambda: DataLoader(x, batch_size=2),  # type: ignore[arg-type]
        "generator": lambda: iter(x.split(1)),
        "one that uses its memory again": lambda: (memory.copy_(row) for row in x.split(1)),
    }
    for source in sources.values():
        for options in ({}, {"budget": 300}):
            report = measure(net, source(), method="krylov", progress=False, **options)
            assert len(report.spectrum) == 3
            assert 270 <= report.cost.products <= options.get("budget", math.inf)  # short runs end at half of them
            assert report.estimation_error < 0.034
            assert abs(report.mean_jsv / truth - 1) < 1.5 * report.estimation_error


def test_a_budget_for_fewer_samples_than_there_are_measures_some() -> None:
    torch.manual_seed(0)
    report = measure(nn.Linear(200, 200), torch.randn(6, 200), method="krylov", budget=64, progress=False)
    assert len(report.spectrum) == 3
    assert report.cost.products <= 64
    assert any("budget of 64 products spent after 3 samples" in note for note in report.notes)


def chosen(variance: float, *, exact_price: int = 1000, available: int | None = None, budget: int = 5000) -> Option:
    """Return what a budget goes to after two exact samples, their mean being 1, that vary by `variance`."""
    means = 1 + math.sqrt(variance) * torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5
    short = Calibration(6, 0.97, 0.01, 0.004, 0.0, 1e-2)
    between = (torch.tensor([variance], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    prospect = Prospect(Brackets.exact(means), 2, between)
    exact = Route(exact_price)
    return allocate(prospect, budget, exact=exact, short=routes(1.0, [short]), pilots=[exact], available=available)


def test_samples_that_agree_get_all_of_their_values() -> None:
    assert not chosen(1e-7).route.probes


def test_samples_that_vary_get_as_few_probes_as_correct_each_other() -> None:
    assert chosen(0.1).route.probes == 2


def test_few_samples_get_many_probes() -> None:
    assert chosen(1e-5, exact_price=9000, available=10).route.probes >= 8


def test_at_ten_classes_nothing_beats_all_of_the_values() -> None:
    for variance in (1e-6, 0.1):
        assert not chosen(variance, exact_price=10).route.probes


def test_samples_that_vary_are_worth_a_larger_pilot_where_that_is_cheap() -> None:
    assert chosen(0.01, exact_price=200, budget=90_000).pilot is not None
    assert chosen(0.01, exact_price=4900).pilot is None


def test_few_samples_do_not_tell_a_small_variance_from_none() -> None:
    means = torch.tensor([1.0, 1.01, 0.99, 1.0], dtype=torch.float64)
    variances, weights = between_samples(means, torch.full((4,), 1e-3, dtype=torch.float64))
    assert float(weights[variances < 1e-5].sum()) > 0.2
    assert float(weights[variances > 1e-4].sum()) > 0.05
    variances, weights = between_samples(means, torch.zeros(4, dtype=torch.float64))
    assert float((variances * weights).sum()) == pytest.approx(1e-4, rel=1)


def test_a_linear_network_is_measured_exactly() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(180, 150), torch.randn(400, 180)
    report = measure(net, x, budget=3000, progress=False)
    assert report.method == "exact"
    assert report.mean_jsv == pytest.approx(float(torch.linalg.svdvals(net.weight.detach().double()).mean()), rel=1e-6)


def test_calibrated_short_runs_are_cheaper_and_hold() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(350, 320), nn.ReLU(), nn.Linear(320, 300))
    truth = measure(net, torch.randn(200, 350), method="exact", progress=False).mean_jsv
    held = 0
    for seed in range(12):
        x = torch.randn(300, 350, generator=torch.Generator().manual_seed(seed))
        report = measure(net, x, method="krylov", budget=1500, seed=seed, progress=False)
        low, high = report.interval
        held += low <= truth <= high
        assert (high - low) / 2 < 0.035 * report.mean_jsv  # 0.041 by runs of one length, at best
        assert len(report.spectrum) > 40
        assert report.components["calibration"] > 0
        assert report.brackets.steps.unique().numel() > 1
    assert held >= 10


def test_a_pilot_of_exact_samples_counts() -> None:
    net = wide_net(200)
    report = measure(net, torch.randn(300, 3, 16, 16), budget=3000, progress=False)
    assert report.method == "krylov"
    assert int((report.brackets.probes == 0).sum()) >= 2
    assert any("calibrated by the others" in note for note in report.notes)
    assert report.cost.products <= 3000


def test_a_larger_budget_keeps_buying_a_shorter_interval() -> None:
    net = nn.Sequential(nn.Linear(150, 256), nn.Tanh(), nn.Linear(256, 150))
    x = torch.randn(2000, 150)
    widths: dict[str, list[float]] = {"krylov": [], "auto": []}
    for method, found in widths.items():
        for budget in (2000, 16_000):
            report = measure(net, x, method=method, budget=budget)
            found.append((report.interval[1] - report.interval[0]) / 2 / report.mean_jsv)
            assert report.components["probes"] >= 0
            assert report.cost.products < 1.1 * budget
    assert widths["krylov"][1] < 0.6 * widths["krylov"][0]
    assert widths["auto"][1] < widths["krylov"][1]


def test_budgets_are_fine_with_an_orthogonal_network() -> None:
    net = nn.Linear(200, 200, bias=False)
    nn.init.orthogonal_(net.weight)
    for method in ("krylov", "auto"):
        report = measure(net, torch.randn(20, 200), method=method, budget=500)
        assert report.mean_jsv == pytest.approx(1, abs=1e-5)


def test_a_pilot_in_small_batches_loses_no_sample() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(160, 170), nn.Tanh(), nn.Linear(170, 150))
    x = torch.randn(6, 160)
    assert len(measure(net, list(x.split(1)), budget=2000, progress=False).spectrum) == 6


def test_budgets_price_layers() -> None:
    torch.manual_seed(0)
    tall = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 64))
    report = measure(tall, torch.randn(50, 8), layers=True, budget=300, progress=False)
    assert report.cost.products <= 330
