import copy
import json
import math
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import batch_norm_net
from test_jacobian import NETS, slow_jacobians
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import isometry
from isometry import Report, compare, measure, networks


@pytest.mark.parametrize("name", NETS)
def test_the_spectrum_is_that_of_the_slow_jacobian(name: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build()
    x = torch.randn(5, *shape)
    truth = torch.linalg.svdvals(slow_jacobians(copy.deepcopy(net), x))
    report = measure(net, x)
    torch.testing.assert_close(report.spectrum.values, truth, rtol=1e-5, atol=1e-6 * float(truth.max()))
    assert report.mean_jsv == pytest.approx(float(truth.mean()), rel=1e-5)
    means = truth.mean(1)
    assert report.sem == pytest.approx(float(means.std()) / math.sqrt(5), rel=1e-3, abs=1e-9)
    assert report.interval[0] <= report.mean_jsv <= report.interval[1]


def nets_in_every_state() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    mixed = batch_norm_net().train()
    mixed[1].eval()
    frozen_part = networks.build("lenet-5-relu", seed=0)
    frozen_part.conv1.requires_grad_(False)
    dropout = nn.Sequential(nn.Linear(8, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, 4)).train()
    return {
        "mlp": (networks.build("mlp-7-relu", seed=0).train(), (1, 32, 32)),
        "frozen": (frozen_part, (1, 32, 32)),
        "batchnorm": (mixed, (3, 8, 8)),
        "dropout": (dropout, (8,)),
    }


@pytest.mark.parametrize("name", ["mlp", "frozen", "batchnorm", "dropout"])
def test_measure_leaves_everything_as_it_was(name: str) -> None:
    net, shape = nets_in_every_state()[name]
    x = torch.randn(4, *shape)
    first = next(p for p in net.parameters() if p.requires_grad)
    first.grad = torch.ones_like(first)
    before = (
        {n: t.clone() for n, t in net.state_dict().items()},
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        torch.get_rng_state(),
        x.clone(),
    )
    report = measure(net, x)
    assert all(torch.equal(t, before[0][n]) for n, t in net.state_dict().items())
    assert [m.training for m in net.modules()] == before[1]
    assert [p.requires_grad for p in net.parameters()] == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert torch.equal(x, before[4])
    assert not x.requires_grad
    assert [p for p in net.parameters() if p.grad is not None] == [first]
    assert torch.equal(first.grad, torch.ones_like(first))
    assert measure(net, x).mean_jsv == report.mean_jsv
    assert measure(net.eval(), x).mean_jsv == report.mean_jsv


def test_a_failing_forward_pass_leaves_the_model_as_it_was() -> None:
    net = batch_norm_net().train()
    with pytest.raises(ValueError, match="does not accept"):
        measure(net, torch.randn(2, 5, 8, 8))
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_no_grad_and_inference_around_the_call_do_not_matter() -> None:
    net, x = networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        inside = measure(net, x).mean_jsv
    assert inside == measure(net, x).mean_jsv > 0


@pytest.mark.parametrize("name", [name for name in networks.names() if "resnet" not in name and "vgg" not in name])
def test_inputs_are_guessed_and_said_so(name: str) -> None:
    report = measure(networks.build(name, seed=0))
    assert len(report.spectrum) == 64
    assert "64 standard normal inputs of shape (1, 32, 32), as none were given" in str(report)


def test_guessing_works_from_a_first_linear_layer() -> None:
    assert measure(nn.Sequential(nn.Linear(7, 3))).spectrum.values.shape == (64, 3)


def test_every_kind_of_inputs_gives_the_same_numbers(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8))
    x, y = digits.test
    expected = measure(net, x).spectrum.values
    kinds: list[Any] = [digits, digits.test, (x, y), list(x.split(100)), DataLoader(TensorDataset(x, y), 64)]
    for kind in kinds:
        torch.testing.assert_close(measure(net, kind).spectrum.values, expected)


def test_measuring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = batch_norm_net(), torch.randn(7, 3, 8, 8)
    whole = measure(net, x).spectrum.values
    monkeypatch.setattr("isometry.survey._AT_ONCE", 2)
    torch.testing.assert_close(measure(net, x).spectrum.values, whole, rtol=1e-6, atol=1e-9)


def test_the_cost_is_one_forward_and_r_products_a_sample() -> None:
    report = measure(networks.build("lenet-5-relu", seed=0), torch.randn(8, 1, 32, 32))
    assert report.cost.products == 8 * 10 + 4  # and four for the test that samples are independent
    assert report.cost.forwards == 8 + 6  # and the checks at two samples


def test_a_report_survives_json_and_prints() -> None:
    report = measure(networks.build("mlp-7-relu", seed=0), torch.randn(3, 1, 32, 32))
    back = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert torch.equal(back.spectrum.values, report.spectrum.values)
    assert back.statistics() == report.statistics()
    assert str(back) == str(report) == repr(report)
    frame = pd.concat([report.to_frame(), back.to_frame()])
    assert list(frame["mean_jsv"]) == [report.mean_jsv] * 2
    assert "mean JSV" in report._repr_html_()
    assert report._repr_html_().startswith("<table>")
    assert "one sample: error unknown" in str(measure(networks.build("mlp-7-relu"), torch.randn(1, 1, 32, 32)))


def test_a_constant_network_has_jsvs_of_zero() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3)

    for net in (Constant(), nn.Sequential(nn.Linear(4, 3), nn.Hardtanh(5, 6))):
        report = measure(net, torch.randn(2, 4))
        assert (report.mean_jsv, report.condition_number) == (0, math.inf)


class Mixes(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(6, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.first(x))
        return out[0] if isinstance(out, tuple) else out


class BatchSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm1d(6, track_running_stats=False), r"layer \(BatchNorm1d\)"),
        (BatchSoftmax(), r"layer \(BatchSoftmax\)"),
    ],
)
def test_a_batch_coupled_net_is_refused_by_name(layer: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=named + " mixes the samples"):
        measure(Mixes(layer), torch.randn(8, 6))
    assert measure(Mixes(nn.BatchNorm1d(6)).train(), torch.randn(8, 6)).mean_jsv > 0


def test_nan_names_the_first_module_to_produce_it() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"output of conv2 \(Conv2d\), the first to"):
        measure(net, torch.randn(2, 1, 32, 32))

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()

    with pytest.raises(ValueError, match="no derivative at these inputs"):
        measure(Root(), torch.zeros(2, 3))


class Tells(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(x)


MLP = networks.build("mlp-7-relu", seed=0)
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
BAD = [
    (lambda: measure(CONV), ValueError, r"measure\(\) cannot infer an input shape from 0 \(Conv2d\)\. Pass inputs, e\.g\. measure\(model, torch\.randn\(64, 3, 32, 32\)\)\."),
    (lambda: measure(nn.ReLU()), ValueError, "from a model without parameters"),
    (lambda: measure(MLP, torch.randn(2, 3)), ValueError, r"shape \(2, 3\), dtype torch\.float32, which the model does not accept"),
    (lambda: measure(MLP, torch.randn(0, 1, 32, 32)), ValueError, "non-empty batch"),
    (lambda: measure(MLP, torch.randn(1024)), ValueError, r"non-empty batch \[B, \.\.\.\]"),
    (lambda: measure(MLP, torch.zeros(2, 1, 32, 32, dtype=torch.int64)), TypeError, r"dtype torch\.int64, which have no derivative"),
    (lambda: measure(MLP, torch.full((2, 1, 32, 32), math.nan)), ValueError, "2048 NaN or infinite entries"),
    (lambda: measure(MLP, []), ValueError, "the iterable is empty"),
    (lambda: measure(MLP, 3), TypeError, "inputs of type int"),
    (lambda: measure(MLP, ["x"]), TypeError, "batch of type str"),
    (lambda: measure(MLP, method="svd"), ValueError, r"method='svd'; it knows"),
    (lambda: measure(Tells(lambda x: {"y": x}), torch.randn(2, 3)), TypeError, r"returns a dict with the keys 'y'\. Say which part is meant, e\.g\. measure\(model, inputs, output='y'\)"),
    (lambda: measure(Tells(lambda x: x.argmax(1)), torch.randn(2, 3)), TypeError, r"output is torch\.int64"),
    (lambda: measure(Tells(lambda x: x.sum()), torch.randn(2, 3)), ValueError, r"outputs of shape \(\) for 2 inputs"),
    (lambda: compare({}), ValueError, "compare\\(\\) got no networks"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_refused_with_the_call_that_works(case: int) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def test_compare_pairs_the_samples() -> None:
    one = networks.build("mlp-7-relu", seed=0)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.net[-1].weight.mul_(1.5)
    x = torch.randn(40, 1, 32, 32)
    table = compare({"one": one, "other": other}, iter(x.split(10)))
    assert list(table["network"]) == ["one", "other"]
    assert table["mean_jsv"][1] == pytest.approx(1.5 * table["mean_jsv"][0], rel=1e-5)
    assert table["difference"][0] == 0
    paired = table["difference_high"][1] - table["difference_low"][1]
    assert paired < table["interval_high"][1] - table["interval_low"][1]
    assert table["difference_low"][1] < table["mean_jsv"][1] - table["mean_jsv"][0] < table["difference_high"][1]
