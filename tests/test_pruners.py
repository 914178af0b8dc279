import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import batch_norm_net
from torch import Tensor, nn

import isometry
from isometry import L1, TPP, GReg, Random, evaluate, measure, networks, prune, train
from isometry.data import Split
from isometry.networks import size
from isometry.pruners import Run
from isometry.pruners.growing import GrowingPenalty
from isometry.pruners.tpp import gram_gradient, gram_penalty
from isometry.surgery import trace

SHORT = {"delta": 0.05, "interval": 2, "stabilise": 60, "zero_out": 5, "batch_size": 64}


@pytest.fixture(scope="module")
def dense(request: pytest.FixtureRequest) -> nn.Module:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8), widths=(30,) * 3)
    list(train(net, isometry.data.load("digits"), lr=0.01, epochs=30, batch_size=32))
    return net


def slow_gram(w: Tensor, leaving: set[int]) -> float:
    """Eq. 3 entry by entry, in Python floats."""
    total, n = 0.0, len(w)
    for i in range(n):
        for j in range(n):
            if i in leaving or j in leaving:
                total += sum(float(a) * float(b) for a, b in zip(w[i], w[j], strict=True)) ** 2
    return total / n**2


def test_the_gram_penalty_and_its_gradient_match_the_equation() -> None:
    w = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    leaving = torch.tensor([0, 1, 0, 1, 1]).double()
    value = gram_penalty(w, leaving)
    assert value.item() == pytest.approx(slow_gram(w.detach(), {1, 3, 4}), rel=1e-13)
    (autograd,) = torch.autograd.grad(value, w)
    found = gram_gradient(w.detach(), torch.tensor([1, 3, 4]), torch.tensor([0, 2]))
    torch.testing.assert_close(found, autograd, rtol=1e-13, atol=1e-13)
    step = 1e-6
    for i, j in ((0, 2), (1, 0), (4, 6)):
        moved = [w.detach().clone() for _ in range(2)]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        slope = (slow_gram(moved[0], {1, 3, 4}) - slow_gram(moved[1], {1, 3, 4})) / (2 * step)
        assert float(autograd[i, j]) == pytest.approx(slope, rel=1e-6)


def test_tpp_follows_an_independent_slow_training(digits: isometry.data.Data) -> None:
    """Every term by autograd on an explicit loss, in float64, plain SGD by hand."""
    x, y = digits.train.inputs[:96].double(), digits.train.targets[:96]
    net = networks.build("mlp-7-linear", seed=1, input_shape=(1, 8, 8), widths=(8, 6)).double()
    reference = copy.deepcopy(net)
    settings = {"delta": 0.25, "interval": 3, "stabilise": 8, "zero_out": 2, "batch_size": 32}
    result = prune(net, TPP(**settings, gram=2.0, lr=0.01, weight_decay=1e-3), 0.5, data=(x, y), seed=4)
    layers = [reference.net[0], reference.net[2]]
    leaving = [layer.weight.detach().abs().mean(1).argsort()[: len(layer.weight) // 2] for layer in layers]
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    order, step, switch = torch.Generator().manual_seed(4), 0, 12
    while step < switch + 8:
        for batch in torch.randperm(96, generator=order).split(32):
            if step >= switch + 8:
                break
            strength = min(0.25 * (step // 3), 1.0)
            loss = nn.functional.cross_entropy(reference(x[batch]), y[batch])
            for layer, gone in zip(layers, leaving, strict=True):
                gram = layer.weight @ layer.weight.T
                penalised = torch.zeros_like(gram)
                penalised[gone] = 1
                penalised[:, gone] = 1
                loss = loss + 2.0 * strength * (gram * penalised).square().mean()
                loss = loss + strength / 2 * (layer.weight[gone].square().sum() + layer.bias[gone].square().sum())
            grads = torch.autograd.grad(loss, list(reference.parameters()))
            with torch.no_grad():
                for p, g, v in zip(reference.parameters(), grads, velocity, strict=True):
                    v.mul_(0.9).add_(g + 1e-3 * p)
                    p.sub_(0.01 * v)
                for index, (layer, gone) in enumerate(zip(layers, leaving, strict=True)):
                    if step + 1 - switch >= 2 * (index + 1):
                        layer.weight[gone] = 0
                        layer.bias[gone] = 0
            step += 1
    kept = [
        sorted(set(range(len(layer.weight))) - set(gone.tolist())) for layer, gone in zip(layers, leaving, strict=True)
    ]
    torch.testing.assert_close(result.model.net[0].weight, layers[0].weight[kept[0]], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.model.net[2].weight, layers[1].weight[kept[1]][:, kept[0]], rtol=1e-9, atol=1e-11)
    assert result.history["steps"].iloc[-1] == 20
    assert list(result.history["phase"].unique()) == ["grow", "stabilise"]


def test_tpp_without_gram_is_greg_exactly(dense: nn.Module, digits: isometry.data.Data) -> None:
    same = {**SHORT, "interval": 10, "zero_out": None, "magnitude_ratio": 1.3}
    greg = prune(dense, GReg(**same), 0.5, data=digits)
    tpp = prune(dense, TPP(**same, gram=0.0, biases=False, norms=False), 0.5, data=digits)
    for one, other in zip(greg.model.state_dict().values(), tpp.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    pd.testing.assert_frame_equal(greg.history.drop(columns="seconds"), tpp.history.drop(columns="seconds"))
    assert greg.history["strength"].max() < 1  # the magnitude ratio ended the growth


def test_tpp_keeps_what_one_shot_pruning_loses(dense: nn.Module, digits: isometry.data.Data) -> None:
    grown = TPP(delta=5e-3, interval=5, stabilise=300, zero_out=50, batch_size=64)
    l1, tpp = prune(dense, L1(), 0.7), prune(dense, grown, 0.7, data=digits)
    assert tpp.plan == l1.plan
    assert evaluate(tpp.model, digits.validation).accuracy > evaluate(l1.model, digits.validation).accuracy + 0.2
    assert measure(tpp.model, digits.validation).mean_jsv > 3 * measure(l1.model, digits.validation).mean_jsv


def test_tpp_shrinks_the_batchnorm_that_follows_and_works_without_one(digits: isometry.data.Data) -> None:
    net = batch_norm_net()
    data = Split(torch.randn(128, 3, 8, 8), torch.arange(128) % 5)
    seen: dict[str, Any] = {}

    class Watched(TPP):
        def recede(self, run: Any, chosen: Any) -> None:
            super().recede(run, chosen)
            seen["norm"], seen["units"] = run.model[1].requires_grad_(False), chosen[0][1]

    prune(net, Watched(**SHORT), {"0": 0.5}, data=data)
    norm, units = seen["norm"], list(seen["units"])
    assert float(norm.weight[units].abs().max()) == float(norm.bias[units].abs().max()) == 0
    kept = [u for u in range(8) if u not in units]
    assert float(norm.weight[kept].abs().min()) > 0


def test_an_interrupted_pruning_goes_on_bit_for_bit(
    dense: nn.Module, digits: isometry.data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = GReg(**SHORT, magnitude_ratio=50.0)
    whole = prune(dense, pruner, 0.5, data=digits)
    original = GrowingPenalty.gradients

    def killed(self: GrowingPenalty, step: int) -> None:
        if step == 50:
            raise KeyboardInterrupt
        original(self, step)

    file = tmp_path / "pruning.safetensors"
    monkeypatch.setattr(GrowingPenalty, "gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(dense, pruner, 0.5, data=digits, checkpoint=file)
    monkeypatch.setattr(GrowingPenalty, "gradients", original)
    resumed = prune(dense, pruner, 0.5, data=digits, checkpoint=file)
    pd.testing.assert_frame_equal(whole.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"))
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="of another training: it differs in penalty"):
        prune(dense, pruner, 0.6, data=digits, checkpoint=file)
    other_net = networks.build("mlp-7-linear", seed=9, input_shape=(1, 8, 8), widths=(30, 30, 30))
    with pytest.raises(ValueError, match="of another training: it differs in penalty, weights"):
        prune(other_net, pruner, 0.5, data=digits, checkpoint=file)


def test_diverging_training_is_an_error_that_says_so(dense: nn.Module, digits: isometry.data.Data) -> None:
    with pytest.raises(isometry.pruners.DivergedError, match=r"diverged after \d+ steps .* Lower the learning rate"):
        prune(dense, GReg(**{**SHORT, "lr": 1e6}), 0.5, data=digits)


def test_coupled_layers_are_averaged_unit_by_unit_and_norms_penalised_once() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.s, self.ns = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.b, self.nb = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.d, self.head = nn.Conv2d(16, 16, 1, groups=16), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.na(self.a(x)) + self.ns(self.s(x)), self.nb(self.b(x))], 1)
            return self.head(self.d(joined)).mean((2, 3))

    net = Joined().eval()
    with torch.no_grad():
        for layer in (net.a, net.s, net.b, net.d):
            layer.weight.fill_(1.0)
        for layer in (net.a, net.s):
            layer.weight[:4] = 0.9  # the least important, in both of the layers that are summed
        for norm in (net.na, net.ns):
            norm.weight[:4] = 0.9
    x = torch.randn(4, 3, 5, 5)
    for pruner in (L1(), isometry.Slimming(epochs=0, scope="layer", floor=1)):
        plan = prune(net, pruner, 0.25, inputs=x, data=(x, torch.arange(4) % 2)).plan
        assert plan.removed["a"] == plan.removed["s"] == (0, 1, 2, 3)
        assert plan.removed["b"] == ()
    (family,) = [f for f in trace(net, x).families if f.root == "d"]
    penalty = TPP(stabilise=1000).penalty(Run(net, [family], None, 0, False, None), [(family, tuple(range(4)))])
    every = [id(tensor) for layer in penalty.layers for tensor, _ in layer.penalised]
    assert len(every) == len(set(every))
    assert {id(net.na.weight), id(net.ns.weight)} <= set(every)


def test_frozen_layers_stay_frozen_and_cannot_be_driven_to_zero(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6))
    net.net[0].requires_grad_(False)
    result = prune(net, L1(), 0.5)
    assert [p.requires_grad for p in result.model.parameters()] == [False, False, True, True, True, True]
    with pytest.raises(ValueError, match=r"The weight of net\.0 is frozen.*skip='net\.0'"):
        prune(net, TPP(**SHORT), 0.5, data=digits)
    assert prune(net, TPP(**SHORT), 0.5, data=digits, skip="net.0").ratio == 0.5


def test_what_cannot_be_asked_for_is_refused_before_training(digits: isometry.data.Data, monkeypatch) -> None:
    net = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    monkeypatch.setattr("isometry.pruners.sparsifying.train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(ValueError, match="would leave none of its 32 units"):
        prune(net, isometry.Slimming(scope="layer"), 0.99, data=digits)
    with pytest.raises(ValueError, match="The network has none with scales"):
        prune(
            networks.build("lenet-5-relu", seed=0),
            isometry.Slimming(),
            0.5,
            data=(torch.randn(4, 1, 32, 32), torch.arange(4)),
        )
    with pytest.raises(ValueError, match=r"leave no layer to prune of net\.0"):
        prune(networks.build("mlp-7-relu"), L1(), 0.5, skip="*")
    with pytest.raises(TypeError, match="inputs of type tuple; it takes one tensor"):
        prune(net, L1(), 0.5, inputs=(torch.randn(2, 1, 8, 8),))


class Answer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Conv2d(3, 8, 3)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        z = self.body(x).relu().mean((2, 3))
        one, two = self.one(z), self.two(z.softmax(1) if self.kind == "mixing" else z)
        return {"logits": one, "more": two} if self.kind == "dict" else (one, two)


def test_every_output_is_compared() -> None:
    x = torch.randn(4, 3, 6, 6)
    for kind in ("dict", "tuple"):
        assert prune(Answer(kind), L1(), 0.5, inputs=x).ratio == 0.5
    with pytest.raises(ValueError, match="nothing that can be cut exactly: The units of body cannot leave"):
        prune(Answer("mixing"), L1(), 0.5, inputs=x)
    with pytest.raises(ValueError, match="nothing that can be cut exactly"):
        prune(Answer("mixing").bfloat16(), L1(), 0.5, inputs=x.bfloat16())


def test_flops_are_those_of_the_forward_pass_whatever_is_frozen() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.randn(1, 5, 16)
    free = size(layer, x).flops
    with torch.no_grad():
        assert size(layer.requires_grad_(False), x).flops == free
    assert (
        free == 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 16
    )  # projections and MLP; scores and their sums


def test_l1_removes_the_smallest_units_and_says_what_it_did() -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(12,), widths=(10, 8))
    result = prune(net, L1(), 0.35)
    sizes = net.net[0].weight.detach().abs().mean(1)
    assert set(result.plan.removed["net.0"]) == set(sizes.argsort()[:4].tolist())  # ceil(3.5)
    assert len(result.plan.removed["net.2"]) == 3
    assert "net.4" not in result.plan.removed
    assert (result.model.net[0].out_features, result.model.net[2].out_features) == (6, 5)
    assert result.before.parameters == 12 * 10 + 10 + 10 * 8 + 8 + 8 * 10 + 10
    assert result.after.parameters == 12 * 6 + 6 + 6 * 5 + 5 + 5 * 10 + 10
    assert result.after.flops == 2 * (12 * 6 + 6 * 5 + 5 * 10)
    assert result.after.bytes == 4 * result.after.parameters
    assert result.left_alone == {"net.4": "its units are outputs of the network"}
    assert len(result.history) == 0
    assert "parameters 308 -> 173" in str(result)


@pytest.mark.parametrize("pruner", [L1(), Random()])
def test_a_larger_ratio_removes_a_superset(pruner: isometry.Pruner) -> None:
    net = networks.build("lenet-5-relu", seed=3)
    plans = [prune(net, pruner, ratio, seed=5).plan for ratio in (0.0, 0.2, 0.5, 0.8)]
    assert plans[0].ratio == 0
    for small, large in pairwise(plans):
        assert all(set(small.removed[layer]) <= set(large.removed[layer]) for layer in small.removed)
    assert prune(net, pruner, 0.5, seed=5).plan == plans[2]


def test_published_widths() -> None:
    net = networks.build("mlp-7-linear", seed=0)
    for ratio, width in ((0.1, 90), (0.3, 70), (0.5, 50), (0.7, 30), (0.8, 20), (0.9, 10)):
        result = prune(net, L1(), ratio)
        assert [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)] == [width] * 6 + [10]


def test_patterns_choose_layers_and_later_ones_win() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    result = prune(net, L1(), {"*": 0.25, "conv*": 0.5, "conv1": 0.0})
    assert {layer: len(units) for layer, units in result.plan.removed.items()} == {
        "conv1": 0, "conv2": 8, "conv3": 60, "fc1": 21,
    }  # fmt: skip
    only = prune(net, L1(), 0.5, layers="conv2")
    assert list(only.plan.removed) == ["conv2"]
    assert only.left_alone["fc1"] == "not asked for"


def test_the_model_given_is_left_alone(dense: nn.Module, digits: isometry.data.Data) -> None:
    before = copy.deepcopy(dense.state_dict())
    dense.train()
    prune(dense, TPP(**SHORT), 0.5, data=digits)
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


BAD = [
    (lambda: prune(MLP, L1(), 1.0), ValueError, "ratio 1.0; it is the fraction of units removed, at least 0 and below 1"),
    (lambda: prune(MLP, L1(), -0.1), ValueError, "ratio -0.1"),
    (lambda: prune(MLP, L1(), float("nan")), ValueError, "ratio nan"),
    (lambda: prune(MLP, L1(), 0.996), ValueError, r"leave none of its 100 units\. At most 99 can leave: ratio=0\.99"),
    (lambda: prune(MLP, L1(), {"conv*": 0.5}), ValueError, r"pattern 'conv\*', which matches none of the layers"),
    (lambda: prune(MLP, L1(), {"net.12": 0.5}), ValueError, "net.12 matches, but its units are outputs of the network"),
    (lambda: prune(MLP, L1(), 0.5, layers=["x"]), ValueError, "pattern 'x'"),
    (lambda: prune(Tied(), L1(), {"a": 0.5, "b": 0.2}), ValueError, r"ratio 0\.2 for b and 0\.5 for a, but their units can only leave together"),
    (lambda: prune(MLP, TPP(), 0.5), ValueError, r"TPP trains before it removes and got no data\. .* prune\(model, isometry\.TPP\(\), 0\.8, data="),
    (lambda: prune(nn.Sequential(nn.Linear(4, 2)), L1(), 0.5), ValueError, "found nothing to prune .0: its units are outputs"),
    (lambda: prune(CONV, L1(), 0.5), ValueError, r"prune\(\) cannot infer an input shape from 0 \(Conv2d\)\. Pass inputs, e\.g\. prune\(model, pruner, ratio, inputs=torch\.randn\(64, 3, 32, 32\)\)"),
    (lambda: prune(MLP, "l1", 0.5), TypeError, "it takes a Pruner"),
    (lambda: prune(MLP, TPP(stabilise=300), 0.5, data=(torch.randn(4, 1, 32, 32), torch.zeros(4).long())), ValueError, "zeroing layer after layer every 100 steps takes 600"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_refused_with_the_call_that_works(case: int) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def small_conv() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    return net.double()


def by_hand(
    net: nn.Module, data: Split, seed: int, lr: float, decay: float, strength: Any, loss_of: Any, steps: int
) -> None:
    """Plain SGD with momentum in train mode; `loss_of(net, *strength(step))` is added to the cross-entropy."""
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    order, step = torch.Generator().manual_seed(seed), 0
    net.train()
    while step < steps:
        for batch in torch.randperm(len(data.inputs), generator=order).split(16):
            if step == steps:
                break
            loss = nn.functional.cross_entropy(net(data.inputs[batch]), data.targets[batch])
            grads = torch.autograd.grad(loss + loss_of(net, *strength(step)), list(net.parameters()))
            with torch.no_grad():
                for p, g, v in zip(net.parameters(), grads, velocity, strict=True):
                    v.mul_(0.9).add_(g + decay * p)
                    p.sub_(lr * v)
            step += 1


def test_tpp_on_convolutions_follows_an_independent_slow_training() -> None:
    """Gram term, weights, biases and the BatchNorm behind each convolution, by autograd on an explicit loss."""
    net = small_conv()
    data = Split(torch.randn(40, 2, 4, 4, dtype=torch.float64), torch.arange(40) % 3)
    reference = copy.deepcopy(net)
    gone = {i: net[i].weight.detach().abs().mean((1, 2, 3)).argsort()[: len(net[i].weight) // 2] for i in (0, 3)}
    pruner = TPP(delta=0.2, interval=2, stabilise=5, zero_out=None, batch_size=16, gram=3.0, lr=0.02, weight_decay=1e-3)
    result = prune(net, pruner, 0.5, data=data, seed=5)

    def penalty(model: nn.Module, strength: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, units in gone.items():
            rows = model[i].weight.flatten(1)
            entries = torch.zeros(len(rows), len(rows), dtype=torch.float64)
            entries[units] = entries[:, units] = 1
            total = total + 3.0 * strength * (rows @ rows.T * entries).square().mean()
            total = total + strength / 2 * (rows[units].square().sum() + model[i].bias[units].square().sum())
        scales = model[1].weight[gone[0]].square().sum() + model[1].bias[gone[0]].square().sum()
        return total + strength / 2 * scales

    by_hand(reference, data, 5, 0.02, 1e-3, lambda step: (min(0.2 * (step // 2), 1.0),), penalty, 15)
    kept = {i: sorted(set(range(len(net[i].weight))) - set(units.tolist())) for i, units in gone.items()}
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(result.model[0].weight, reference[0].weight[kept[0]], **close)
    torch.testing.assert_close(result.model[1].weight, reference[1].weight[kept[0]], **close)
    torch.testing.assert_close(result.model[1].running_var, reference[1].running_var[kept[0]], **close)
    torch.testing.assert_close(result.model[3].weight, reference[3].weight[kept[3]][:, kept[0]], **close)


def test_greg_2_grows_on_all_units_then_chooses_and_contrasts() -> None:
    net = small_conv()
    data = Split(torch.randn(40, 2, 4, 4, dtype=torch.float64), torch.arange(40) % 3)
    pruner = isometry.GReg2(
        delta=0.3, interval=2, ceiling=1.0, stabilise=3, magnitude_ratio=None, pick_delta=0.2, pick=0.4, batch_size=16,
        lr=0.05, weight_decay=1e-3,
    )  # fmt: skip
    result = prune(net, pruner, 0.5, data=data, seed=5)
    reference = copy.deepcopy(net)

    def everywhere(model: nn.Module, strength: float) -> Tensor:
        return strength / 2 * (model[0].weight.square().sum() + model[3].weight.square().sum())

    by_hand(reference, data, 5, 0.05, 1e-3, lambda step: (min(0.2 * (step // 2), 0.4),), everywhere, 5)
    gone = {i: reference[i].weight.detach().abs().mean((1, 2, 3)).argsort()[: len(net[i].weight) // 2] for i in (0, 3)}
    assert {int(layer): set(units) for layer, units in result.plan.removed.items()} == {
        i: set(units.tolist()) for i, units in gone.items()
    }

    def contrasting(model: nn.Module, leaving: float, staying: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, units in gone.items():
            flags = torch.zeros(len(model[i].weight), dtype=torch.float64)
            flags[units] = 1
            sizes = model[i].weight.square().sum((1, 2, 3))
            total = total + leaving / 2 * (flags * sizes).sum() + staying / 2 * ((1 - flags) * sizes).sum()
        return total

    def strengths(step: int) -> tuple[float, float]:
        return min(0.4 + 0.3 * (step // 2), 1.0), max(0.4 - 0.3 * (step // 2), 0.0)

    by_hand(reference, data, 5, 0.05, 1e-3, strengths, contrasting, 7)
    kept = {i: sorted(set(range(len(net[i].weight))) - set(units.tolist())) for i, units in gone.items()}
    torch.testing.assert_close(result.model[0].weight, reference[0].weight[kept[0]], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.model[3].weight, reference[3].weight[kept[3]][:, kept[0]], rtol=1e-9, atol=1e-11)
    assert list(result.history["stage"].unique()) == ["condition", "recede"]
    assert result.history["strength"].max() == 1.0
