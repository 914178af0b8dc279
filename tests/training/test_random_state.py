"""The random numbers of a training do not depend on what else is drawn, and do not change it."""

import pytest
import torch
from torch import nn

import isometry
from isometry import train
from isometry.training.random_state import RandomState
from tests.models import flat_weights

CPU = torch.device("cpu")


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
        found.append(flat_weights(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def draw(random: RandomState) -> torch.Tensor:
    """Five numbers of the training's global generator and the next order of five samples."""
    with random.active():
        return torch.cat([torch.rand(5), random.permutation(5)])


def test_draws_go_on_where_they_stopped_whatever_is_drawn_meanwhile() -> None:
    one, other = RandomState(3, CPU), RandomState(3, CPU)
    expected = [draw(one), draw(one)]
    first = draw(other)
    torch.manual_seed(0)
    torch.rand(100)
    assert torch.equal(first, expected[0])
    assert torch.equal(draw(other), expected[1])
    assert not torch.equal(*expected)


def test_the_callers_generator_comes_back_after_an_error() -> None:
    random = RandomState(3, CPU)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative dimension"), random.active():
        torch.rand(-1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_restored_state_draws_the_same_numbers() -> None:
    random = RandomState(3, CPU)
    draw(random)
    state = {name: tensor.clone() for name, tensor in random.state().items()}
    expected = draw(random)
    again = RandomState(8, CPU)
    again.restore(state)
    assert torch.equal(draw(again), expected)
