"""Reports: what they print, and that files keep them."""

import json
import math

import pandas as pd
import pytest
import torch

import isometry
from isometry import Report, measure, networks
from isometry.measurement.cost import Cost
from tests.models import wide_net


def test_a_report_survives_json() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32))
    back = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert torch.equal(back.spectrum.values, report.spectrum.values)
    assert back.statistics() == report.statistics()


def test_a_report_prints_the_same_after_json() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32))
    back = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert str(back) == str(report) == repr(report)


def test_a_report_is_a_row_of_a_table() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32))
    back = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    frame = pd.concat([report.to_frame(), back.to_frame()])
    assert list(frame["mean_jsv"]) == [report.mean_jsv] * 2


def test_a_report_is_a_table_in_a_notebook() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32))
    assert "mean JSV" in report._repr_html_()
    assert report._repr_html_().startswith("<table>")


def test_the_error_of_one_sample_is_said_to_be_unknown() -> None:
    assert "one sample: error unknown" in str(measure(networks.build("mlp-7-relu"), torch.randn(1, 1, 32, 32)))


def test_layers_survive_a_dict() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    report = measure(net, torch.randn(4, 1, 32, 32), layers=True)
    assert isinstance(isometry.Report.from_dict(report.to_dict()).layers, pd.DataFrame)


def test_a_report_of_brackets_names_the_parts_of_its_error_and_survives_a_dict() -> None:
    net = wide_net(200)
    x = torch.randn(12, 3, 16, 16)
    stochastic = measure(net, x)
    assert set(stochastic.components) == {"samples", "probes", "calibration", "quadrature"}
    assert "quadrature" in str(stochastic)
    back = isometry.Report.from_dict(stochastic.to_dict())
    assert back.interval == stochastic.interval


def half_singular() -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a ReLU network and inputs of which every second closes one of its three gates."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3))
        net[0].bias.zero_()
    x = torch.rand(8, 3) + 0.5
    x[::2, 0] = -1
    return net, x


def test_one_singular_sample_does_not_hide_the_others() -> None:
    report = measure(*half_singular())
    assert report.singular_samples == 4
    assert math.isinf(report.condition_number)
    regular = measure(half_singular()[0], half_singular()[1][1::2])
    assert regular.median_condition_number == pytest.approx(1)
    assert any("float64" in note for note in report.notes)


def test_values_that_float32_cannot_resolve_are_zero() -> None:
    net = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.diag(torch.tensor([1.0, 0.5, 1e-9])))
    x = torch.randn(4, 3)
    assert measure(net, x).min_jsv == 0
    assert measure(net, x, dtype=torch.float64).min_jsv == pytest.approx(1e-9, rel=1e-3)


def test_every_statistic_has_an_interval() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8)), torch.randn(30, 1, 8, 8))
    row = report.to_frame().iloc[0]
    for name, value in (
        ("std_jsv", "std_jsv"),
        ("condition_number", "condition_number"),
        ("isometry_gap", "isometry_gap"),
    ):
        assert row[f"{name}_low"] < row[value] < row[f"{name}_high"]


def test_the_interval_of_the_standard_deviation_holds() -> None:
    held = 0
    for seed in range(150):
        values = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).abs() + 1
        spectrum = isometry.spectra.Spectrum.of(values)
        low, high = Report(spectrum, "exact", Cost(0, 0, 0.0), "").estimates["std_jsv"].interval
        held += low <= math.sqrt(1 - 2 / math.pi) <= high
    assert held >= 135


def test_bounds_keep_their_signs_in_tables() -> None:
    row = measure(wide_net(200), torch.randn(4, 3, 16, 16), method="krylov").to_frame().iloc[0]
    assert (row["min_jsv_is"], row["max_jsv_is"], row["condition_number_is"]) == ("<=", ">=", ">=")
    assert type(row["min_jsv"]) is not isometry.spectra.Bound


def test_reports_are_standard_json() -> None:
    report = measure(half_singular()[0], half_singular()[1], layers=["0"])
    text = json.dumps(report.to_dict(), allow_nan=False)
    pd.testing.assert_frame_equal(Report.from_dict(json.loads(text)).to_frame(), report.to_frame())


@pytest.mark.parametrize(
    "damage", [{"values": [[1.0, -1.0]]}, {"weights": [[0.9, 0.9]]}, {"cost": {}}, {"method": None, "values": []}]
)
def test_what_is_no_report_is_refused(damage: dict[str, object]) -> None:
    content = measure(torch.nn.Linear(2, 2), torch.randn(1, 2)).to_dict()
    with pytest.raises(ValueError, match=r"Report\.from_dict\(\) got something else.*e\.g\. Report\.from_dict"):
        Report.from_dict({**content, **damage})
