"""Receding importances of bounded BatchNorm."""

import copy

import pytest
import torch
from torch import nn

import isometry
from isometry import RecedingBN, convert, networks, prune
from isometry.pruners import receding_penalty
from isometry.pruners.receding import Receding
from tests.models import normed_conv


def test_the_receding_penalty_and_its_gradient_match_the_formula() -> None:
    gamma = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    for shift in (0.0, 3.0):
        p = torch.sigmoid(gamma.detach() + shift)
        value = receding_penalty(gamma, shift)
        assert value.item() == pytest.approx(float((p * (1 - p.log())).sum()), rel=1e-12)
        (found,) = torch.autograd.grad(value, gamma)
        u = gamma.detach() + shift
        expected = nn.functional.softplus(-u) * torch.sigmoid(u) * torch.sigmoid(-u)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_the_receding_penalty_is_steepest_at_the_published_place() -> None:
    window = torch.linspace(-4, 2, 6001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(receding_penalty(window, 0.0), window)
    assert float(slope.max()) == pytest.approx(0.2603, abs=1e-4)
    assert window[slope.argmax()].item() == pytest.approx(-1.177, abs=2e-3)


def test_the_gradient_of_the_penalty_is_finite() -> None:
    gamma = torch.tensor([-1e4, -117.0, -104.0, -97.0, -88.0, 0.0, 50.0, 1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(receding_penalty(gamma, 0.0), gamma)
    assert bool(torch.isfinite(gradient).all())


def test_the_penalty_rises_from_zero_to_one_a_unit() -> None:
    gamma = torch.tensor([-1e4, -117.0, -104.0, -97.0, -88.0, 0.0, 50.0, 1e4], requires_grad=True)
    values = [float(receding_penalty(g[None], 0.0)) for g in gamma.detach()]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)


def test_the_penalty_of_half_precision_is_computed_in_float32() -> None:
    gamma = torch.tensor([-1e4, -117.0, -104.0, -97.0, -88.0, 0.0, 50.0, 1e4], requires_grad=True)
    half = receding_penalty(gamma.detach().bfloat16(), 0.0)
    assert half.dtype == torch.float32


def test_receding_has_the_published_dynamics() -> None:
    """The penalty alone, 400 Nesterov steps at rate 1: strong units stay, weak ones fall."""
    expected = {
        (0.0, 1e-2): (0.72, 0.008, 0.007, 0.006),
        (3.0, 1e-2): (0.881, 0.477, 0.115, 6e-4),
        (3.0, 3e-2): (0.880, 0.414, 2e-4, 1e-4),
        (3.0, 1e-1): (0.879, 1e-4, 0.0, 0.0),
    }
    for (shift, strength), ends in expected.items():
        gamma = torch.tensor([2.0, 0.0, -1.0, -2.0], requires_grad=True)
        optimizer = torch.optim.SGD([gamma], lr=1.0, momentum=0.9, nesterov=True)
        for _ in range(400):
            optimizer.zero_grad()
            (strength * receding_penalty(gamma, shift)).backward()
            optimizer.step()
        assert gamma.detach().sigmoid().tolist() == pytest.approx(ends, rel=0.2, abs=2e-4)


def test_the_presets_are_the_published_ones() -> None:
    assert (RecedingBN.vgg().strength, RecedingBN.vgg().shift) == (1e-3, 3)
    assert (RecedingBN.resnet().strength, RecedingBN.resnet().shift) == (1e-4, 0)


def test_the_penalty_is_the_sum_over_all_scales() -> None:
    model = normed_conv()
    every = torch.cat([m.weight for m in model.modules() if isinstance(m, networks.BoundedBatchNorm2d)])
    assert Receding(0.5, 1.0).loss(model).item() == pytest.approx(0.5 * receding_penalty(every, 1.0).item())


def test_training_makes_importances_bimodal_and_a_third_of_the_units_free(digits: isometry.data.Data) -> None:
    accuracies = {}
    for strength in (0.0, 1e-1):
        pruner = RecedingBN(strength=strength, epochs=25)
        result = prune(normed_conv(), pruner, 0.3, data=digits, progress=False)
        accuracies[strength] = isometry.evaluate(result.model, digits.validation).accuracy
        assert list(result.history["stage"].unique()) == ["before_selection"]
        assert len(result.history) == 25
        assert result.plan.ratio == pytest.approx(0.3, abs=0.04)
    assert accuracies[1e-1] > accuracies[0.0] + 0.1
    assert accuracies[1e-1] > 0.85


def test_pruned_equals_masked_by_sinking_the_importances() -> None:
    model = normed_conv().eval()
    x = torch.randn(5, 1, 8, 8)
    result = prune(model, RecedingBN(epochs=0), 0.5, data=(x, torch.arange(5)))
    with torch.no_grad():
        sunk = sunk_copy(model, result.plan)
    torch.testing.assert_close(result.model(x), sunk(x), rtol=1e-5, atol=1e-7)


def sunk_copy(model: nn.Module, plan: isometry.Plan) -> nn.Module:
    """Sink gamma of every filter that was removed to -1e4."""
    sunk = copy.deepcopy(model)
    for layer, units in plan.removed.items():
        index = int(layer.split(".")[1]) + 1
        sunk.features[index].weight[list(units)] = -1e4
    return sunk


def test_receding_needs_bounded_batchnorm() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    with pytest.raises(ValueError, match=r"RecedingBN scores units .* bounded BatchNorm\. The network has none"):
        prune(normed_conv("batch"), RecedingBN(epochs=0), 0.5, data=data)


def test_converted_networks_can_be_pruned() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    converted = convert(normed_conv("batch"))
    assert prune(converted, RecedingBN(epochs=0), 0.5, data=data).ratio > 0


def test_a_network_that_is_sparse_already_is_pruned_without_data(digits: isometry.data.Data) -> None:
    """Receding in steps that one can look between: convert, train, look, prune."""
    network, pruner = convert(normed_conv("batch")), RecedingBN(epochs=2, strength=1e-2, lr=0.05)
    whole = prune(network, pruner, 0.5, data=digits)
    list(isometry.train(network, digits, **pruner.recipe().arguments()))
    stepped = prune(network, pruner.without_training(), 0.5)
    assert stepped.plan == whole.plan
    assert stepped.history.empty
    for one, other in zip(stepped.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"RecedingBN trains before it removes and got no data"):
        prune(network, pruner, 0.5)
