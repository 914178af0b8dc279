"""The optimizer of a training: its groups, its state, one that the user brings."""

import pytest
import torch
from torch.nn import functional as F

import isometry
from isometry import Steps, networks, train
from isometry.training import parameter_groups
from isometry.training.layout import with_layout_of
from tests.models import digits_mlp, flat_weights, normed_conv


def test_an_optimizer_of_another_network_is_refused(digits: isometry.data.Data) -> None:
    model = digits_mlp()
    stale = torch.optim.SGD(digits_mlp().parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"holds 0 of the model's 6 trainable parameters.*surgery\.transfer_optimizer_state"
    ):
        train(model, digits, lr=0.1, epochs=1, optimizer=stale)


def test_an_optimizer_of_ones_own_keeps_its_rate(digits: isometry.data.Data) -> None:
    model = digits_mlp()
    own = torch.optim.Adam(model.parameters(), lr=1e-2)
    (epoch,) = train(model, digits, lr=1.0, epochs=1, optimizer=own, batch_size=32)
    assert epoch.lr == 1e-2
    assert epoch.accuracy > 0.3


def test_a_fused_optimizer_is_right_after_the_layout_changes() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 2, 8, 8), torch.arange(32) % 10
    found = []
    for fused in (False, True):
        model = networks.build("conv-4", seed=0, input_shape=(2, 8, 8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        list(train(model, (x, y), lr=1, epochs=2, batch_size=16, optimizer=optimizer, schedule=Steps((0.5,))))
        assert optimizer.param_groups[0]["lr"] == 0.05
        found.append(flat_weights(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_bounded_scales_train_ten_times_faster_without_decay() -> None:
    model = normed_conv()
    rest, scales = parameter_groups(model, lr=0.1, weight_decay=1e-3)
    assert (rest["lr"], rest["weight_decay"], scales["lr"], scales["weight_decay"]) == (0.1, 1e-3, 1.0, 0.0)
    assert len(scales["params"]) == 4
    held = [id(p) for group in (rest, scales) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(parameter_groups(normed_conv("batch"), lr=0.1, weight_decay=0)) == 1


def test_state_takes_the_layout_of_its_parameter_and_keeps_its_values_and_precision() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    velocity = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    result = with_layout_of(weight, velocity)
    assert result.stride() == weight.stride()
    assert torch.equal(result, velocity)
    assert result.dtype == torch.float64
    step = torch.tensor(3.0)
    assert with_layout_of(weight, step) is step
    assert with_layout_of(weight, None) is None
