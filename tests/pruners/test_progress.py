"""Interrupted prunings go on where they were."""

import copy
import io
from typing import Any

import pytest
import torch

import isometry
from isometry import TPP, GReg, GReg2, Pruning, RecedingBN
from tests.pruners.loops import SHORT, assert_equal, batches, net, run
from tests.pruners.test_stepwise import X

PRUNERS = [
    (TPP(**SHORT), 20),
    (TPP(**SHORT), 55),  # where layers are being zeroed
    (GReg(**{**SHORT, "zero_out": None}, magnitude_ratio=2.0), 15),
    (GReg2(**{**SHORT, "zero_out": None}, pick_delta=0.02, pick=0.1), 5),
    (GReg2(**{**SHORT, "zero_out": None}, pick_delta=0.02, pick=0.1), 25),
    (RecedingBN(epochs=3, strength=1e-3), 13),
    (RecedingBN(epochs=3, strength=1e-3), 24),  # receded
]


def started(pruner: isometry.Pruner, seed: int = 0) -> tuple[Pruning, torch.optim.Optimizer]:
    model = net("bounded" if isinstance(pruner, RecedingBN) else "batch", seed)
    pruning = Pruning(model, pruner, 0.5, inputs=X, steps_per_epoch=8)
    return pruning, torch.optim.SGD(pruning.model.parameters(), lr=1e-3, momentum=0.9)


def go_on(pruning: Pruning, optimizer: torch.optim.Optimizer, stream: Any, until: int) -> None:
    while pruning.steps_done < until and pruning.progress < 1:
        run(pruning, stream, optimizer, steps=1)


@pytest.mark.parametrize(("pruner", "step"), PRUNERS, ids=lambda value: str(getattr(type(value), "__name__", value)))
def test_a_resumed_pruning_equals_one_that_was_not_interrupted(
    pruner: isometry.Pruner, step: int, digits: isometry.data.Data
) -> None:
    whole, optimizer = started(pruner)
    go_on(whole, optimizer, batches(digits.train), 10**6)

    first, optimizer = started(pruner)
    stream = batches(digits.train)
    go_on(first, optimizer, stream, step)
    file = io.BytesIO()
    states = {"pruning": first.state_dict(), "model": first.model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(copy.deepcopy(states), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)

    resumed, optimizer = started(pruner, seed=5)  # another start: everything is in the states
    resumed.load_state_dict(states["pruning"])
    resumed.model.load_state_dict(states["model"])
    optimizer.load_state_dict(states["optimizer"])
    assert (resumed.steps_done, resumed.stage, resumed.plan) == (first.steps_done, first.stage, first.plan)
    assert str(resumed) == str(first)
    go_on(resumed, optimizer, stream, 10**6)
    one, other = whole.finish(), resumed.finish()
    assert one.plan == other.plan
    assert_equal(one.model, other.model)


def test_a_state_can_be_gone_back_to(digits: isometry.data.Data) -> None:
    pruning, optimizer = started(GReg2(**{**SHORT, "zero_out": None}, pick_delta=0.02, pick=0.1))
    state, text = copy.deepcopy(pruning.state_dict()), str(pruning)
    weights = copy.deepcopy(pruning.model.state_dict())
    go_on(pruning, optimizer, batches(digits.train), 30)
    pruning.load_state_dict(state)
    pruning.model.load_state_dict(weights)
    assert str(pruning) == text


def test_the_state_of_another_pruning_is_refused() -> None:
    state = started(TPP(**SHORT))[0].state_dict()
    other = Pruning(net(), TPP(**SHORT, gram=1.0), 0.5, inputs=X)
    with pytest.raises(
        ValueError, match=r"load_state_dict\(\) got the state of another pruning: it differs in pruner \(there TPP"
    ):
        other.load_state_dict(state)
    other = Pruning(net(), TPP(**SHORT), 0.25, inputs=X)
    with pytest.raises(ValueError, match=r"differs in ratios \(.*isometry\.Pruning\(model, isometry\.TPP\("):
        other.load_state_dict(state)
    wider = isometry.networks.build("conv-4", seed=0, input_shape=(1, 8, 8), norm="batch")
    with pytest.raises(ValueError, match="differs in units"):
        Pruning(wider, TPP(**SHORT), 0.5, inputs=X).load_state_dict(state)
    sparse = RecedingBN(epochs=3)
    state = Pruning(net("bounded"), sparse, 0.5, inputs=X, steps_per_epoch=8).state_dict()
    with pytest.raises(ValueError, match=r"differs in steps \(there 24, here 27\)"):
        Pruning(net("bounded"), sparse, 0.5, inputs=X, steps_per_epoch=9).load_state_dict(state)


def test_what_is_no_state_is_refused() -> None:
    pruning = started(TPP(**SHORT))[0]
    for wrong in (pruning.model.state_dict(), None, {}):
        with pytest.raises(TypeError, match=r"that state_dict\(\) of a Pruning did not return; the weights are loaded"):
            pruning.load_state_dict(wrong)
