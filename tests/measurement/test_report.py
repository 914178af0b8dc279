"""Reports: what they print, and that files keep them."""

import json

import pandas as pd
import torch

import isometry
from isometry import Report, measure, networks
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
    assert set(stochastic.components) == {"samples", "probes", "quadrature"}
    assert "quadrature" in str(stochastic)
    back = isometry.Report.from_dict(stochastic.to_dict())
    assert back.interval == stochastic.interval
