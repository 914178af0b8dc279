"""From every layer to the output: where singular values are lost."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isometry import Report, measure, networks
from isometry.measurement.layers import operator_statistics, select_layers
from isometry.spectra import orthogonal
from tests.architectures import checkpointed
from tests.models import Wired, batch_norm_net, last_state
from tests.references import slow_singular_values


def test_every_layer_to_output_jacobian_is_right() -> None:
    net = batch_norm_net().eval()
    x = torch.randn(3, 3, 8, 8)
    report = measure(net, x, layers=["0", "1", "3", "8"])
    double = copy.deepcopy(net).double()
    assert list(report.layers["layer"]) == ["0", "1", "3", "8"]
    for index, name in enumerate(report.layers["layer"]):
        behind = double[int(name) + 1 :]
        leaf = double[: int(name) + 1](x.double()).detach()
        values = slow_singular_values(behind, leaf) if len(behind) else torch.ones(3, 5).double()
        row = report.layers.iloc[index]
        assert row["mean_jsv"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["condition_number"] == pytest.approx(float((values.amax(1) / values.amin(1)).mean()), rel=1e-3)
        assert row["width"] == leaf[0].numel()
    torch.testing.assert_close(report.spectrum.values, slow_singular_values(double, x), rtol=1e-5, atol=1e-6)
    assert report.cost.products == measure(net, x).cost.products  # from the same backward passes


def test_layers_are_chosen_by_block_depth_or_pattern() -> None:
    net = networks.build("resnet-20")
    blocks = select_layers(net, True)
    assert blocks == ["conv1", "bn1", *[f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)], "linear"]
    assert select_layers(net, 1) == ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    assert select_layers(net, "layer3.*.conv2") == [f"layer3.{b}.conv2" for b in (0, 1, 2)]
    assert select_layers(networks.build("mlp-7-relu"), True) == [f"net.{i}" for i in range(0, 13, 2)]


def test_the_operator_of_a_linear_layer_is_its_weight() -> None:
    linear = nn.Linear(8, 5)
    row = operator_statistics(linear, ())
    values = torch.linalg.svdvals(linear.weight.detach().double())
    assert row["operator"] == "exact"
    assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert row["distance"] == pytest.approx(float(orthogonal.distance(linear.weight.detach())), rel=1e-6)


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        pytest.param(nn.Conv2d(2, 3, 3, 2, 1), (6, 6), id="strided"),
        pytest.param(nn.Conv2d(3, 4, 3, 1, 1, padding_mode="circular"), (6, 6), id="circular"),
        pytest.param(nn.Conv1d(2, 3, 3), (9,), id="1d"),
    ],
)
def test_the_operator_of_a_small_convolution_is_exact(conv: nn.Module, size: tuple[int, ...]) -> None:
    row = operator_statistics(conv, size)
    values = slow_singular_values(copy.deepcopy(conv).double(), torch.randn(1, conv.in_channels, *size))
    assert row["operator"] == "exact"
    assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert row["operator_max"] == pytest.approx(float(values.max()), rel=1e-5)


def test_the_operator_of_a_large_convolution_is_estimated() -> None:
    large = nn.Conv2d(4, 4, 3, padding=1)
    row = operator_statistics(large, (14, 14))
    values = slow_singular_values(copy.deepcopy(large).double(), torch.randn(1, 4, 14, 14))
    assert row["operator"] == "krylov"
    assert row["operator_mean"] == pytest.approx(float(values.mean()), rel=0.08)  # four probes
    assert row["operator_max"] <= float(values.max()) * (1 + 1e-5)
    assert row["operator_min"] >= float(values.min()) * (1 - 1e-5)


def test_a_layer_without_weights_has_no_distance_from_orthogonality() -> None:
    assert math.isnan(operator_statistics(nn.ReLU(), ())["distance"])


def test_layers_inside_a_checkpoint_are_those_of_the_first_pass() -> None:
    inner, head = nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 8)), nn.Linear(8, 5)
    net = Wired(lambda m, x: m.head(checkpoint(m.inner, x, use_reentrant=False)), inner=inner, head=head)
    plain = Wired(lambda m, x: m.head(m.inner(x)), inner=inner, head=head)
    x = torch.randn(4, 10)
    tables = [measure(n, x, layers="*").layers for n in (net, plain)]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0]["mean_jsv"].tolist() == pytest.approx(tables[1]["mean_jsv"].tolist(), rel=1e-5)


def test_outputs_of_any_layout_have_layers() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding="same"))
    table = measure(net, torch.randn(3, 2, 4, 4), layers=True).layers
    assert table is not None
    assert table["mean_jsv"].iloc[-1] == 1
    assert table["operator"].tolist() == ["exact", "exact"]


def test_a_layer_whose_output_is_not_used_is_left_out_and_named() -> None:
    last = nn.LSTM(6, 5, batch_first=True)
    net = Wired(lambda m, x: m.head(m.rnn(x)[1][0][-1]), rnn=last, head=nn.Linear(5, 3))
    report = measure(net, torch.randn(4, 3, 6), layers="*")
    assert report.layers is not None
    assert report.layers["layer"].tolist() == ["head"]
    assert any("without rnn" in note for note in report.notes)


def time_first() -> nn.Module:
    return Wired(lambda m, x: m.head(m.rnn(x.transpose(0, 1))[0][-1]), rnn=nn.LSTM(6, 6), head=nn.Linear(6, 3))


REFUSED = {
    "krylov": (lambda x: measure(nn.Linear(6, 4), x, layers=True, method="krylov"), "layers need every row"),
    "pattern without a match": (lambda x: measure(nn.Linear(6, 4), x, layers="conv*"), r"layers='conv\*', which matches no module"),
    "none": (lambda x: measure(nn.Linear(6, 2), x, layers=None), "layers=None"),  # type: ignore[arg-type]
    "time first": (lambda x: measure(time_first(), x, layers="rnn"), "rnn.*samples must come first"),
    "output not used": (lambda x: measure(last_state(), x, layers="rnn"), "rnn, none of which"),
    "checkpoint": (lambda x: measure(checkpointed(), torch.randn(3, 40), layers=True), "use_reentrant=False"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:None of the inputs have")
def test_layers_that_cannot_be_measured_are_refused(call: Callable[[Tensor], Report], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 3, 6))


@dataclass
class State:
    hidden: Tensor
    count: int = 0


class Answer(dict[str, Any]):
    """A dict of its own kind, as libraries return."""


class Block(nn.Module):
    """x -> x + tanh(W x), returned in a container."""

    def __init__(self, container: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.container = container

    def forward(self, x: Tensor) -> Any:
        return self.container(x + self.inner(x))


class Encoder(nn.Module):
    def __init__(self, container: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Block(container) for _ in range(3)])
        self.read = read

    def forward(self, x: Tensor) -> Answer:
        for block in self.layer:
            x = self.read(block(x)).mul_(1.5)  # changed in place by what follows
        return Answer(last=x)


CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda x: x, lambda result: result),
    "tuple": (lambda x: (x, None), lambda result: result[0]),
    "list after a number": (lambda x: [3, x], lambda result: result[1]),
    "dict": (lambda x: Answer(number=3, hidden=x), lambda result: result["hidden"]),
    "dataclass": (State, lambda result: result.hidden),
    "nested": (lambda x: ({"state": State(x)},), lambda result: result[0]["state"].hidden),
}


def nested(container: str) -> nn.Module:
    torch.manual_seed(0)
    encoder = Encoder(*CONTAINERS[container])
    body = Wired(lambda m, x: m.encoder(m.stem(x))["last"], stem=nn.Linear(4, 6), encoder=encoder)
    return Wired(lambda m, x: m.head(m.body(x)), body=body, head=nn.Linear(6, 3))


@pytest.mark.parametrize("container", CONTAINERS)
def test_blocks_are_found_inside_other_modules_whatever_they_return(container: str) -> None:
    net, x = nested(container), torch.randn(4, 4)
    report = measure(net, x, layers=True)
    assert report.layers is not None
    assert list(report.layers["layer"]) == ["body.stem", *(f"body.encoder.layer.{i}" for i in range(3)), "head"]
    assert not any(note.startswith("without") for note in report.notes)
    plain = measure(nested("tensor"), x, layers=True)
    assert plain.layers is not None
    assert report.layers["mean_jsv"].tolist() == pytest.approx(plain.layers["mean_jsv"].tolist(), rel=1e-6)
    double = copy.deepcopy(net).double()
    leaf = double.body.stem(x.double())
    values = slow_singular_values(lambda z: double.head(double.body.encoder(z)["last"]), leaf.detach())
    assert report.layers["mean_jsv"][0] == pytest.approx(float(values.mean()), rel=1e-5)


@pytest.mark.parametrize("container", CONTAINERS)
def test_derivatives_can_start_at_a_block_whatever_it_returns(container: str) -> None:
    x = torch.randn(4, 4)
    values = [measure(nested(name), x, at="body.encoder.layer.1").spectrum.values for name in (container, "tensor")]
    torch.testing.assert_close(values[0], values[1])


def test_a_list_inside_a_repeated_block_is_part_of_it() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([Block(lambda x: x), Block(lambda x: x)])

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[0](x) + self.experts[1](x)

    body = Wired(lambda m, x: m.layers(x), layers=nn.Sequential(Experts(), Experts()))
    net = Wired(lambda m, x: m.head(m.body(x)), body=body, head=nn.Linear(6, 3))
    assert select_layers(net, True) == ["body.layers.0", "body.layers.1", "head"]


def test_the_worst_layers_are_named() -> None:
    net = nn.Sequential(*[nn.Linear(5, 5, bias=False) for _ in range(4)])
    with torch.no_grad():
        for layer, factor in zip(net, (1, 0.1, 1, 3), strict=True):
            layer.weight.copy_(factor * torch.eye(5))
    text = str(measure(net, torch.randn(3, 5), layers=True))
    assert "worst layers       1 x0.1, 3 x3, 0 x1 (the factor by which each changes the mean JSV)" in text
    assert "worst layers" not in str(measure(net, torch.randn(3, 5)))


def test_the_module_where_derivatives_start_is_no_layer() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 3))
    report = measure(net, layers=True)
    assert report.layers is not None
    assert list(report.layers["layer"]) == ["2", "3"]
    assert not any(note.startswith("without") for note in report.notes)
