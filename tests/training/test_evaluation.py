"""Accuracy and loss of a network."""

import pytest
import torch
from torch import nn

from isometry import evaluate
from isometry.data import Data
from tests.models import Wired, digits_mlp


def test_evaluate_counts_what_is_right() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.eye(4).repeat(3, 1)
    right = torch.arange(4).repeat(3)
    assert evaluate(model, (x, right), batch_size=5).accuracy == 1
    assert evaluate(model, (x, (right + 1) % 4)).accuracy == 0


def test_evaluate_restores_modes_and_changes_no_statistics() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    x = torch.eye(4).repeat(3, 1)
    right = torch.arange(4).repeat(3)
    assert evaluate(model, (x, right), batch_size=5).accuracy == 1
    assert model[1].training
    assert int(model[1].num_batches_tracked) == 0


def test_an_empty_split_is_refused() -> None:
    x = torch.randn(4, 1, 8, 8)
    with pytest.raises(ValueError, match="empty split"):
        evaluate(digits_mlp(), (x[:0], torch.zeros(0, dtype=torch.int64)))


def test_models_of_several_precisions_are_given_what_they_have(digits: Data) -> None:
    net = Wired(lambda m, x: m.a(x.flatten(1)) * m.scale.float(), a=nn.Linear(64, 10))
    net.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    net = Wired(lambda m, x: m.inner(x), inner=net)
    assert evaluate(net, digits).samples == len(digits.test.inputs)
