"""Network slimming."""

import pytest
import torch
from torch import nn

from isometry import Slimming, prune
from isometry.pruners.slimming import ScaleL1
from isometry.surgery import mask, trace
from tests.models import normed_conv


def test_slimmings_penalty_is_the_sum_of_all_scales() -> None:
    plain = normed_conv("batch")
    scales = [m.weight for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for scale in scales:
            scale.normal_()
    ScaleL1(0.25).loss(plain).backward()
    for scale in scales:
        torch.testing.assert_close(scale.grad, 0.25 * scale.detach().sign())


def test_slimming_needs_the_scales_of_a_batchnorm() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    with pytest.raises(ValueError, match="Slimming scores units by the scales of their BatchNorm"):
        prune(normed_conv(), Slimming(epochs=0), 0.5, data=data)


def test_slimming_equals_masking() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    half = prune(normed_conv("batch"), Slimming(epochs=0), 0.5, data=data)
    graph = trace(normed_conv("batch"), x)
    chosen = [(f, tuple(half.plan.removed[f.root])) for f in graph.groups]
    torch.testing.assert_close(half.model(x), mask(normed_conv("batch"), chosen).eval()(x))
