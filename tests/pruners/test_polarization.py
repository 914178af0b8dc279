"""Neuron polarization."""

import pytest
import torch
from torch import nn

from isometry import Polarization, prune
from isometry.pruners.polarization import Polarizing
from tests.models import normed_conv


def test_the_polarization_penalty_is_that_of_all_scales_together() -> None:
    plain = normed_conv("batch")
    scales = [m.weight for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for scale in scales:
            scale.normal_()
    joined = torch.cat([s.detach() for s in scales])
    expected = 2e-3 * (1.4 * joined.abs().sum() - (joined - joined.mean()).abs().sum())
    assert Polarizing(2e-3, 1.4, 1.0).loss(plain).item() == pytest.approx(float(expected), rel=1e-5)


def test_scales_are_projected_to_their_interval() -> None:
    plain = normed_conv("batch")
    scales = [m.weight for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for scale in scales:
            scale.normal_()
    scales[0].requires_grad_(False)
    frozen = scales[0].clone()
    Polarizing(2e-3, 1.4, 0.5).project(plain)
    assert torch.equal(scales[0], frozen)
    assert all(0 <= s.min().item() <= s.max().item() <= 0.5 for s in scales[1:])


def test_polarized_scales_stay_between_zero_and_one() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    polarized = prune(normed_conv("batch"), Polarization(epochs=2, lr=0.01), 0.5, data=data)
    scales = torch.cat([m.weight for m in polarized.model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= scales.min().item() <= scales.max().item() <= 1
