"""Schedules, and what a recipe names."""

import pytest
import torch

import isometry
from isometry import Cosine, Steps, networks, train
from tests.models import digits_mlp


def test_schedules_multiply_the_initial_rate() -> None:
    assert [Cosine()(e, 4) for e in (1, 3)] == pytest.approx([1, 0.5])
    assert Cosine(0.1)(5, 4) == pytest.approx(0.1)
    assert Steps((0.3, 0.7))(1, 1) == 1  # the first epoch has the initial rate, however few there are


def test_a_schedule_multiplies_every_groups_own_rate() -> None:
    model = networks.build("conv-4", seed=0, input_shape=(1, 8, 8), norm="bounded")
    data = (torch.randn(8, 1, 8, 8), torch.arange(8))
    rates = [e.lr for e in train(model, data, lr=0.1, epochs=4, schedule=Cosine())]
    assert rates == pytest.approx([0.1 * Cosine()(e, 4) for e in (1, 2, 3, 4)])


def test_a_regularizer_without_a_loss_says_so() -> None:
    model = digits_mlp()
    with pytest.raises(NotImplementedError, match="defines no loss"):
        isometry.recipe.Regularizer().loss(model)
