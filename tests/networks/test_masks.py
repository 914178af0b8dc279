"""Masks of torch.nn.utils.prune."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from isometry.networks import masks


def masked_linear() -> nn.Linear:
    layer = nn.Linear(4, 3)
    masks.set_masks(layer, {"weight": torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]])})
    return layer


def test_a_weight_is_set_where_its_mask_keeps_it() -> None:
    layer = masked_linear()
    behind = layer.weight_orig.detach().clone()
    masks.set_parameter(layer, "weight", torch.full((3, 4), 2.0))
    kept = layer.weight_mask.bool()
    assert torch.equal(layer.weight, 2 * layer.weight_mask)
    assert torch.equal(layer(torch.eye(4)) - layer.bias, layer.weight.T)
    assert torch.equal(layer.weight_orig[~kept], behind[~kept])


def test_masked_weights_are_computed_anew_and_can_be_copied() -> None:
    net = nn.Sequential(masked_linear(), nn.Linear(3, 2))
    net(torch.randn(2, 4)).sum().backward()
    with torch.no_grad():
        net[0].weight_orig.add_(1)  # a step of an optimizer
    masks.refresh(net)
    assert torch.equal(net[0].weight, net[0].weight_orig * net[0].weight_mask)
    copy.deepcopy(net)
    assert [name for name, _ in masks.masked_layers(net)] == ["0"]


def test_the_support_is_the_mask_or_what_is_not_zero() -> None:
    layer = masked_linear()
    with torch.no_grad():
        layer.weight_orig[0, 0] = 0
    assert torch.equal(masks.support(layer), layer.weight_mask.bool())
    plain = nn.Linear(2, 2)
    with torch.no_grad():
        plain.weight[0, 0] = 0
    assert masks.support(plain).tolist() == [[False, True], [True, True]]
    nn.init.zeros_(plain.weight)
    assert bool(masks.support(plain).all())


def test_only_masks_count_as_weights_of_a_layers_own() -> None:
    assert not masks.computed_weight(masked_linear())
    assert not masks.computed_weight(nn.Linear(2, 2))
    assert masks.computed_weight(parametrizations.weight_norm(nn.Linear(2, 2)))
    assert masks.computed_weight(parametrizations.orthogonal(nn.Linear(2, 2)))


def test_masks_add_up() -> None:
    layer = masked_linear()
    masks.set_masks(layer, {"weight": torch.tensor([1.0, 0, 1, 0]).expand(3, 4)})
    assert layer.weight_mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0]]
    prune.remove(layer, "weight")
    assert int(layer.weight.count_nonzero()) == 5
