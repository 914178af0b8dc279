import copy
import math

import pandas as pd
import pytest
import torch
from conftest import batch_norm_net
from test_models import truth
from torch import Tensor, nn

import isometry
from isometry import compare, measure, networks, plots
from isometry.allocation import allocate
from isometry.layers import chosen_layers, own_operator
from isometry.spectra import orthogonal


def test_every_layer_to_output_jacobian_is_right() -> None:
    net = batch_norm_net().eval()
    x = torch.randn(3, 3, 8, 8)
    report = measure(net, x, layers=["0", "1", "3", "8"])
    double = copy.deepcopy(net).double()
    assert list(report.layers["layer"]) == ["0", "1", "3", "8"]
    for index, name in enumerate(report.layers["layer"]):
        behind = double[int(name) + 1 :]
        leaf = double[: int(name) + 1](x.double()).detach()
        values = truth(behind, leaf) if len(behind) else torch.ones(3, 5).double()
        row = report.layers.iloc[index]
        assert row["mean_jsv"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["condition_number"] == pytest.approx(float((values.amax(1) / values.amin(1)).mean()), rel=1e-3)
        assert row["width"] == leaf[0].numel()
    torch.testing.assert_close(report.spectrum.values, truth(double, x), rtol=1e-5, atol=1e-6)
    assert report.cost.products == measure(net, x).cost.products  # from the same backward passes


def test_layers_are_chosen_by_block_depth_or_pattern() -> None:
    net = networks.build("resnet-20")
    blocks = chosen_layers(net, True)
    assert blocks == ["conv1", "bn1", *[f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)], "linear"]
    assert chosen_layers(net, 1) == ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    assert chosen_layers(net, "layer3.*.conv2") == [f"layer3.{b}.conv2" for b in (0, 1, 2)]
    assert chosen_layers(networks.build("mlp-7-relu"), True) == [f"net.{i}" for i in range(0, 13, 2)]


def test_a_layers_own_operator_is_measured() -> None:
    linear = nn.Linear(8, 5)
    row = own_operator(linear, ())
    values = torch.linalg.svdvals(linear.weight.detach().double())
    assert row["operator"] == "exact"
    assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert row["distance"] == pytest.approx(float(orthogonal.distance(linear.weight.detach())), rel=1e-6)
    for conv, size in (
        (nn.Conv2d(2, 3, 3, 2, 1), (6, 6)),
        (nn.Conv2d(3, 4, 3, 1, 1, padding_mode="circular"), (6, 6)),
        (nn.Conv1d(2, 3, 3), (9,)),
    ):
        row = own_operator(conv, size)
        plain = copy.deepcopy(conv).double()
        plain.bias = None
        plain.requires_grad_(False)
        x = torch.randn(conv.in_channels, *size).double()
        dense = torch.autograd.functional.jacobian(lambda z, plain=plain: plain(z[None]).flatten(), x).reshape(
            -1, x.numel()
        )
        values = torch.linalg.svdvals(dense)
        assert row["operator"] == "exact"
        assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["operator_max"] == pytest.approx(float(values.max()), rel=1e-5)
    large = nn.Conv2d(4, 4, 3, padding=1)
    row = own_operator(large, (14, 14))
    plain = copy.deepcopy(large).double()
    plain.bias = None
    plain.requires_grad_(False)
    x = torch.randn(4, 14, 14).double()
    values = torch.linalg.svdvals(
        torch.autograd.functional.jacobian(lambda z: plain(z[None]).flatten(), x).reshape(-1, x.numel())
    )
    assert row["operator"] == "krylov"
    assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=0.08)  # four probes
    assert row["operator_max"] <= float(values.max()) * (1 + 1e-5)
    assert row["operator_min"] >= float(values.min()) * (1 - 1e-5)
    assert math.isnan(own_operator(nn.ReLU(), ())["distance"])


def test_layers_are_drawn() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    report = measure(net, torch.randn(4, 1, 32, 32), layers=True)
    ax = plots.layers({"dense": report, "other": report})
    assert [t.get_text() for t in ax.get_xticklabels()] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert isinstance(isometry.Report.from_dict(report.to_dict()).layers, pd.DataFrame)
    with pytest.raises(ValueError, match="layers=True"):
        plots.layers(measure(net, torch.randn(4, 1, 32, 32)))


def wide_net(classes: int = 160) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, classes),
    ).eval()  # fmt: skip


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
    assert float(stochastic.min_jsv) >= exact.min_jsv
    assert float(stochastic.max_jsv) <= exact.max_jsv * (1 + 1e-5)
    assert str(stochastic.min_jsv).startswith("<=")
    assert set(stochastic.components) == {"samples", "probes", "quadrature"}
    assert "quadrature" in str(stochastic)
    assert stochastic.spectrum.mean_square == pytest.approx(exact.spectrum.mean_square, rel=0.1)
    back = isometry.Report.from_dict(stochastic.to_dict())
    assert back.interval == stochastic.interval
    ax = plots.spectrum({"exact": exact, "krylov": stochastic})
    assert len(ax.get_legend().get_texts()) == 3


def test_sampling_goes_on_until_rtol_or_the_inputs_end() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    x = torch.randn(300, 1, 32, 32) * torch.linspace(0.1, 3, 300).view(-1, 1, 1, 1)
    loose, tight = measure(net, x, rtol=0.1), measure(net, x, rtol=0.002)
    half = (loose.interval[1] - loose.interval[0]) / 2 / loose.mean_jsv
    assert half <= 0.1
    assert len(loose.spectrum) < 300
    assert any("rtol=0.1 reached after" in note for note in loose.notes)
    assert len(tight.spectrum) == 300
    assert any("rtol=0.002 NOT reached: the inputs ran out after 300 samples" in note for note in tight.notes)
    drawn = measure(net, rtol=0.05)
    assert any("reached" in note for note in drawn.notes)


def test_a_budget_is_kept_and_spent_where_it_shortens_the_interval() -> None:
    net = wide_net()
    x = torch.randn(200, 3, 16, 16)
    for budget in (1500, 6000):
        report = measure(net, x, budget=budget)
        assert report.cost.products <= 1.35 * budget
        assert any("budget" in note for note in report.notes)
    for few_inputs, budget in ((x[:6], 3000), (x[:3], 400), (x, 150)):  # whatever a pilot says, something is measured
        for method in ("auto", "krylov"):
            assert measure(net, few_inputs, budget=budget, method=method).mean_jsv > 0
    prices = {"exact_price": 1000, "probe_price": 48, "budget": 5000}
    # Samples that agree: few of them, all of their values; samples that vary: many of them, one probe each.
    assert allocate(sample_variance=1e-6, probe_variance=1e-2, **prices).method == "exact"
    vary = allocate(sample_variance=0.1, probe_variance=1e-3, **prices)
    assert (vary.method, vary.probes) == ("krylov", 1)
    # With few samples at hand the budget goes into probes.
    few = allocate(sample_variance=1e-4, probe_variance=1e-2, **{**prices, "exact_price": 9000}, available=10)
    assert few.method == "krylov"
    assert few.probes >= 8
    # At ten classes nothing beats all of the values.
    for variance in (1e-6, 0.1):
        small = allocate(sample_variance=variance, probe_variance=1e-2, exact_price=10, probe_price=20, budget=5000)
        assert small.method == "exact"


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


def test_compare_adds_the_oracle_and_pairing_shrinks_the_interval() -> None:
    dense = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(20, 20))
    table = compare({"dense": dense}, oracle=True)
    assert list(table["network"]) == ["dense", "dense + oracle"]
    assert table["mean_jsv"][1] == pytest.approx(1, abs=1e-5)
    relu = networks.build("lenet-5-relu", seed=0)
    other = copy.deepcopy(relu)
    with torch.no_grad():
        other.fc2.weight.mul_(1.1)
    x = torch.randn(60, 1, 32, 32) * torch.linspace(0.2, 2, 60).view(-1, 1, 1, 1)
    table = compare({"a": relu, "b": other}, x, oracle=True)
    assert list(table["network"]) == ["a", "b", "a + OrthP", "b + OrthP"]
    paired = table["difference_high"][1] - table["difference_low"][1]
    alone = sum(table["interval_high"][i] - table["interval_low"][i] for i in (0, 1))
    assert paired < alone / 5
    with pytest.raises(ValueError, match="cannot be paired"):
        compare({"a": relu, "b": nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))}, x, rtol=0.004)


class Tall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 500)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sin()


def test_the_smaller_side_is_differentiated() -> None:
    net, x = Tall(), torch.randn(5, 3)
    report = measure(net, x)
    torch.testing.assert_close(report.spectrum.values, truth(copy.deepcopy(net).double(), x), rtol=1e-5, atol=1e-6)
    assert report.cost.products <= 5 * (3 + 2) + 4
    assert any("double vjp" in note for note in report.notes)


def test_memory_running_out_halves_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    from isometry import survey

    original, sizes = survey.exact, []

    def exact(operator):  # type: ignore[no-untyped-def]
        sizes.append(operator.batch)
        if operator.batch > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(operator)

    net, x = networks.build("mlp-7-relu", seed=0), torch.randn(18, 1, 32, 32)
    expected = measure(net, x).spectrum.values
    monkeypatch.setattr(survey, "exact", exact)
    torch.testing.assert_close(measure(net, x).spectrum.values, expected, rtol=1e-5, atol=1e-8)
    assert sizes[:3] == [18, 9, 4]
