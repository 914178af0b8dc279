"""Residual networks."""

import pytest
import torch

from isometry import networks


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet-20", 10, 269_722),
        ("resnet-56", 10, 853_018),
        ("resnet-110", 10, 1_727_962),
        ("resnet-50", 1000, 25_557_032),
    ],
)
def test_residual_networks_have_the_published_size(name: str, classes: int, parameters: int) -> None:
    net = networks.build(name, classes, input_shape=(3, 32, 32)).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


def test_resnet_50_has_the_names_and_shapes_of_torchvision() -> None:
    """So that the published weights load: the layout of torchvision's resnet50, written out."""
    expected = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 2048), "fc.bias": (1000,)}

    def norm(name: str, width: int) -> None:
        expected.update({f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")})
        expected[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    before = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            expected[f"{name}.conv1.weight"] = (width, before, 1, 1)
            expected[f"{name}.conv2.weight"] = (width, width, 3, 3)
            expected[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            norm(f"{name}.bn1", width)
            norm(f"{name}.bn2", width)
            norm(f"{name}.bn3", 4 * width)
            if block == 0:
                expected[f"{name}.downsample.0.weight"] = (4 * width, before, 1, 1)
                norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    net = networks.build("resnet-50", 1000, seed=0)
    assert {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == expected
    assert net.layer2[0].conv2.stride == (2, 2)  # the stride is in the 3x3 convolution
    # He initialization, fan out: the variance of a weight is 2 / (units x kernel size).
    weight = net.layer3[1].conv2.weight
    assert float(weight.detach().var()) == pytest.approx(2 / (256 * 9), rel=0.02)
