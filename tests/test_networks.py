import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isometry import data, evaluate, networks
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


def test_the_linear_mlp_is_affine() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(9,), widths=(8, 7)).double()
    x, y = torch.randn(2, 5, 9, dtype=torch.float64)
    torch.testing.assert_close(net(x + y) + net(torch.zeros_like(x)), net(x) + net(y))
    assert [n for n, m in net.named_modules() if isinstance(m, nn.Linear)] == ["net.0", "net.2", "net.4"]


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (networks.build("lenet-5-relu", seed=s).conv1.weight for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'mlp7'; it knows conv-4, lenet-5-linear.*mlp-7-relu"):
        networks.build("mlp7")
    with pytest.raises(ValueError, match=r"unknown option width; it takes input_shape, widths"):
        networks.build("mlp-7-relu", width=3)
    with pytest.raises(ValueError, match=r"input_shape=\(1, 28, 28\)"):
        networks.build("lenet-5-relu", input_shape=(1, 28, 28))


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
    if name.startswith("vgg"):
        with pytest.raises(ValueError, match=r"input_shape=\(3, 64, 64\); its five stages take \(channels, 32, 32\)"):
            networks.build(name, input_shape=(3, 64, 64))


@pytest.mark.data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
def test_the_given_weights_have_the_given_accuracy(real_data, depth: int, accuracy: float) -> None:
    net = networks.build(f"resnet-{depth}", weights=real_data / "weights" / f"resnet{depth}_cifar10.safetensors")
    cifar = data.load("cifar10", real_data, normalisation=data.IMAGENET)
    assert evaluate(net, cifar.test).accuracy == pytest.approx(accuracy, abs=1e-9)
    with pytest.raises(ValueError, match="the weights of another network"):
        networks.build("resnet-32", weights=real_data / "weights" / f"resnet{depth}_cifar10.safetensors")


def test_weights_are_known_by_name_and_absent_ones_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOMETRY_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"resnet56_cifar10\.safetensors is looked for in \$ISOMETRY_DATA/weights"
    ):
        networks.build("resnet-56", weights="cifar10")
    with pytest.raises(FileNotFoundError, match=r"known name \(none\)"):
        networks.build("vgg-16", weights="cifar10")
    net = networks.build("resnet-20", seed=1)
    (tmp_path / "weights").mkdir()
    save_file(net.state_dict(), tmp_path / "weights" / "resnet20_cifar10.safetensors")
    again = networks.build("resnet-20", weights="cifar10")
    assert torch.equal(again.linear.weight, net.linear.weight)
    assert networks.PRETRAINED["resnet-20", "cifar10"].normalisation == data.IMAGENET
