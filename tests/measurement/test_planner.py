"""Budgets: kept, and spent where they shorten the interval."""

import pytest
import torch
from torch import nn

from isometry import measure
from isometry.measurement.planner import allocate
from tests.models import wide_net


def test_a_budget_is_kept() -> None:
    net = wide_net()
    x = torch.randn(200, 3, 16, 16)
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


def test_samples_that_agree_get_all_of_their_values() -> None:
    prices = {"exact_price": 1000, "probe_price": 48, "budget": 5000}
    assert allocate(sample_variance=1e-6, probe_variance=1e-2, **prices).method == "exact"


def test_samples_that_vary_get_as_few_probes_as_correct_each_other() -> None:
    prices = {"exact_price": 1000, "probe_price": 48, "budget": 5000}
    vary = allocate(sample_variance=0.1, probe_variance=1e-3, **prices)
    assert (vary.method, vary.probes) == ("krylov", 2)


def test_few_samples_get_many_probes() -> None:
    prices = {"exact_price": 1000, "probe_price": 48, "budget": 5000}
    few = allocate(sample_variance=1e-4, probe_variance=1e-2, **{**prices, "exact_price": 9000}, available=10)
    assert few.method == "krylov"
    assert few.probes >= 8


def test_at_ten_classes_nothing_beats_all_of_the_values() -> None:
    for variance in (1e-6, 0.1):
        small = allocate(sample_variance=variance, probe_variance=1e-2, exact_price=10, probe_price=20, budget=5000)
        assert small.method == "exact"


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
    assert widths["auto"][1] < 0.6 * widths["krylov"][1]  # exact, where brackets are wider than the rest


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
