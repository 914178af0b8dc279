"""The training loop: plain SGD by default, seeded, stopped where it diverges."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import Steps, evaluate, networks, train
from isometry.data import CropFlip, Data
from tests.models import Wired, digits_mlp, flat_weights
from tests.references import sgd_by_hand


def test_training_is_plain_sgd_with_momentum_and_decay() -> None:
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    model, reference = digits_mlp(), digits_mlp()
    epochs = list(train(model, (x, y), lr=0.1, epochs=4, batch_size=7, seed=3, schedule=Steps((0.5,), 0.1)))
    assert [e.lr for e in epochs] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert [e.steps for e in epochs] == [3, 6, 9, 12]
    sgd_by_hand(reference, x, y, [0.1] * 6 + [0.01] * 6, seed=3, batch_size=7, decay=1e-4)
    torch.testing.assert_close(flat_weights(model), flat_weights(reference), rtol=1e-4, atol=1e-6)


def test_training_learns_digits_and_says_so(digits: isometry.data.Data) -> None:
    model = digits_mlp()
    epochs = list(train(model, digits, lr=0.05, epochs=15, batch_size=32))
    assert epochs[-1].accuracy > 0.95
    assert epochs[-1].loss < epochs[0].loss
    result = evaluate(model, digits.test)
    assert result.accuracy > 0.9
    assert result.samples == 360
    assert not model.training


def test_diverging_training_is_reported(digits: isometry.data.Data) -> None:
    epochs = list(train(networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8)), digits, lr=1e4, epochs=9))
    assert epochs[-1].diverged
    assert not math.isfinite(epochs[-1].loss)
    assert len(epochs) < 9


def test_divergence_in_the_very_last_step_is_seen(digits: Data) -> None:
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    (epoch,) = isometry.train(net, digits, lr=1e39, epochs=1, epoch_steps=1)
    assert epoch.diverged


def test_frozen_masks_of_infinity_are_no_divergence(digits: Data) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x.flatten(1)) + m.mask.exp()

    net = Wired(forward, a=nn.Linear(64, 10))
    net.mask = nn.Parameter(torch.full((10,), -torch.inf), requires_grad=False)
    assert [epoch.diverged for epoch in isometry.train(net, digits, lr=0.01, epochs=2, epoch_steps=2)] == [False, False]


def test_inputs_and_targets_of_different_lengths_are_refused() -> None:
    x = torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match="4 inputs and 3 targets"):
        train(digits_mlp(), (x, torch.zeros(3, dtype=torch.int64)), lr=0.1, epochs=1)


def test_a_learning_rate_of_zero_is_refused(digits: isometry.data.Data) -> None:
    with pytest.raises(ValueError, match="lr=0"):
        train(digits_mlp(), digits, lr=0, epochs=1)


def test_a_network_without_trainable_parameters_is_refused(digits: isometry.data.Data) -> None:
    with pytest.raises(ValueError, match="without trainable parameters"):
        train(digits_mlp().requires_grad_(False), digits, lr=0.1, epochs=1)


def test_an_epoch_can_be_so_many_steps(digits: isometry.data.Data) -> None:
    epochs = list(train(digits_mlp(), digits, lr=0.01, epochs=3, batch_size=32, epoch_steps=5))
    assert [e.steps for e in epochs] == [5, 10, 15]


def test_an_epoch_without_steps_is_refused(digits: isometry.data.Data) -> None:
    with pytest.raises(ValueError, match="epoch_steps=0"):
        train(digits_mlp(), digits, lr=0.01, epochs=3, epoch_steps=0)


def test_bfloat16_training_learns_and_keeps_float32_weights(digits: isometry.data.Data) -> None:
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    epochs = list(train(model, digits, lr=0.05, epochs=4, batch_size=32, autocast=True))
    assert epochs[-1].accuracy > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())
    plain, half = (evaluate(model, digits.test, autocast=a).accuracy for a in (False, True))
    assert half == pytest.approx(plain, abs=0.03)


def test_augmentation_changes_the_training() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 10
    split = isometry.data.Split(x, y)
    data = isometry.data.Data("drawn", split, split, split, 10, (3, 8, 8), CropFlip(1))

    def conv() -> nn.Module:
        return networks.build("conv-4", seed=0, input_shape=(3, 8, 8))

    options = {"lr": 0.05, "epochs": 4, "batch_size": 16, "seed": 2}
    whole = conv()
    list(train(whole, data, **options))
    plain = conv()
    list(train(plain, split, **options))
    assert not torch.equal(flat_weights(whole), flat_weights(plain))


@pytest.mark.parametrize(("part", "value"), [("inputs", torch.nan), ("inputs", -torch.inf), ("targets", torch.nan)])
def test_data_that_are_not_finite_are_refused(part: str, value: float) -> None:
    data = {"inputs": torch.randn(4, 1, 8, 8), "targets": torch.randn(4, 10)}
    data[part][1, 0] = value
    with pytest.raises(ValueError, match=rf"train\(\) got {part} that hold NaN or infinite values.*e\.g\. data="):
        train(digits_mlp(), (data["inputs"], data["targets"]), lr=0.1, epochs=1, loss=nn.functional.mse_loss)


def test_infinite_values_of_a_mask_among_several_inputs_are_taken() -> None:
    net = Wired(lambda m, x, mask: m.a((x + mask).softmax(1)), a=nn.Linear(6, 3))
    mask = torch.zeros(4, 6)
    mask[:, 4:] = -torch.inf
    (epoch,) = train(net, ((torch.randn(4, 6), mask), torch.arange(4) % 3), lr=0.1, epochs=1)
    assert not epoch.diverged
