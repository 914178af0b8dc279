"""Exact values and brackets agree, and cost what they promise."""

import copy

import pytest
import torch
from torch import Tensor, nn

from isometry import measure, networks, spectra
from isometry.measurement.batch import Batch
from isometry.measurement.estimators import Exact
from isometry.measurement.function import NetworkFunction
from isometry.measurement.options import Options
from isometry.measurement.preparation import prepare
from tests.models import wide_net
from tests.references import slow_singular_values


def test_large_outputs_get_brackets_that_hold_for_fewer_products() -> None:
    net = wide_net(200)
    x = torch.randn(12, 3, 16, 16)
    exact, stochastic = measure(net, x, method="exact"), measure(net, x)
    assert stochastic.method == "krylov"
    assert stochastic.cost.products * 3 < exact.cost.products
    low, high = stochastic.interval
    assert low < exact.mean_jsv < high
    half = (stochastic.brackets.upper - stochastic.brackets.lower) / 2 / stochastic.sample_means
    assert float(half.max()) <= 0.03


def test_the_extremes_of_brackets_are_bounds() -> None:
    net = wide_net(200)
    x = torch.randn(12, 3, 16, 16)
    exact, stochastic = measure(net, x, method="exact"), measure(net, x)
    assert float(stochastic.min_jsv) >= exact.min_jsv
    assert float(stochastic.max_jsv) <= exact.max_jsv * (1 + 1e-5)
    assert str(stochastic.min_jsv).startswith("<=")


def test_the_mean_square_of_brackets_is_near_the_exact_one() -> None:
    net = wide_net(200)
    x = torch.randn(12, 3, 16, 16)
    exact, stochastic = measure(net, x, method="exact"), measure(net, x)
    assert stochastic.spectrum.mean_square == pytest.approx(exact.spectrum.mean_square, rel=0.1)


def test_intervals_cover_on_a_real_net() -> None:
    """Over 400 draws of 12 samples, exact and stochastic 95 % intervals hold the population mean 92 to 98 % of the time."""
    net = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30))
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    population = torch.randn(4000, 20)
    every = measure(net, population).spectrum.sample_means
    truth_mean = float(every.mean())
    hits = {"exact": 0, "krylov": 0}
    for seed in range(400):
        index = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:12]
        from isometry.spectra import mean_with_error

        low, high = mean_with_error(every[index]).interval
        hits["exact"] += low <= truth_mean <= high
        low, high = measure(net, population[index], method="krylov", seed=seed, progress=False).interval
        hits["krylov"] += low <= truth_mean <= high
    assert 0.92 <= hits["exact"] / 400 <= 0.98
    assert 0.92 <= hits["krylov"] / 400 <= 0.985


class Tall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 500)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sin()


def test_the_smaller_side_is_differentiated() -> None:
    net, x = Tall(), torch.randn(5, 3)
    report = measure(net, x)
    torch.testing.assert_close(
        report.spectrum.values, slow_singular_values(copy.deepcopy(net).double(), x), rtol=1e-5, atol=1e-6
    )
    assert report.cost.products <= 5 * (3 + 2) + 4
    assert any("double vjp" in note for note in report.notes)


def test_memory_running_out_halves_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    original, sizes = spectra.exact, []

    def exact(operator):  # type: ignore[no-untyped-def]
        sizes.append(operator.batch)
        if operator.batch > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(operator)

    net, x = networks.build("mlp-7-relu", seed=0), torch.randn(18, 1, 32, 32)
    expected = measure(net, x).spectrum.values
    monkeypatch.setattr("isometry.measurement.estimators.exact.exact", exact)
    torch.testing.assert_close(measure(net, x).spectrum.values, expected, rtol=1e-5, atol=1e-8)
    assert sizes[:3] == [18, 9, 4]


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_operations_in_place_do_not_spoil_a_replayed_derivative() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.SELU(inplace=True), nn.Linear(64, 64), nn.SELU(inplace=True))
    x = torch.randn(150, 64)
    for options in ({}, {"at": "0"}):
        exact = measure(net, x, method="exact", **options).mean_jsv
        low, high = measure(net, x, method="krylov", rtol=0.02, **options).interval
        assert 0.99 * low < exact < 1.01 * high


def test_studied_samples_have_the_same_values_for_the_same_price() -> None:
    net, x = wide_net(), torch.randn(3, 3, 16, 16)
    function = NetworkFunction(net)
    with function.differentiable():
        subject = prepare(function, Batch.of(x), Options())
        plain = Exact(subject).estimate(Batch.of(x))
        studied = Exact(subject, torch.Generator().manual_seed(0)).estimate(Batch.of(x))
    assert torch.equal(plain.spectrum.values, studied.spectrum.values)
    assert plain.products == studied.products
    assert plain.pilot is None
    assert studied.pilot is not None
    assert torch.allclose(studied.pilot.limit, plain.spectrum.sample_means, rtol=0.15)


def relu_net(outputs: int = 400) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(420, 450), nn.ReLU(), nn.Linear(450, outputs))


def test_the_mean_of_one_sample_is_known_to_three_percent_for_few_products() -> None:
    net, x = relu_net(), torch.randn(4, 420, generator=torch.Generator().manual_seed(0))
    truth = measure(net, x, method="exact", progress=False).sample_means
    held, products = 0, 0
    for seed in range(12):
        sample = seed % 4
        report = measure(net, x[sample : sample + 1], seed=seed, progress=False)
        assert report.estimation_error <= 0.0325
        products += report.cost.products
        held += abs(report.mean_jsv - float(truth[sample])) <= report.estimation_error * report.mean_jsv
    assert held >= 11
    assert products < 12 * 0.7 * 400


def test_few_samples_share_the_error_of_their_probes() -> None:
    net, x = relu_net(), torch.randn(7, 420)
    one, seven = (measure(net, x[:count], method="krylov", progress=False) for count in (1, 7))
    assert seven.estimation_error <= 0.0325
    assert seven.cost.products < 0.9 * 7 * one.cost.products
    truth = measure(net, x, method="exact", progress=False).mean_jsv
    assert abs(seven.mean_jsv / truth - 1) < seven.estimation_error


def test_no_more_products_are_spent_on_few_samples_than_all_values_take() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(140, 140), nn.ReLU())))
    report = measure(net, torch.randn(2, 140), method="krylov", progress=False)
    assert report.cost.products <= 4 + 2 * (140 + 2)


def test_the_error_of_one_sample_is_printed() -> None:
    report = measure(relu_net(), torch.randn(1, 420), progress=False)
    assert "give or take" in str(report)
    assert "one sample: error over inputs unknown" in str(report)
    assert measure(relu_net(20), torch.randn(1, 420), progress=False).estimation_error == 0
