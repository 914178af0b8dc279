"""Schedules and regularizers of a recipe."""

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from isometry import Cosine, Recipe, Steps, networks, train
from isometry.training import Regularizer
from isometry.trials.trial import to_json
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


@pytest.mark.parametrize("schedule", [lambda: Steps((0.5, 1.5)), lambda: Cosine(2.0)], ids=["Steps", "Cosine"])
def test_fractions_outside_of_zero_to_one_are_refused(schedule: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"it takes (a fraction|fractions) of .* in \[0, 1\], e\.g\."):
        schedule()


def test_a_regularizer_without_a_loss_says_so() -> None:
    model = digits_mlp()
    with pytest.raises(NotImplementedError, match="defines no loss"):
        Regularizer().loss(model)


def own(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean()


def test_a_recipe_with_a_loss_is_a_value_that_can_be_sent_and_digested() -> None:
    recipe = Recipe(0.1, 3, loss=own, metric=own)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(recipe) == hash(Recipe(0.1, 3, loss=own, metric=own))
    plain = to_json(Recipe(0.1, 3))
    assert json.dumps(to_json(recipe)) != json.dumps(plain)
    assert {key: value for key, value in to_json(recipe).items() if key != "loss"} == plain
    assert to_json(recipe)["loss"].startswith("tests.training.test_recipe.own(")
    assert "loss" not in plain  # so that folders of trials from before are found again


@pytest.mark.parametrize(
    "settings", [{"lr": "a"}, {"lr": 0}, {"epochs": 1.5}, {"weight_decay": -1}, {"epoch_steps": 0}]
)
def test_a_recipe_refuses_what_train_does(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"Recipe\(\) got {name}={value!r}; it takes a .*number .*, e\.g\. Recipe\("):
        Recipe(**{"lr": 0.1, "epochs": 1, **settings})
    with pytest.raises(ValueError, match=rf"train\(\) got {name}={value!r}; it takes a .*number .*, e\.g\. lr="):
        train(digits_mlp(), (torch.randn(4, 1, 8, 8), torch.arange(4)), **{"lr": 0.1, "epochs": 1, **settings})


@pytest.mark.parametrize("settings", [{"momentum": "a"}, {"seed": "a"}, {"batch_size": "a"}])
def test_text_for_numbers_is_refused_by_train(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"train\(\) got .*='a'; it takes a .*number"):
        train(digits_mlp(), (torch.randn(4, 1, 8, 8), torch.arange(4)), **{"lr": 0.1, "epochs": 1, **settings})


@pytest.mark.parametrize("settings", [{"schedule": "cosine"}, {"regularizer": "l1"}])
def test_what_is_no_schedule_or_regularizer_is_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(TypeError, match=rf"^Recipe\(\) got {name}='{value}'; it takes .*, e\.g\. {name}=isometry"):
        Recipe(0.1, 1, **settings)
    with pytest.raises(TypeError, match=rf"^train\(\) got {name}='{value}'; it takes .*, e\.g\. {name}=isometry"):
        train(digits_mlp(), (torch.randn(4, 1, 8, 8), torch.arange(4)), lr=0.1, epochs=1, **settings)
