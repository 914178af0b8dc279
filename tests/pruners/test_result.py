"""What pruning returns, in words."""

from isometry import L1, networks, prune


def test_layers_that_are_left_alone_for_one_reason_are_shortened() -> None:
    result = prune(networks.build("resnet-56", seed=0), L1(), 0.5, layers="layer1.0.conv1")
    (line,) = [line for line in str(result).splitlines() if line.startswith("left alone") and "not requested" in line]
    assert line.startswith("left alone: layer1.1.conv1, layer1.2.conv1 and ")
    assert line.endswith(" more: not requested")
