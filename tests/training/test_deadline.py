"""Trainings end in time with their last epoch on disk, and go on from there."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import isometry
from isometry.training.deadline import OutOfTimeError, is_over, stop_at
from tests.models import digits_mlp, flat_weights

OPTIONS: dict[str, Any] = {"lr": 0.01, "epochs": 3, "epoch_steps": 2}


def test_a_training_ends_with_its_epoch_and_goes_on_from_there(digits: isometry.data.Data, tmp_path: Path) -> None:
    whole, interrupted = digits_mlp(), digits_mlp()
    list(isometry.train(whole, digits, **OPTIONS))
    path, numbers = tmp_path / "training.safetensors", []
    for _ in range(2):
        with pytest.raises(OutOfTimeError, match=r"holds . of 3 epochs"), stop_at(time.time() - 1):
            numbers += [epoch.number for epoch in isometry.train(interrupted, digits, **OPTIONS, checkpoint=path)]
    with stop_at(time.time() - 1):  # the last epoch is done, and ends no training
        assert [epoch.number for epoch in isometry.train(interrupted, digits, **OPTIONS, checkpoint=path)] == [3]
    assert torch.equal(flat_weights(whole), flat_weights(interrupted))


def test_a_training_without_checkpoint_or_with_time_goes_on(digits: isometry.data.Data, tmp_path: Path) -> None:
    with stop_at(time.time() - 1):
        assert len(list(isometry.train(digits_mlp(), digits, **OPTIONS))) == 3
    with stop_at(time.time() + 1000):
        assert not is_over()
        assert len(list(isometry.train(digits_mlp(), digits, **OPTIONS, checkpoint=tmp_path / "t.safetensors"))) == 3
    assert not is_over()
