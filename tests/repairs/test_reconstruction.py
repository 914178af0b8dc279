"""Reconstruction: what the dense network gives comes back, as far as the widths allow."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import isometry
from isometry import L1, networks, prune, repair
from isometry.data import Split
from isometry.repairs import repair_by_name
from tests import architectures, models
from tests.models import Wired, cbr, lively


def error(net: nn.Module, reference: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net(x) - reference(x)).norm() / reference(x).norm())


def with_dependent_units(net: nn.Sequential) -> nn.Sequential:
    """Make the second half of the units of layers followed by a ReLU a tenth of the first half."""
    net = lively(net)
    with torch.no_grad():
        for layer, *following in zip(net, net[1:], [*net[2:], nn.Identity()], strict=False):
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not any(isinstance(m, nn.ReLU) for m in following):
                continue
            half = len(layer.weight) // 2
            layer.weight[half:] = layer.weight[:half] / 10
            if layer.bias is not None:
                layer.bias[half:] = layer.bias[:half] / 10
            if isinstance(norm := following[0], nn.BatchNorm2d):
                for tensor in (norm.running_mean, norm.bias):
                    tensor[half:] = tensor[:half] / 10
                for tensor in (norm.running_var, norm.weight):
                    tensor[half:] = tensor[:half]
    return net


def conv(before: int, after: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)


DEPENDENT: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
    "convolutions": (
        lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 25, 3)),
        (2, 5, 5),
    ),
    "BatchNorm": (
        lambda: nn.Sequential(
            conv(2, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            conv(6, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ),
        (2, 5, 5),
    ),
}  # fmt: skip

DEPENDENT_LAYERS = {"mlp": ["0", "2"], "convolutions": ["0", "2"], "BatchNorm": ["0", "3"]}


@pytest.mark.parametrize("name", DEPENDENT)
def test_units_that_depend_on_those_kept_are_recovered_exactly(name: str) -> None:
    torch.manual_seed(0)
    build, shape = DEPENDENT[name]
    net = with_dependent_units(build())
    x, y = torch.randn(2, 400, *shape, dtype=torch.float64)
    pruned = prune(net, L1(), 0.5, layers=DEPENDENT_LAYERS[name], inputs=x[:2]).model
    repaired = repair(pruned, reference=net, data=x, ridge=0.0)
    assert error(repaired, net, y) < 1e-6 < 0.01 < error(pruned, net, y)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shortcut": (models.ShortcutResidual, (3, 8, 8)),
    "residual without statistics": (models.SmallResidual, (3, 8, 8)),
    "depthwise": (models.InvertedResidual, (3, 8, 8)),
    "concatenation": (models.DenselyConnected, (3, 8, 8)),
    "squeeze-excite": (models.SqueezeExcite, (3, 8, 8)),
    "groups": (models.Grouped, (3, 8, 8)),
    "ViT": (models.ViT, (3, 8, 8)),
    "encoder layer": architectures.WORKS["encoder layer"],
    "1d": architectures.WORKS["conv 1d"],
    "LeNet": (models.lenet, (1, 32, 32)),
    "conv-4": (models.normed_conv, (1, 8, 8)),
    "ResNet": (lambda: networks.build("resnet-20", seed=0, input_shape=(3, 8, 8)), (3, 8, 8)),
    "VGG": (
        lambda: nn.Sequential(
            cbr(3, 8), cbr(8, 8), nn.MaxPool2d(2), cbr(8, 12), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4)
        ),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_outputs_of_new_inputs_come_nearer_to_those_of_the_dense_network(name: str) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    net = lively(build())
    x, y = torch.randn(2, 150, *shape, dtype=torch.float64)
    attentions = [name for name, module in net.named_modules() if isinstance(module, nn.MultiheadAttention)]
    pruned = prune(net, L1(), 0.3, inputs=x[:2], skip=attentions).model  # their output projections cannot be solved for
    before = error(pruned, net, y)
    for options in ({}, {"downstream": False}, {"downstream": False, "match_sums": False}):
        assert error(repair(pruned, reference=net, data=x, **options), net, y) < 0.9 * before, options


def test_a_sum_is_matched_although_its_other_part_has_drifted() -> None:
    torch.manual_seed(0)

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.back(F.relu(net.inner(x))) + net.short(x))

    net = Wired(
        forward, inner=nn.Linear(4, 6), back=nn.Linear(6, 4), short=nn.Linear(4, 4), head=nn.Linear(4, 3)
    ).double()
    with torch.no_grad():
        net.inner.weight[3:], net.inner.bias[3:] = net.inner.weight[:3] / 10, net.inner.bias[:3] / 10
    x = torch.randn(100, 4, dtype=torch.float64)
    pruned = prune(net, L1(), 0.5, layers="inner", inputs=x[:2]).model
    with torch.no_grad():
        pruned.short.bias.add_(3)
    options: dict[str, Any] = {"reference": net, "data": x, "ridge": 0.0, "downstream": False}
    assert error(repair(pruned, **options), net, x) < 1e-6
    assert error(repair(pruned, **options, match_sums=False), net, x) > 0.1


def test_both_parts_of_a_sum_may_be_solved_for() -> None:
    torch.manual_seed(0)
    net = lively(models.ShortcutResidual())
    x = torch.randn(60, 3, 8, 8, dtype=torch.float64)
    pruned = prune(net, L1(), 0.5, layers=["stem.0", "a1"], inputs=x[:2]).model
    assert error(repair(pruned, reference=net, data=x), net, x) < 0.5 * error(pruned, net, x)


def test_weights_that_are_zero_stay_zero() -> None:
    torch.manual_seed(0)
    net = lively(models.normed_conv("batch"))
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for layer in masked.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight *= layer.weight.abs() > layer.weight.abs().quantile(0.6)
    x, y = torch.randn(2, 200, 1, 8, 8, dtype=torch.float64)
    repaired = repair(masked, reference=net, data=x)
    assert error(repaired, net, y) < 0.7 * error(masked, net, y)
    for before, after in zip(masked.parameters(), repaired.parameters(), strict=True):
        if before.ndim > 1:
            assert torch.equal(before == 0, after == 0)


def test_masks_stay_and_hide_what_they_hid() -> None:
    torch.manual_seed(0)
    net = lively(models.normed_conv("batch"))
    x, y = torch.randn(2, 200, 1, 8, 8, dtype=torch.float64)
    masked = prune(net, isometry.Magnitude(), 0.6, inputs=x[:2]).model
    plain = copy.deepcopy(masked)
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.utils.prune.remove(layer, "weight")
    repaired, expected = (repair(model, reference=net, data=x) for model in (masked, plain))
    torch.testing.assert_close(repaired(y), expected(y))
    assert repaired.state_dict().keys() == masked.state_dict().keys()
    for before, after in zip(masked.modules(), repaired.modules(), strict=True):
        if isinstance(before, nn.Conv2d | nn.Linear):
            assert torch.equal(before.weight == 0, after.weight == 0)
            assert torch.equal(before.weight_orig[before.weight_mask == 0], after.weight_orig[before.weight_mask == 0])


def test_a_network_trained_since_is_matched_by_its_outputs(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(32, 32))
    list(isometry.train(net, digits, lr=0.05, epochs=5))
    pruned = prune(net, L1(), 0.5).model
    list(isometry.train(pruned, digits, lr=0.01, epochs=1))
    moved = repair(pruned, reference=net, data=digits)
    assert error(moved, net, digits.test.inputs) < error(pruned, net, digits.test.inputs)


def test_arguments_and_the_global_generator_are_left_alone() -> None:
    net = lively(models.ShortcutResidual()).train()
    x = torch.randn(30, 3, 8, 8, dtype=torch.float64)
    pruned = prune(net, L1(), 0.5, inputs=x[:2]).model.train()
    states, kept = [copy.deepcopy(m.state_dict()) for m in (net, pruned)], x.clone()
    generator = torch.get_rng_state()
    repaired = repair(pruned, reference=net, data=x)
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(x, kept)
    for state, model in zip(states, (net, pruned), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(
        module.training and not module._forward_hooks and not module._forward_pre_hooks for module in repaired.modules()
    )
    assert all(parameter.requires_grad for parameter in repaired.parameters())
    again = repair(pruned, reference=net, data=x)
    assert all(torch.equal(a, b) for a, b in zip(repaired.parameters(), again.parameters(), strict=True))


def test_nothing_changes_where_nothing_was_removed() -> None:
    net = lively(models.ShortcutResidual())
    repaired = repair(net, reference=net, data=torch.randn(8, 3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), repaired.parameters(), strict=True))


def test_data_are_tensors_pairs_splits_sets_or_batches(digits: isometry.data.Data) -> None:
    net = models.digits_mlp()
    pruned = prune(net, L1(), 0.5).model
    x, y = digits.train
    loader = DataLoader(TensorDataset(x, y), batch_size=100)
    sources = [x, (x, y), Split(x, y), digits, loader, [x[:700], x[700:]]]
    weights = [models.flat_weights(repair(pruned, reference=net, data=source, samples=2000)) for source in sources]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    few = repair(pruned, reference=net, data=loader, samples=150)
    assert torch.equal(models.flat_weights(few), models.flat_weights(repair(pruned, reference=net, data=x[:150])))


def test_it_is_found_by_its_name(digits: isometry.data.Data) -> None:
    net = models.digits_mlp()
    pruned = prune(net, L1(), 0.5).model
    named = repair_by_name("reconstruct")(pruned, reference=net, data=digits, seed=3)
    direct = repair(pruned, reference=net, data=digits, seed=3)
    assert torch.equal(models.flat_weights(named), models.flat_weights(direct))
    with pytest.raises(ValueError, match=r"repair\(\) got no reference.*e\.g\."):
        repair_by_name("reconstruct")(pruned, data=digits)


def test_autocast_of_the_caller_changes_nothing() -> None:
    net = models.lenet().eval()
    x = torch.randn(20, *net.input_shape)
    pruned = prune(net, L1(), 0.5, inputs=x).model
    with torch.autocast("cpu", torch.bfloat16):
        found = repair(pruned, reference=net, data=x)
    assert torch.equal(models.flat_weights(found), models.flat_weights(repair(pruned, reference=net, data=x)))


def test_a_mask_on_a_bias_keeps_what_is_solved_for() -> None:
    net = models.lenet().eval()
    x = torch.randn(20, *net.input_shape)
    pruned = prune(net, L1(), 0.5, inputs=x).model
    expected = repair(pruned, reference=net, data=x)(x)
    for layer in pruned.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.utils.prune.identity(layer, "bias")
    torch.testing.assert_close(repair(pruned, reference=net, data=x)(x), expected)
