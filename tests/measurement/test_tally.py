"""When to stop."""

import torch
from torch import Tensor

from isometry import measure, networks


def unequal_samples() -> Tensor:
    """300 samples [300, 1, 32, 32] of scales from 0.1 to 3: their mean JSVs differ."""
    return torch.randn(300, 1, 32, 32) * torch.linspace(0.1, 3, 300).view(-1, 1, 1, 1)


def test_sampling_goes_on_until_rtol() -> None:
    loose = measure(networks.build("lenet-5-relu", seed=0), unequal_samples(), rtol=0.1)
    half = (loose.interval[1] - loose.interval[0]) / 2 / loose.mean_jsv
    assert half <= 0.1
    assert len(loose.spectrum) < 300
    assert any("rtol=0.1 reached after" in note for note in loose.notes)


def test_sampling_ends_with_the_inputs() -> None:
    tight = measure(networks.build("lenet-5-relu", seed=0), unequal_samples(), rtol=0.002)
    assert len(tight.spectrum) == 300
    assert any("rtol=0.002 NOT reached: the inputs ran out after 300 samples" in note for note in tight.notes)


def test_inputs_are_drawn_until_rtol() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    drawn = measure(net, rtol=0.05)
    assert any("reached" in note for note in drawn.notes)
