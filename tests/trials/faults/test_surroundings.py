"""What a call has left changed is found and named."""

import random
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from isometry.trials.faults.surroundings import changes, record
from tests.models import batch_norm_net


def test_nothing_changes_by_itself() -> None:
    net = batch_norm_net()
    net[0].weight.grad = torch.full_like(net[0].weight, torch.nan)
    assert changes(record(net), record(net)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda net: net[1].eval(), "model 0: 1: training"),
        (lambda net: net[0].requires_grad_(False), "model 0: 0: weight"),
        (lambda net: net[0].weight.data.add_(1), "model 0: 0: weight"),
        (lambda net: net[1].running_mean.add_(1), "model 0: 1: running_mean"),
        (lambda net: setattr(net[0].weight, "grad", torch.ones_like(net[0].weight)), "model 0: 0: weight"),
        (lambda net: net[3].register_forward_hook(lambda *_: None), "model 0: 3: _forward_hooks"),
        (lambda net: setattr(net[3], "kept", torch.ones(2)), "model 0: 3: kept"),
        (lambda net: net.add_module("last", nn.ReLU()), "model 0: itself: _modules"),
    ],
)
def test_a_change_of_a_network_is_named(change: object, named: str) -> None:
    net = batch_norm_net().train()
    before = record(net)
    change(net)  # type: ignore[operator]
    assert named in changes(before, record(net))


def test_changes_of_the_process_are_named() -> None:
    before = record()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        after = record()
    signal.signal(signal.SIGINT, handler)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    random_states = {f"{name} random state" for name in ("torch's", "NumPy's", "Python's")}
    assert set(changes(before, after)) == random_states | {"gradients", "warning filters", "handler of SIGINT"}
    assert changes(before, record()) == []
