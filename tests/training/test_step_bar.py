"""Bars move with the steps of the training that they belong to."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import isometry
from isometry.data import Batches, Split
from isometry.training import Epoch, Recipe, train
from isometry.training.step_bar import count_steps, show_steps

DATA = (torch.randn(50, 4), torch.arange(50) % 3)
RECIPE = Recipe(0.01, 3, 20)


def shown(model: nn.Module, epochs: Iterator[Epoch], progress: bool | None = True) -> str:
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        steps = count_steps(RECIPE, Split(*DATA))
        for _ in show_steps(epochs, model, steps, description="mine", progress=progress):
            other = nn.Linear(2, 2)  # an optimizer of other parameters does not move the bar
            other(torch.ones(1, 2)).sum().backward()
            torch.optim.SGD(other.parameters(), lr=0.1).step()
    return text.getvalue()


def test_steps_are_counted_as_a_recipe_takes_them() -> None:
    assert count_steps(RECIPE, Split(*DATA)) == 9
    assert count_steps(Recipe(0.01, 3, 20, epoch_steps=2), Split(*DATA)) == 6
    assert count_steps(Recipe(0.01, 3, 20, epoch_steps=5), Split(*DATA)) == 9
    assert count_steps(RECIPE, Batches([DATA] * 4)) == 12
    assert count_steps(RECIPE, Batches(iter([DATA]))) is None


def test_a_bar_moves_with_every_step_of_its_network_and_ends_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    model = nn.Linear(4, 3)
    text = shown(model, train(model, DATA, **RECIPE.arguments()))
    assert "0/9" in text  # at once, before the first step
    assert [int(n) for n in re.findall(r"(\d)/9", text)][-1] == 9
    assert not _global_optimizer_post_hooks


def test_a_resumed_training_begins_where_it_was(tmp_path: Path) -> None:
    model, checkpoint = nn.Linear(4, 3), tmp_path / "checkpoint"
    epochs = train(model, DATA, **RECIPE.arguments(), checkpoint=checkpoint)
    next(epochs)
    next(epochs)
    epochs.close()
    torch.manual_seed(0)
    again = nn.Linear(4, 3)
    text = shown(again, train(again, DATA, **RECIPE.arguments(), checkpoint=checkpoint))
    assert "9/9" in text


def test_without_a_bar_nothing_is_hooked_in() -> None:
    model = nn.Linear(4, 3)
    assert shown(model, train(model, DATA, **RECIPE.arguments()), progress=False) == ""
    assert shown(model, train(model, DATA, **RECIPE.arguments()), progress=None) == ""  # no terminal


def test_growing_penalties_say_at_once_how_many_steps_they_take(digits: isometry.data.Data) -> None:
    pruner = isometry.TPP(delta=0.25, interval=1, stabilize=20, zero_out=1, batch_size=64)
    model = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), widths=(8, 8), seed=0)
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        isometry.prune(model, pruner, 0.5, data=digits, progress=True)
    assert "after selection:   0%" in text.getvalue()
    assert "0/24" in text.getvalue()
