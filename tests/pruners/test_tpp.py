"""TPP: the Gram penalty, and whole trainings against slow ones."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, TPP, evaluate, measure, networks, prune
from isometry.data import Split
from isometry.pruners.tpp import gram_gradient, gram_penalty
from tests.models import batch_norm_net, small_conv
from tests.references import sgd_by_hand, slow_gram, slow_tpp_penalty

SHORT = {"delta": 0.05, "interval": 2, "stabilize": 60, "zero_out": 5, "batch_size": 64}


def test_the_gram_penalty_matches_the_equation() -> None:
    w = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    leaving = torch.tensor([0, 1, 0, 1, 1]).double()
    value = gram_penalty(w, leaving)
    assert value.item() == pytest.approx(slow_gram(w.detach(), {1, 3, 4}), rel=1e-13)


def test_the_gradient_of_the_gram_penalty_is_that_of_autograd() -> None:
    w = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    leaving = torch.tensor([0, 1, 0, 1, 1]).double()
    value = gram_penalty(w, leaving)
    (autograd,) = torch.autograd.grad(value, w)
    found = gram_gradient(w.detach(), torch.tensor([1, 3, 4]), torch.tensor([0, 2]))
    torch.testing.assert_close(found, autograd, rtol=1e-13, atol=1e-13)


def test_the_gradient_of_the_gram_penalty_is_its_slope() -> None:
    w = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    leaving = torch.tensor([0, 1, 0, 1, 1]).double()
    value = gram_penalty(w, leaving)
    (autograd,) = torch.autograd.grad(value, w)
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
    settings = {"delta": 0.25, "interval": 3, "stabilize": 8, "zero_out": 2, "batch_size": 32}
    result = prune(net, TPP(**settings, gram=2.0, lr=0.01, weight_decay=1e-3), 0.5, data=(x, y), seed=4)
    layers = [reference.net[0], reference.net[2]]
    removed = [layer.weight.detach().abs().mean(1).argsort()[: len(layer.weight) // 2] for layer in layers]
    switch = 12  # the step at which the penalty has grown to its ceiling

    def penalty(step: int) -> Tensor:
        return slow_tpp_penalty(layers, removed, min(0.25 * (step // 3), 1.0), 2.0)

    def zero_out(step: int) -> None:
        for index, (layer, units) in enumerate(zip(layers, removed, strict=True)):
            if step + 1 - switch >= 2 * (index + 1):
                layer.weight[units] = 0
                layer.bias[units] = 0

    options: dict[str, Any] = {"seed": 4, "batch_size": 32, "decay": 1e-3}
    sgd_by_hand(reference, x, y, [0.01] * (switch + 8), penalty, after=zero_out, **options)
    kept = [
        sorted(set(range(len(layer.weight))) - set(units.tolist()))
        for layer, units in zip(layers, removed, strict=True)
    ]
    torch.testing.assert_close(result.model.net[0].weight, layers[0].weight[kept[0]], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.model.net[2].weight, layers[1].weight[kept[1]][:, kept[0]], rtol=1e-9, atol=1e-11)
    assert result.history["steps"].iloc[-1] == 20
    assert list(result.history["phase"].unique()) == ["grow", "stabilize"]


def test_tpp_on_convolutions_follows_an_independent_slow_training() -> None:
    """Gram term, weights, biases and the BatchNorm behind each convolution, by autograd on an explicit loss."""
    net = small_conv()
    data = Split(torch.randn(40, 2, 4, 4, dtype=torch.float64), torch.arange(40) % 3)
    reference = copy.deepcopy(net)
    removed = {i: net[i].weight.detach().abs().mean((1, 2, 3)).argsort()[: len(net[i].weight) // 2] for i in (0, 3)}
    pruner = TPP(delta=0.2, interval=2, stabilize=5, zero_out=None, batch_size=16, gram=3.0, lr=0.02, weight_decay=1e-3)
    result = prune(net, pruner, 0.5, data=data, seed=5)

    def penalty(step: int) -> Tensor:
        layers, units = [reference[0], reference[1], reference[3]], [removed[0], removed[0], removed[3]]
        return slow_tpp_penalty(layers, units, min(0.2 * (step // 2), 1.0), 3.0, norms=(1,))

    sgd_by_hand(reference, *data, [0.02] * 15, penalty, seed=5, batch_size=16, decay=1e-3)
    kept = {i: sorted(set(range(len(net[i].weight))) - set(units.tolist())) for i, units in removed.items()}
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(result.model[0].weight, reference[0].weight[kept[0]], **close)
    torch.testing.assert_close(result.model[1].weight, reference[1].weight[kept[0]], **close)
    torch.testing.assert_close(result.model[1].running_var, reference[1].running_var[kept[0]], **close)
    torch.testing.assert_close(result.model[3].weight, reference[3].weight[kept[3]][:, kept[0]], **close)


def test_tpp_keeps_what_one_shot_pruning_loses(dense: nn.Module, digits: isometry.data.Data) -> None:
    grown = TPP(delta=5e-3, interval=5, stabilize=300, zero_out=50, batch_size=64)
    l1, tpp = prune(dense, L1(), 0.7), prune(dense, grown, 0.7, data=digits)
    assert tpp.plan == l1.plan
    assert evaluate(tpp.model, digits.validation).accuracy > evaluate(l1.model, digits.validation).accuracy + 0.2
    assert measure(tpp.model, digits.validation).mean_jsv > 3 * measure(l1.model, digits.validation).mean_jsv


def test_tpp_shrinks_the_batchnorm_that_follows() -> None:
    net = batch_norm_net()
    data = Split(torch.randn(128, 3, 8, 8), torch.arange(128) % 5)
    seen: dict[str, Any] = {}

    class Watched(TPP):
        def train_after_selection(self, context: Any, selection: Any) -> None:
            super().train_after_selection(context, selection)
            # A copy: units are removed from the network itself afterwards.
            seen["norm"], seen["units"] = copy.deepcopy(context.model[1]).requires_grad_(False), selection[0][1]

    prune(net, Watched(**SHORT), {"0": 0.5}, data=data)
    norm, units = seen["norm"], list(seen["units"])
    assert float(norm.weight[units].abs().max()) == float(norm.bias[units].abs().max()) == 0
    kept = [u for u in range(8) if u not in units]
    assert float(norm.weight[kept].abs().min()) > 0
