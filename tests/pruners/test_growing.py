"""Penalties that grow until units are zero."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry import TPP, GReg, networks, prune
from isometry.data import Split
from isometry.pruners import PruningContext
from isometry.pruners.growing import GrowingPenalty
from isometry.surgery import trace
from tests.models import Wired, joined, padded_conv

SHORT = {"delta": 0.05, "interval": 2, "stabilize": 60, "zero_out": 5, "batch_size": 64}


def test_diverging_training_is_an_error_that_says_so(dense: nn.Module, digits: isometry.data.Data) -> None:
    with pytest.raises(isometry.pruners.DivergedError, match=r"diverged after \d+ steps .* Lower the learning rate"):
        prune(dense, GReg(**{**SHORT, "lr": 1e6}), 0.5, data=digits)


def test_an_interrupted_pruning_goes_on_bit_for_bit(
    dense: nn.Module, digits: isometry.data.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = GReg(**SHORT, magnitude_ratio=50.0)
    whole = prune(dense, pruner, 0.5, data=digits)
    original = GrowingPenalty.gradients

    def killed(self: GrowingPenalty, step: int) -> None:
        if step == 50:
            raise KeyboardInterrupt
        original(self, step)

    file = tmp_path / "pruning.safetensors"
    monkeypatch.setattr(GrowingPenalty, "gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(dense, pruner, 0.5, data=digits, checkpoint=file)
    monkeypatch.setattr(GrowingPenalty, "gradients", original)
    resumed = prune(dense, pruner, 0.5, data=digits, checkpoint=file)
    pd.testing.assert_frame_equal(whole.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"))
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_pruning_is_refused(
    dense: nn.Module, digits: isometry.data.Data, tmp_path: Path
) -> None:
    pruner, file = GReg(**SHORT, magnitude_ratio=50.0), tmp_path / "pruning.safetensors"
    prune(dense, pruner, 0.5, data=digits, checkpoint=file)
    with pytest.raises(ValueError, match="of another training: it differs in penalty"):
        prune(dense, pruner, 0.6, data=digits, checkpoint=file)
    other_net = networks.build("mlp-7-linear", seed=9, input_shape=(1, 8, 8), widths=(30, 30, 30))
    with pytest.raises(ValueError, match="of another training: it differs in penalty, weights"):
        prune(other_net, pruner, 0.5, data=digits, checkpoint=file)


def test_norms_of_coupled_layers_are_penalized_once() -> None:
    net, x = joined(), torch.randn(4, 3, 5, 5)
    (family,) = [f for f in trace(net, x).groups if f.root == "d"]
    penalty = TPP(stabilize=1000).penalty(
        PruningContext(net, [family], None, 0, False, None), [(family, tuple(range(4)))]
    )
    every = [id(tensor) for layer in penalty.layers for tensor, _ in layer.penalized]
    assert len(every) == len(set(every))
    assert {id(net.na.weight), id(net.ns.weight)} <= set(every)


def test_the_term_of_a_batchnorm_goes_with_the_layer_it_normalizes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(F.relu(m.bn1(m.conv1(x)) + m.bn2(m.conv2(x))).mean((2, 3)))

    # Registered apart from what feeds them.
    parts = {"conv1": padded_conv(3, 8), "conv2": padded_conv(3, 8), "bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)}
    net = Wired(forward, **parts, fc=nn.Linear(8, 5))
    data = Split(torch.randn(8, 3, 6, 6), torch.arange(8) % 5)
    families = [f for f in trace(net, data.inputs[:2]).groups if f.root.startswith("conv")]
    chosen = [(family, tuple(range(family.units // 2))) for family in families]
    penalty = GrowingPenalty(
        isometry.TPP(), PruningContext(net, families, data, 0, False, None, inputs=data.inputs[:2]), chosen
    )
    for layer, norm in zip(penalty.layers, (net.bn1, net.bn2), strict=True):
        assert [id(t) for t, _ in layer.zeroed[2:]] == [id(norm.weight), id(norm.bias)]


def test_frozen_layers_cannot_be_driven_to_zero(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6))
    net.net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"The weight of net\.0 is frozen.*skip='net\.0'"):
        prune(net, TPP(**SHORT), 0.5, data=digits)
    assert prune(net, TPP(**SHORT), 0.5, data=digits, skip="net.0").ratio == 0.5
