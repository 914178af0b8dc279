"""Trainings that were interrupted go on bit for bit, and only their own."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import isometry
from isometry import networks, train
from isometry.data import CropFlip, Data, Split
from isometry.files import read_tensors, write_tensors
from tests.models import digits_mlp, flat_weights


def test_an_interrupted_training_goes_on_bit_for_bit(digits: isometry.data.Data, tmp_path: Path) -> None:
    arguments = {"lr": 0.05, "epochs": 5, "batch_size": 50, "seed": 2}
    whole, broken = digits_mlp(), digits_mlp()
    complete = list(train(whole, digits, **arguments))
    file = tmp_path / "deep" / "state.safetensors"
    for epoch in train(broken, digits, **arguments, checkpoint=file):
        if epoch.number == 3:  # killed while the third epoch's result is being used: it is not yet on record
            break
    resumed = digits_mlp()
    rest = list(train(resumed, digits, **arguments, checkpoint=file))
    assert [e.number for e in rest] == [3, 4, 5]
    assert [e.loss for e in rest] == [e.loss for e in complete[2:]]
    assert torch.equal(flat_weights(resumed), flat_weights(whole))
    assert list(train(digits_mlp(), digits, **arguments, checkpoint=file)) == []


def test_a_checkpoint_of_another_training_is_refused(digits: isometry.data.Data, tmp_path: Path) -> None:
    arguments = {"epochs": 2, "batch_size": 50, "seed": 2, "checkpoint": tmp_path / "state.safetensors"}
    list(train(digits_mlp(), digits, lr=0.05, **arguments))
    with pytest.raises(ValueError, match="of another training"):
        list(train(digits_mlp(), digits, lr=0.1, **arguments))


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
    file = tmp_path / "training.safetensors"
    for epoch in train(other, data, **options, checkpoint=file):
        if epoch.number == 3:
            break
    other = conv()
    assert [e.number for e in train(other, data, **options, checkpoint=file)] == [3, 4]
    assert torch.equal(flat_weights(whole), flat_weights(other))


def test_training_resumes_with_all_of_the_optimizers_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 2, 8, 8), torch.arange(32) % 10
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
        ends.append(flat_weights(model))
    assert torch.equal(*ends)


def test_a_diverged_epoch_is_not_kept_as_done(tmp_path: Path) -> None:
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    for _ in range(2):
        model = digits_mlp()
        epochs = list(train(model, (x, y), lr=1e30, epochs=3, checkpoint=tmp_path / "t.safetensors"))
        assert epochs[-1].diverged


def test_a_checkpoint_knows_the_augmentation(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2, "epoch_steps": 1, "checkpoint": path}

    def net() -> nn.Module:
        return isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)

    first = dataclasses.replace(digits, augment=CropFlip(1))
    list(isometry.train(net(), first, **options))
    with pytest.raises(ValueError, match="augment"):
        list(isometry.train(net(), digits, **options))
    with pytest.raises(ValueError, match="augment"):
        list(isometry.train(net(), dataclasses.replace(digits, augment=CropFlip(2)), **options))


def test_a_checkpoint_knows_all_of_the_data(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2, "epoch_steps": 1, "checkpoint": path}

    def net() -> nn.Module:
        return isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)

    first = dataclasses.replace(digits, augment=CropFlip(1))
    list(isometry.train(net(), first, **options))
    zeroed = digits.train.inputs.clone()
    zeroed[100:-100] = 0
    with pytest.raises(ValueError, match="data"):
        list(isometry.train(net(), dataclasses.replace(first, train=Split(zeroed, digits.train.targets)), **options))


def test_a_truncated_checkpoint_is_refused(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2, "epoch_steps": 1, "checkpoint": path}

    def net() -> nn.Module:
        return isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)

    first = dataclasses.replace(digits, augment=CropFlip(1))
    list(isometry.train(net(), first, **options))
    path.write_bytes(path.read_bytes()[:1000])
    path.with_name(path.name + ".previous").unlink()
    with pytest.raises(ValueError, match=r"no whole safetensors file.*checkpoint='other"):
        list(isometry.train(net(), first, **options))


def _two_epochs_done(digits: Data, path: Path) -> dict[str, Any]:
    """Train for two of three epochs; return the arguments."""
    options: dict[str, Any] = {"lr": 0.01, "epochs": 3, "batch_size": 400, "checkpoint": path}
    for epoch in isometry.train(digits_mlp(), digits, **options):
        if epoch.number == 3:
            break
    return options


def _flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_bit_for_bit(digits: Data, tmp_path: Path) -> None:
    whole = digits_mlp()
    list(isometry.train(whole, digits, lr=0.01, epochs=3, batch_size=400))
    options = _two_epochs_done(digits, tmp_path / "t.safetensors")
    _flip(tmp_path / "t.safetensors")
    resumed = digits_mlp()
    with pytest.warns(
        UserWarning, match=r"goes on from .*t\.safetensors\.previous, after epoch 1, because .*is damaged"
    ):
        assert [epoch.number for epoch in isometry.train(resumed, digits, **options)] == [2, 3]
    assert torch.equal(flat_weights(resumed), flat_weights(whole))


def test_two_damaged_checkpoints_are_refused_by_name(digits: Data, tmp_path: Path) -> None:
    options = _two_epochs_done(digits, tmp_path / "t.safetensors")
    _flip(tmp_path / "t.safetensors")
    _flip(tmp_path / "t.safetensors.previous")
    with pytest.raises(
        ValueError, match=r"train\(\) found .*t\.safetensors is damaged.*previous is damaged.*Delete it"
    ):
        list(isometry.train(digits_mlp(), digits, **options))


def test_a_training_killed_between_two_checkpoints_goes_on_from_the_one_before(digits: Data, tmp_path: Path) -> None:
    options = _two_epochs_done(digits, tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").unlink()
    assert [epoch.number for epoch in isometry.train(digits_mlp(), digits, **options)] == [2, 3]


def test_a_checkpoint_that_is_further_than_its_training_is_refused(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    options = _two_epochs_done(digits, path)
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "done": "99"})
    with pytest.raises(ValueError, match=r"t\.safetensors after epoch 99 of a training of 3.*Delete it"):
        list(isometry.train(digits_mlp(), digits, **options))


def test_a_checkpoint_of_an_earlier_version_without_a_digest_goes_on(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    options = _two_epochs_done(digits, path)
    tensors, metadata = read_tensors(path)
    save_file(tensors, path, metadata)
    assert [epoch.number for epoch in isometry.train(digits_mlp(), digits, **options)] == [3]


def _interrupted(digits: Data, model: nn.Module, path: Path, *, epoch: int) -> dict[str, Any]:
    """Train until Ctrl-C in the third step of an epoch; return the arguments of the training."""
    options: dict[str, Any] = {"lr": 0.05, "epochs": 4, "batch_size": 200, "checkpoint": path}
    steps = 0

    def interrupt(module: nn.Module, args: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 7 * (epoch - 1) + 3:
            raise KeyboardInterrupt

    with model.register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt) as interrupted:
        list(train(model, digits, **options))
    if sys.version_info >= (3, 11):
        assert interrupted.value.__notes__ == [f"{path} keeps the finished epochs: call train() again to go on."]
    return options


def test_the_partly_trained_network_of_an_interrupted_cell_goes_on(digits: Data, tmp_path: Path) -> None:
    whole = digits_mlp()
    list(train(whole, digits, lr=0.05, epochs=4, batch_size=200))
    model = digits_mlp()
    options = _interrupted(digits, model, tmp_path / "t.safetensors", epoch=3)
    assert not torch.equal(flat_weights(model), flat_weights(digits_mlp()))
    assert [epoch.number for epoch in train(model, digits, **options)] == [3, 4]
    assert torch.equal(flat_weights(model), flat_weights(whole))


def test_the_network_of_the_last_finished_epoch_goes_on_in_another_process(digits: Data, tmp_path: Path) -> None:
    model, kept = digits_mlp(), digits_mlp()
    options: dict[str, Any] = {"lr": 0.05, "epochs": 4, "batch_size": 200, "checkpoint": tmp_path / "t.safetensors"}
    for epoch in train(model, digits, **options):
        if epoch.number == 2:
            kept.load_state_dict(model.state_dict())
        if epoch.number == 3:
            break
    assert [epoch.number for epoch in train(kept, digits, **options)] == [3, 4]


def test_a_finished_training_is_not_repeated_in_silence(digits: Data, tmp_path: Path) -> None:
    model = digits_mlp()
    options: dict[str, Any] = {"lr": 0.05, "epochs": 2, "batch_size": 200, "checkpoint": tmp_path / "t.safetensors"}
    list(train(model, digits, **options))
    weights = flat_weights(model)
    with pytest.warns(UserWarning, match=r"found all 2 epochs done in .*nothing is trained.*checkpoint='other"):
        assert list(train(model, digits, **options)) == []
    assert torch.equal(flat_weights(model), weights)


def test_an_interrupted_first_epoch_is_said_to_be_where_the_next_begins(digits: Data, tmp_path: Path) -> None:
    model = digits_mlp()
    options = _interrupted(digits, model, tmp_path / "t.safetensors", epoch=1)
    with pytest.warns(UserWarning, match="begins with the weights that an interrupted first epoch left"):
        assert len(list(train(model, digits, **options))) == 4


def test_another_start_is_refused_with_the_way_to_go_on(digits: Data, tmp_path: Path) -> None:
    options = _interrupted(digits, digits_mlp(), tmp_path / "t.safetensors", epoch=3)
    other = digits_mlp()
    with torch.no_grad():
        other.net[0].weight.mul_(2)
    with pytest.raises(
        ValueError, match=r"of this training, but begun with other weights.*build the network.*seed=0.*other\.safe"
    ):
        list(train(other, digits, **options))
    assert [epoch.number for epoch in train(digits_mlp(), digits, **options)] == [3, 4]


def test_a_second_training_with_another_file_begins_where_the_first_ended(digits: Data, tmp_path: Path) -> None:
    model, reference = digits_mlp(), digits_mlp()
    for name in ("a", "b"):
        list(train(model, digits, lr=0.05, epochs=2, batch_size=200, checkpoint=tmp_path / name))
        list(train(reference, digits, lr=0.05, epochs=2, batch_size=200))
    assert torch.equal(flat_weights(model), flat_weights(reference))


def test_two_trainings_do_not_write_one_file(digits: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 0.05, "epochs": 3, "batch_size": 400, "checkpoint": tmp_path / "t.safetensors"}
    first = train(digits_mlp(), digits, **options)
    next(first)
    with pytest.raises(
        ValueError, match=r"train\(\) found the checkpoint .* in use by another training.*other\.safetensors"
    ):
        next(train(digits_mlp(), digits, **options))
    next(first)
    first.close()
    assert [epoch.number for epoch in train(digits_mlp(), digits, **options)] == [2, 3]


def test_a_checkpoint_that_cannot_be_written_is_refused(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no file here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(ValueError, match=r"train\(\) cannot write the checkpoint .*, e\.g\. train\("):
        next(train(digits_mlp(), digits, lr=0.05, epochs=1, checkpoint="nowhere.safetensors"))
