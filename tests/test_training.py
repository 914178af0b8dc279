import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry import Steps, evaluate, networks, train


def net() -> nn.Module:
    return networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(16, 12))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_is_plain_sgd_with_momentum_and_decay() -> None:
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    model, reference = net(), net()
    epochs = list(train(model, (x, y), lr=0.1, epochs=4, batch_size=7, seed=3, schedule=Steps((0.5,), 0.1)))
    assert [e.lr for e in epochs] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert [e.steps for e in epochs] == [3, 6, 9, 12]
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    order = torch.Generator().manual_seed(3)
    for rate in (0.1, 0.1, 0.01, 0.01):
        for batch in torch.randperm(20, generator=order).split(7):
            grads = torch.autograd.grad(F.cross_entropy(reference(x[batch]), y[batch]), list(reference.parameters()))
            with torch.no_grad():
                for p, g, v in zip(reference.parameters(), grads, velocity, strict=True):
                    v.mul_(0.9).add_(g + 1e-4 * p)
                    p.sub_(rate * v)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-6)


def test_training_learns_digits_and_says_so(digits: isometry.data.Data) -> None:
    model = net()
    epochs = list(train(model, digits, lr=0.05, epochs=15, batch_size=32))
    assert epochs[-1].accuracy > 0.95
    assert epochs[-1].loss < epochs[0].loss
    result = evaluate(model, digits.test)
    assert result.accuracy > 0.9
    assert result.samples == 360
    assert not model.training


def test_the_same_seed_gives_the_same_net_and_leaves_the_global_generator_alone(digits: isometry.data.Data) -> None:
    found = []
    for seed in (0, 0, 1):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Dropout(0.3), nn.Linear(20, 10))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.01).add_(torch.arange(p.numel()).view_as(p) / 1e4)
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        list(train(model, digits, lr=0.01, epochs=2, seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_interrupted_training_goes_on_bit_for_bit(digits: isometry.data.Data, tmp_path: Path) -> None:
    arguments = {"lr": 0.05, "epochs": 5, "batch_size": 50, "seed": 2}
    whole, broken = net(), net()
    complete = list(train(whole, digits, **arguments))
    file = tmp_path / "deep" / "state.safetensors"
    for epoch in train(broken, digits, **arguments, checkpoint=file):
        if epoch.number == 3:  # killed while the third epoch's result is being used: it is not yet on record
            break
    resumed = net()
    rest = list(train(resumed, digits, **arguments, checkpoint=file))
    assert [e.number for e in rest] == [3, 4, 5]
    assert [e.loss for e in rest] == [e.loss for e in complete[2:]]
    assert torch.equal(weights(resumed), weights(whole))
    assert list(train(net(), digits, **arguments, checkpoint=file)) == []
    with pytest.raises(ValueError, match="of another training"):
        list(train(net(), digits, **{**arguments, "lr": 0.1}, checkpoint=file))


def test_diverging_training_is_reported(digits: isometry.data.Data) -> None:
    epochs = list(train(networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8)), digits, lr=1e4, epochs=9))
    assert epochs[-1].diverged
    assert not math.isfinite(epochs[-1].loss)
    assert len(epochs) < 9


def test_evaluate_restores_modes_and_counts_right() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.eye(4).repeat(3, 1)
    right = torch.arange(4).repeat(3)
    assert evaluate(model, (x, right), batch_size=5).accuracy == 1
    assert evaluate(model, (x, (right + 1) % 4)).accuracy == 0
    assert model[1].training
    assert int(model[1].num_batches_tracked) == 0


def test_bad_arguments_are_refused(digits: isometry.data.Data) -> None:
    x = torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match="4 inputs and 3 targets"):
        train(net(), (x, torch.zeros(3, dtype=torch.int64)), lr=0.1, epochs=1)
    with pytest.raises(ValueError, match="lr=0"):
        train(net(), digits, lr=0, epochs=1)
    with pytest.raises(ValueError, match="without trainable parameters"):
        train(net().requires_grad_(False), digits, lr=0.1, epochs=1)
    with pytest.raises(ValueError, match="empty split"):
        evaluate(net(), (x[:0], torch.zeros(0, dtype=torch.int64)))
