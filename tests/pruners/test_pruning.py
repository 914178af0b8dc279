"""prune: from a network, a pruner and a ratio to the pruned network."""

import copy
import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, TPP, networks, prune
from isometry.surgery import graph, trace
from tests.models import HardCoded


def test_the_model_given_stays_as_it_was(dense: nn.Module, digits: isometry.data.Data) -> None:
    before = copy.deepcopy(dense.state_dict())
    dense.train()
    prune(dense, TPP(delta=0.05, interval=2, stabilize=60, zero_out=5, batch_size=64), 0.5, data=digits)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert dense.training
    assert all(p.grad is None or math.isfinite(float(p.grad.sum())) for p in dense.parameters())


MLP = networks.build("mlp-7-relu", seed=0)
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x))


BAD = {
    "ratio of one": (lambda: prune(MLP, L1(), 1.0), "ratio 1.0; it is the fraction of units removed, at least 0 and below 1"),
    "negative ratio": (lambda: prune(MLP, L1(), -0.1), "ratio -0.1"),
    "ratio nan": (lambda: prune(MLP, L1(), float("nan")), "ratio nan"),
    "no unit kept": (lambda: prune(MLP, L1(), 0.996), r"leave none of its 100 units\. At most 99 can be removed: ratio=0\.99"),
    "pattern without a match": (lambda: prune(MLP, L1(), {"conv*": 0.5}), r"pattern 'conv\*', which matches none of the layers"),
    "output layer": (lambda: prune(MLP, L1(), {"net.12": 0.5}), "net.12 matches, but its units are outputs of the network"),
    "unknown layer": (lambda: prune(MLP, L1(), 0.5, layers=["x"]), "pattern 'x'"),
    "two ratios for one group": (lambda: prune(Tied(), L1(), {"a": 0.5, "b": 0.2}), r"ratio 0\.2 for b and 0\.5 for a, but their units can only be removed together"),
    "no data": (lambda: prune(MLP, TPP(), 0.5), r"TPP trains before it removes and got no data\. .* prune\(model, isometry\.TPP\(\), 0\.8, data="),
    "nothing to prune": (lambda: prune(nn.Sequential(nn.Linear(4, 2)), L1(), 0.5), "found nothing to prune .0: its units are outputs"),
    "no inputs": (lambda: prune(nn.Sequential(CONV, nn.Linear(5, 2)), L1(), 0.5), r"prune\(\) cannot infer an input shape from 0\.0 \(Conv2d\): none of .*\. Pass inputs of the shape it was built for, e\.g\. prune\(model, pruner, ratio, inputs=torch\.randn\(64, \*shape\)\)"),
    "too few steps": (lambda: prune(MLP, TPP(stabilize=300), 0.5, data=(torch.randn(4, 1, 32, 32), torch.zeros(4).long())), "zeroing layer after layer every 100 steps takes 600"),
    "inputs of another shape": (lambda: prune(CONV, L1(), 0.5, inputs=torch.randn(2, 4, 8, 8)), r"\(2, 4, 8, 8\).*e.g."),
    "empty inputs": (lambda: prune(CONV, L1(), 0.5, inputs=torch.empty(0, 3, 8, 8)), r"\(0, 3, 8, 8\).*e.g."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_the_call_that_works(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_pruner_by_name_is_refused() -> None:
    with pytest.raises(TypeError, match="it takes a Pruner"):
        prune(MLP, "l1", 0.5)


def test_a_ratio_that_keeps_no_unit_is_refused_before_training(digits: isometry.data.Data, monkeypatch) -> None:
    net = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    monkeypatch.setattr("isometry.pruners.pruner.train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="would leave none of its 32 units"):
        prune(net, isometry.Slimming(scope="layer"), 0.99, data=digits)


def test_a_network_without_scales_is_refused_before_training(monkeypatch) -> None:
    monkeypatch.setattr("isometry.pruners.pruner.train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="The network has none with scales"):
        prune(
            networks.build("lenet-5-relu", seed=0),
            isometry.Slimming(),
            0.5,
            data=(torch.randn(4, 1, 32, 32), torch.arange(4)),
        )


def test_skipping_every_layer_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("isometry.pruners.pruner.train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"leave no layer to prune of net\.0"):
        prune(networks.build("mlp-7-relu"), L1(), 0.5, skip="*")


@pytest.mark.parametrize("inputs", [[torch.randn(2, 1, 8, 8)], "batch", (3,)], ids=["list", "text", "numbers"])
def test_inputs_without_tensors_are_refused(inputs: object) -> None:
    net = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    with pytest.raises(
        TypeError, match=r"it takes a tensor \[B, \.\.\.\], or a tuple or dict of all of the network's arguments"
    ):
        prune(net, L1(), 0.5, inputs=inputs)


def test_the_published_choice_of_layers_in_resnet_56() -> None:
    net = networks.build("resnet-56", seed=0)
    for ratio, widths, parameters in ((0.5, (8, 16, 32), 0.428e6), (0.7, (4, 9, 19), None), (0.9, (1, 3, 6), None)):
        result = prune(net, L1(), {"layer*.conv1": ratio})
        kept = tuple(getattr(result.model, f"layer{s}")[1].conv1.out_channels for s in (1, 2, 3))
        assert kept == widths
        if parameters:
            assert result.after.parameters == pytest.approx(parameters, rel=2e-3)


def test_the_published_choice_of_layers_in_resnet_50() -> None:
    deep = networks.build("resnet-50", 1000, seed=0, input_shape=(3, 64, 64))
    ratios = {"layer[123].*.conv[12]": 0.6, "layer4.*.conv[12]": 0.21}
    result = prune(deep, L1(), ratios)
    assert result.before.flops / result.after.flops == pytest.approx(2.31, abs=0.06)


def test_the_published_choice_of_layers_in_vgg() -> None:
    """All convolutions but the first; counted again from Wang & Fu 2023: 74.87 % of the parameters are removed at ratio 0.5."""
    net = networks.build("vgg-19", 100, seed=0)
    result = prune(net, L1(), {"features.*": 0.5}, skip="features.0")
    assert "features.0" not in result.plan.removed
    assert len(result.plan.removed) == 15
    assert 1 - result.after.parameters / result.before.parameters == pytest.approx(0.7487, abs=5e-4)


def test_vgg_16_loses_half_of_its_filters() -> None:
    result = prune(networks.build("vgg-16", seed=0), L1(), 0.5)
    assert result.before.flops == 2 * 313_201_664
    assert result.after.parameters / 1e6 == pytest.approx(3.69, abs=0.01)  # published for uniform pruning
    assert result.after.flops / 2e6 == pytest.approx(78.7, abs=0.2)
    assert [len(units) for units in result.plan.removed.values()] == [32] * 2 + [64] * 2 + [128] * 3 + [256] * 6


def test_pruning_a_deep_network_takes_little_more_than_two_traces() -> None:
    net = networks.build("resnet-56", seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    ratios = []
    for _ in range(3):
        start = time.perf_counter()
        trace(copy.deepcopy(net), x)
        floor = time.perf_counter() - start
        start = time.perf_counter()
        prune(net, L1(), 0.5, inputs=x)
        ratios.append((time.perf_counter() - start) / floor)
    assert min(ratios) < 12


def test_pruning_traces_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    original = graph._propagate
    monkeypatch.setattr(graph, "_propagate", lambda *a: traces.append(a) or original(*a))
    prune(networks.build("lenet-5-relu", seed=0), L1(), 0.5)
    assert len(traces) == 1


def test_the_pruned_network_carries_no_gradients_of_its_training(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6))
    pruner = isometry.GReg(delta=0.5, interval=1, stabilize=4, batch_size=64)
    assert all(p.grad is None for p in prune(net, pruner, 0.5, data=digits).model.parameters())


def test_the_warning_points_to_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="leaves alone what cannot be cut exactly: The units of one") as record:
        prune(HardCoded(), L1(), 0.5, inputs=torch.randn(2, 3, 5, 5))
    assert record[0].filename == __file__
