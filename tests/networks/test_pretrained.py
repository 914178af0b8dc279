"""Weights by name or file."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from isometry import data, evaluate, networks
from isometry.files import file_digest


@pytest.mark.data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
def test_the_given_weights_have_the_given_accuracy(real_data, depth: int, accuracy: float) -> None:
    net = networks.build(f"resnet-{depth}", weights=real_data / "weights" / f"resnet{depth}_cifar10.safetensors")
    cifar = data.load("cifar10", real_data, normalization=data.IMAGENET)
    assert evaluate(net, cifar.test).accuracy == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
def test_the_weights_of_another_network_are_refused(real_data, depth: int, accuracy: float) -> None:
    with pytest.raises(ValueError, match="the weights of another network"):
        networks.build("resnet-32", weights=real_data / "weights" / f"resnet{depth}_cifar10.safetensors")


def test_absent_weights_are_named_with_where_they_are_looked_for(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"resnet56_cifar10\.safetensors is looked for in \$ISOMETRY_DATA/weights"
    ):
        networks.build("resnet-56", weights="cifar10")


def test_networks_without_known_weights_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"known name \(none\)"):
        networks.build("vgg-16", weights="cifar10")


def test_weights_are_known_by_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path))
    net = networks.build("resnet-20", seed=1)
    (tmp_path / "weights").mkdir()
    save_file(net.state_dict(), tmp_path / "weights" / "resnet20_cifar10.safetensors")
    with pytest.raises(
        ValueError, match=r"resnet20_cifar10\.safetensors, which is not the published file.*by their path"
    ):
        networks.build("resnet-20", weights="cifar10")
    key = "resnet-20", "cifar10"
    digest = file_digest(tmp_path / "weights" / "resnet20_cifar10.safetensors")
    monkeypatch.setitem(networks.PRETRAINED, key, replace(networks.PRETRAINED[key], sha256=digest))
    again = networks.build("resnet-20", weights="cifar10")
    assert torch.equal(again.linear.weight, net.linear.weight)
    assert networks.PRETRAINED["resnet-20", "cifar10"].normalization == data.IMAGENET


def test_weights_that_cannot_be_read_name_their_file(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"weights\.pth is no whole safetensors file.*safetensors\.torch\.save_file"):
        networks.build("resnet-20", weights=file)


def test_weights_of_other_shapes_name_their_file_and_the_tensor(tmp_path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(networks.build("resnet-20", 100).state_dict(), file)
    with pytest.raises(ValueError, match=r"weights\.safetensors: the shape of linear\.bias is \(10,\).*\(100,\)"):
        networks.build("resnet-20", weights=file)


def test_weights_that_are_missing_or_unknown_name_the_tensor(tmp_path) -> None:
    file = tmp_path / "weights.safetensors"
    state = networks.build("resnet-20").state_dict()
    save_file({name: tensor for name, tensor in state.items() if name != "bn1.bias"}, file)
    with pytest.raises(ValueError, match=r"bn1\.bias is \(16,\) in resnet-20 and none in the file"):
        networks.build("resnet-20", weights=file)
    save_file({**state, "extra": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"extra is none in resnet-20 and \(2,\) in the file"):
        networks.build("resnet-20", weights=file)
