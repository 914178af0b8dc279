"""Networks by name: their published sizes, seeds, options."""

from typing import Any

import pytest
import torch
from torch import nn

from isometry import networks
from isometry.networks import size


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mlp-7-linear", 154_010), ("mlp-7-relu", 154_010), ("lenet-5-linear", 61_706), ("lenet-5-relu", 61_706)],
)
def test_networks_have_the_published_size(name: str, parameters: int) -> None:
    net = networks.build(name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert net.input_shape == (1, 32, 32)
    assert any(isinstance(m, nn.ReLU) for m in net.modules()) == name.endswith("relu")


@pytest.mark.parametrize(
    ("name", "classes", "norm", "parameters", "macs"),
    [
        ("vgg-16", 10, "batch", 14_728_266, 313.2e6),
        ("vgg-16", 10, "bounded", 14_724_042, 313.2e6),
        ("vgg-19", 100, "batch", 20_081_188, 398.2e6),
        ("resnet-56", 10, "bounded", 850_986, 125.5e6),
    ],
)
def test_networks_with_either_norm_have_the_published_size(
    name: str, classes: int, norm: str, parameters: int, macs: float
) -> None:
    found = size(networks.build(name, classes, norm=norm), torch.zeros(1, 3, 32, 32))
    assert found.parameters == parameters
    assert found.flops / 2 == pytest.approx(macs, rel=1e-3)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (networks.build("lenet-5-relu", seed=s).conv1.weight for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_names_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'mlp7'; it knows conv-4, lenet-5-linear.*mlp-7-relu"):
        networks.build("mlp7")


def test_unknown_options_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"unknown option width; it takes input_shape, widths"):
        networks.build("mlp-7-relu", width=3)


def test_layers_start_alike_with_either_norm() -> None:
    one, other = (networks.build("conv-4", seed=0, norm=norm) for norm in ("batch", "bounded"))
    assert all(torch.equal(one.features[i].weight, other.features[i].weight) for i in (0, 3, 7, 10))


def test_unknown_norms_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match="norm='group'; it knows 'batch', 'bounded', 'none'"):
        networks.build("conv-4", norm="group")


@pytest.mark.parametrize(
    "options", [{"classes": 0}, {"classes": "a"}, {"seed": "a"}, {"input_shape": (-1, 8, 8)}, {"input_shape": 8.5}]
)
def test_sizes_that_are_no_positive_whole_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=rf"^networks\.build\(\) got {next(iter(options))}=.*; it takes .*whole number.*, e\.g\. "
    ):
        networks.build("mlp-7-relu", **options)
