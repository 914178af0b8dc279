"""Ratios to the dense network: the same samples, paired intervals, a verdict in words."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, Report, compare, measure, networks, prune
from isometry.measurement.ratios import paired_ratio
from tests.models import digits_mlp, wide_net
from tests.references import slow_singular_values


def scaled(net: nn.Module, factor: float, layer: str) -> nn.Module:
    """Return a copy in which the weight of one layer is multiplied by a factor."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_submodule(layer).weight.mul_(factor)
    return other


def tanh_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


def test_the_ratio_is_that_of_the_same_samples_as_slow_singular_values_tell() -> None:
    one, dense, x = tanh_net(1), tanh_net(2), torch.randn(7, 6)
    report = measure(one, x, reference=dense)
    m, d = (slow_singular_values(copy.deepcopy(net).double(), x).mean(1) for net in (one, dense))
    torch.testing.assert_close(report.sample_ratios, m / d, rtol=1e-5, atol=0)
    assert report.ratio == pytest.approx(float(m.mean() / d.mean()), rel=1e-5)
    assert report.estimates["sample_ratio"].value == pytest.approx(float((m / d).mean()), rel=1e-5)


def test_a_factor_common_to_all_samples_has_no_error() -> None:
    dense, x = tanh_net(), torch.randn(20, 6) * torch.linspace(0.1, 3, 20)[:, None]
    report = measure(scaled(dense, 0.3, "4"), x, reference=dense)
    assert report.interval[1] / report.interval[0] > 1.2
    assert report.ratio_interval == pytest.approx((0.3, 0.3), rel=1e-5)
    assert report.estimates["sample_ratio"].interval == pytest.approx((0.3, 0.3), rel=1e-5)


def test_paired_intervals_hold_the_ratio_of_the_population() -> None:
    g = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        dense = torch.exp(0.3 * torch.randn(16, generator=g, dtype=torch.float64))
        own = 0.2 * dense * (1 + 0.1 * torch.randn(16, generator=g, dtype=torch.float64))
        low, high = paired_ratio(own, dense).interval
        held += low <= 0.2 <= high
    assert held >= 275  # 95 % of 300 is 285, with a standard deviation of 4


def test_brackets_hold_the_ratio_of_exact_values() -> None:
    dense, x = wide_net(200), torch.randn(6, 3, 16, 16)
    other = scaled(dense, 0.5, "3")
    exact = measure(other, x, reference=dense, method="exact").ratio
    report = measure(other, x, reference=dense, method="krylov")
    assert report.reference is not None
    assert report.reference.brackets is not None
    assert report.ratio_interval[0] <= exact <= report.ratio_interval[1]
    assert report.ratio == pytest.approx(exact, rel=0.06)  # two probes for each of six samples


def test_layers_have_ratios_although_widths_differ() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Linear(12, 10, bias=False))
    narrow = nn.Sequential(nn.Linear(8, 5, bias=False), nn.Linear(5, 10, bias=False))
    report = measure(narrow, torch.randn(5, 8), reference=dense, layers=True)
    assert report.layers is not None
    # Of the maps from layers, all singular values: of the narrow one there are 5, of the dense one 10.
    sums = [float(torch.linalg.svdvals(net[1].weight.detach().double()).sum()) for net in (narrow, dense)]
    assert report.layers["ratio"].tolist() == pytest.approx([sums[0] / sums[1], 1], rel=1e-5)
    assert (report.layers["ratio_low"] <= report.layers["ratio"] + 1e-9).all()


def test_layers_that_the_reference_lacks_have_no_ratio() -> None:
    dense = tanh_net()
    longer = nn.Sequential(*copy.deepcopy(dense), nn.Tanh(), nn.Linear(4, 4))
    report = measure(longer, torch.randn(5, 6), reference=dense, layers=True)
    assert report.layers is not None
    assert report.layers["ratio"].isna().tolist() == [False, False, False, True]


def test_the_verdict_names_the_layer_that_loses_most() -> None:
    dense, x = tanh_net(), torch.randn(40, 6)
    report = measure(scaled(dense, 0.1, "2"), x, reference=dense, layers=True)
    assert report.verdict.startswith("0.1")
    assert report.verdict.endswith("of the dense network's: trainability lost, most of it at 2")
    assert "worst layers       2 x0.1" in str(report)
    assert report.verdict in str(report)


def verdict(factor: float, count: int = 40, spread: float = 0.0) -> str:
    """Return the verdict on a map whose derivative is about `factor` times that of the identity."""

    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return factor * (1 + spread * torch.sin(9 * x.detach().sum(1, keepdim=True))) * x

    g = torch.Generator().manual_seed(0)
    return measure(Map(), torch.randn(count, 3, generator=g), reference=nn.Identity()).verdict


def test_verdicts_follow_the_thresholds() -> None:
    assert verdict(0.23) == "0.23 of the dense network's: trainability lost"
    assert verdict(0.26) == "0.26 of the dense network's: trainability reduced"
    assert verdict(0.51) == "0.51 of the dense network's: trainability preserved"
    assert verdict(3) == "3 times the dense network's: JSVs raised"
    assert verdict(5) == "5 times the dense network's: JSVs far too large"
    assert (
        verdict(1.0)
        == "1 of the dense network's: every JSV is near 1, dynamical isometry, which is the yardstick of linear networks"
    )
    assert verdict(0.0) == "0 of the dense network's: trainability lost"


def test_an_interval_that_holds_a_threshold_decides_nothing() -> None:
    text = verdict(0.5, 12, 0.3)
    assert text.endswith("trainability reduced or trainability preserved, not decided with these 12 inputs")
    assert verdict(0.2, 1) == "0.2 of the dense network's: not decided with one input"


def test_a_reference_without_derivatives_has_no_verdict() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    assert (
        measure(nn.Identity(), torch.randn(4, 3), reference=Constant()).verdict
        == "none: the dense network's JSVs are 0"
    )


def test_a_report_without_a_reference_has_no_ratio() -> None:
    report = measure(tanh_net(), torch.randn(4, 6))
    assert (report.ratio, report.ratio_interval, report.sample_ratios, report.verdict) == (None,) * 4
    assert "ratio" not in report.to_frame()
    assert "ratio" not in report.estimates


def test_reports_with_a_reference_are_standard_json(digits: isometry.data.Data) -> None:
    dense = digits_mlp()
    report = measure(prune(dense, L1(), 0.5).model, digits.test.inputs[:9], reference=dense, layers=True)
    again = Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert str(again) == str(report)
    pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
    row = report.to_frame().iloc[0]
    assert (row["ratio"], row["ratio_high"], row["verdict"]) == (
        report.ratio,
        report.ratio_interval[1],
        report.verdict,
    )


def test_streams_and_tolerances_give_both_networks_the_same_samples() -> None:
    def stream() -> Iterator[Tensor]:
        g = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(50, 6, generator=g)

    dense = tanh_net()
    other = scaled(dense, 0.3, "4")
    for options in ({}, {"rtol": 0.1}, {"budget": 300}):
        report = measure(other, stream(), reference=dense, **options)
        assert report.reference is not None
        assert len(report.reference.spectrum) == len(report.spectrum)
        assert report.ratio_interval == pytest.approx((0.3, 0.3), rel=1e-5)


def test_a_reference_of_another_precision_is_measured() -> None:
    dense, x = tanh_net(), torch.randn(8, 6)
    report = measure(copy.deepcopy(dense).bfloat16(), x, reference=dense.double())
    assert report.ratio == pytest.approx(1, rel=0.02)


def test_a_network_of_tokens_is_compared_with_its_reference() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(64, 3))
    assert measure(scaled(dense, 0.5, "2"), reference=dense).ratio == pytest.approx(0.5, rel=1e-5)


def test_measuring_leaves_the_reference_alone() -> None:
    dense = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).train()
    state = copy.deepcopy(dense.state_dict())
    measure(tanh_net(), torch.randn(5, 6), reference=dense)
    assert all(module.training for module in dense.modules())
    assert all(p.requires_grad for p in dense.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())


X = torch.randn(5, 6)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a report": (lambda: measure(tanh_net(), X, reference=measure(tanh_net(), X)), TypeError, r"measure\(\) got reference= a Report; it takes the dense network itself, .* e\.g\. measure\(pruned, x, reference=dense\)"),  # type: ignore[arg-type]
    "other outputs": (lambda: measure(tanh_net(), X, reference=nn.Linear(6, 3)), ValueError, r"measure\(\) got a reference with 3 outputs for a network with 4; .* measure\(pruned, x, reference=dense\)"),
    "other inputs": (lambda: measure(tanh_net(), X, reference=nn.Linear(7, 4)), ValueError, r"measure\(\) cannot measure the reference: got inputs of shape \(2, 6\), .* which the model does not accept"),
    "coupled samples": (lambda: measure(tanh_net(), X, reference=nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))), ValueError, r"cannot measure the reference: found that 1 \(BatchNorm1d\) mixes"),
    "no such module": (lambda: measure(tanh_net(), X, reference=nn.Linear(6, 4), at="2"), ValueError, r"cannot measure the reference: got at='2' for a model without modules"),
    "no inputs": (lambda: measure(tanh_net(), [], reference=tanh_net()), ValueError, "the iterable is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_references_are_refused_with_the_call_that_works(
    call: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_comparisons_have_ratios_and_verdicts() -> None:
    dense = networks.build("mlp-7-relu", seed=0, input_shape=(6,), widths=(8, 7))
    weaker = scaled(dense, 0.1, "net.2")
    x = torch.randn(30, 6)
    table = compare({"dense": dense, "weaker": weaker, "same": dense}, x, layers=True)
    assert table["verdict"].tolist()[::2] == ["the reference", "1 of the dense network's: trainability preserved"]
    report = measure(weaker, x, reference=dense, layers=True)
    assert table["verdict"][1] == report.verdict
    assert report.verdict.endswith("most of it at net.2")
    assert table["ratio"][1] == pytest.approx(report.ratio)
    assert table["ratio_low"][1] < report.ratio_interval[0]  # all intervals together hold at 95 %
    assert report.layers is not None
    assert table["ratio at net.2"][1] == pytest.approx(report.layers["ratio"][1])


def test_comparisons_read_an_endless_stream_once() -> None:
    def stream() -> Iterator[Any]:
        while True:
            yield torch.randn(100, 6), torch.zeros(100)

    table = compare({"a": tanh_net(), "same": tanh_net()}, stream())
    assert table["samples"].tolist() == [1100, 1100]
    assert table["ratio"].tolist() == [1, 1]
