"""Tracing a network."""

import pytest
import torch

from isometry.surgery import trace
from tests.models import batch_norm_net


def test_frozen_layers_are_traced_too() -> None:
    net = batch_norm_net().train()
    net[0].requires_grad_(False)
    with torch.no_grad():
        graph = trace(net, torch.randn(2, 3, 8, 8))
    assert {f.root for f in graph.groups} == {"0", "3"}


def test_tracing_changes_no_modes_and_flags() -> None:
    net = batch_norm_net().train()
    net[0].requires_grad_(False)
    with torch.no_grad():
        trace(net, torch.randn(2, 3, 8, 8))
    assert all(m.training for m in net.modules())
    assert [p.requires_grad for p in net.parameters()][:3] == [False, False, True]


def test_a_batch_that_the_network_refuses_is_named_without_proposing_it_again() -> None:
    message = r"at inputs of shape \(2, 3, 32, 32\).*it was built for, e\.g\. inputs=torch\.randn\(2, \*shape\)"
    with pytest.raises(ValueError, match=message):
        trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)), torch.randn(2, 3, 32, 32))
