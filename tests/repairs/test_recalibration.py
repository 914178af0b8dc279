"""Statistics of BatchNorm estimated anew."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import isometry
from isometry import evaluate, networks, recalibrate, train
from tests.models import digits_mlp, padded_conv


def test_recalibrated_statistics_are_those_of_the_activations(digits: isometry.data.Data) -> None:
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    list(train(model, digits, lr=0.05, epochs=4, batch_size=32))
    x = digits.train.inputs
    wrong = copy.deepcopy(model)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(2)
            module.running_var.mul_(5)
    fixed = recalibrate(wrong, digits, batch_size=359, seed=1)
    assert fixed.features[1].momentum == 0.1
    # The first layer's by hand: its input does not depend on other statistics.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    parts = [model.features[0](x[part]) for part in order.split(359) if len(part) > 1]
    torch.testing.assert_close(
        fixed.features[1].running_mean, torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0).detach()
    )
    torch.testing.assert_close(
        fixed.features[1].running_var, torch.stack([p.var((0, 2, 3)) for p in parts]).mean(0).detach()
    )


def test_recalibration_restores_the_accuracy(digits: isometry.data.Data) -> None:
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    list(train(model, digits, lr=0.05, epochs=4, batch_size=32))
    wrong = copy.deepcopy(model)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(2)
            module.running_var.mul_(5)
    fixed = recalibrate(wrong, digits, batch_size=359, seed=1)
    assert evaluate(wrong, digits.test).accuracy < 0.6 < 0.9 < evaluate(fixed, digits.test).accuracy
    assert not any(torch.equal(a, b) for a, b in zip(wrong.buffers(), fixed.buffers(), strict=True) if a.ndim)


def test_a_network_without_statistics_is_refused(digits: isometry.data.Data) -> None:
    with pytest.raises(ValueError, match=r"got a network \(MLP\) without a BatchNorm .* isometry.repair\("):
        recalibrate(digits_mlp(), digits)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 samples and batch_size=128; statistics take at least 2"):
        recalibrate(nn.Sequential(nn.BatchNorm2d(3)), torch.randn(1, 3, 4, 4))


def mixed_precision() -> nn.Module:
    net = nn.Sequential(
        padded_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), padded_conv(8, 5), nn.Flatten(), nn.Linear(5 * 64, 4)
    )
    net[1].running_mean.normal_()
    net[3].double()
    return net


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"batch_size": 1}, "batch_size=1.*e.g.", id="batches of one sample"),
        pytest.param({"samples": 0}, "0 samples.*e.g.", id="no samples"),
        pytest.param({"samples": 1.5}, r"samples=1\.5; it takes a whole number.*e.g.", id="samples and a half"),
    ],
)
def test_too_few_samples_for_statistics_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        isometry.recalibrate(mixed_precision(), torch.randn(9, 3, 8, 8), **options)


def test_statistics_that_are_not_finite_are_refused_by_the_name_of_the_layer() -> None:
    x = torch.randn(9, 3, 8, 8)
    x[4, 0, 0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=r"recalibrate\(\) found NaN or infinite values in what 1 \(BatchNorm2d\).*e\.g\."
    ):
        recalibrate(nn.Sequential(padded_conv(3, 8), nn.BatchNorm2d(8)), x)
