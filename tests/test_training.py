import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry import Cosine, Steps, evaluate, networks, recalibrate, train
from isometry.data import CropFlip


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


def test_cosine_and_steps_multiply_every_groups_own_rate() -> None:
    assert [Cosine()(e, 4) for e in (1, 3)] == pytest.approx([1, 0.5])
    assert Cosine(0.1)(5, 4) == pytest.approx(0.1)
    assert Steps((0.3, 0.7))(1, 1) == 1  # the first epoch has the initial rate, however few there are
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8), norm="bounded")
    data = (torch.randn(8, 1, 8, 8), torch.arange(8))
    rates = [e.lr for e in train(model, data, lr=0.1, epochs=4, schedule=Cosine())]
    assert rates == pytest.approx([0.1 * Cosine()(e, 4) for e in (1, 2, 3, 4)])


def test_an_epoch_can_be_so_many_steps(digits: isometry.data.Data) -> None:
    epochs = list(train(net(), digits, lr=0.01, epochs=3, batch_size=32, epoch_steps=5))
    assert [e.steps for e in epochs] == [5, 10, 15]
    with pytest.raises(ValueError, match="epoch_steps=0"):
        train(net(), digits, lr=0.01, epochs=3, epoch_steps=0)


def test_bfloat16_training_learns_and_keeps_float32_weights(digits: isometry.data.Data) -> None:
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8))
    epochs = list(train(model, digits, lr=0.05, epochs=4, batch_size=32, autocast=True))
    assert epochs[-1].accuracy > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())
    plain, half = (evaluate(model, digits.test, autocast=a).accuracy for a in (False, True))
    assert half == pytest.approx(plain, abs=0.03)


def test_recalibration_restores_the_statistics_of_the_activations(digits: isometry.data.Data) -> None:
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
    assert evaluate(wrong, digits.test).accuracy < 0.6 < 0.9 < evaluate(fixed, digits.test).accuracy
    assert not any(torch.equal(a, b) for a, b in zip(wrong.buffers(), fixed.buffers(), strict=True) if a.ndim)
    with pytest.raises(ValueError, match="0 BatchNorms that track statistics"):
        recalibrate(net(), digits)


def test_an_optimiser_of_another_network_is_refused(digits: isometry.data.Data) -> None:
    model = net()
    stale = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"holds 0 of the model's 6 trainable parameters.*surgery\.carry"):
        train(model, digits, lr=0.1, epochs=1, optimizer=stale)
    own = torch.optim.Adam(model.parameters(), lr=1e-2)
    (epoch,) = train(model, digits, lr=1.0, epochs=1, optimizer=own, batch_size=32)
    assert epoch.lr == 1e-2
    assert epoch.accuracy > 0.3
    with pytest.raises(NotImplementedError, match="defines no loss"):
        isometry.recipe.Regulariser().loss(model)


def test_crops_and_mirrors_are_windows_of_the_padded_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 2, 6, 7)
    cut = CropFlip(2)(images)
    assert cut.shape == images.shape
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, whole in zip(cut, padded, strict=True):
        windows = {
            (dy, dx, flip): (whole[:, dy : dy + 6, dx : dx + 7].flip(2) if flip else whole[:, dy : dy + 6, dx : dx + 7])
            for dy in range(5) for dx in range(5) for flip in (False, True)
        }  # fmt: skip
        (found,) = [key for key, window in windows.items() if torch.equal(window, image)]
        seen.add(found)
    assert len({key[0] for key in seen}) == len({key[1] for key in seen}) == 5
    assert {key[2] for key in seen} == {False, True}


def test_augmented_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 10
    split = isometry.data.Split(x, y)
    data = isometry.data.Data("drawn", split, split, split, 10, (3, 8, 8), CropFlip(1))

    def conv() -> nn.Module:
        return networks.build("conv-4", seed=0, input_shape=(3, 8, 8))

    options = {"lr": 0.05, "epochs": 4, "batch_size": 16, "seed": 2}
    whole, other = conv(), conv()
    list(train(whole, data, **options))
    plain = conv()
    list(train(plain, split, **options))
    assert not torch.equal(weights(whole), weights(plain))
    file = tmp_path / "training.safetensors"
    for epoch in train(other, data, **options, checkpoint=file):
        if epoch.number == 3:
            break
    other = conv()
    assert [e.number for e in train(other, data, **options, checkpoint=file)] == [3, 4]
    assert torch.equal(weights(whole), weights(other))


def test_a_fused_optimiser_is_right_after_the_layout_changes_and_resumes_with_all_of_its_state(tmp_path: Path) -> None:
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
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    file = tmp_path / "adam.safetensors"
    ends = []
    for stop in (None, 3):
        for attempt in range(2 if stop else 1):
            model = networks.build("conv-4", seed=0, input_shape=(2, 8, 8))
            adam = torch.optim.Adam(model.parameters(), lr=1e-2)
            options = {"lr": 1, "epochs": 4, "batch_size": 16, "optimizer": adam}
            for epoch in train(model, (x, y), **options, checkpoint=file if stop else None):
                if stop and not attempt and epoch.number == stop:
                    break
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_a_diverged_epoch_is_not_kept_as_done(tmp_path: Path) -> None:
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    for _ in range(2):
        model = net()
        epochs = list(train(model, (x, y), lr=1e30, epochs=3, checkpoint=tmp_path / "t.safetensors"))
        assert epochs[-1].diverged
