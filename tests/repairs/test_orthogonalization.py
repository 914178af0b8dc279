"""OrthP, the published repair of any network."""

import pytest
import torch
from torch import nn

from isometry import Magnitude, networks, orthogonalize, prune
from isometry.spectra import orthogonal


def test_every_weight_becomes_orthogonal_on_any_net() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    result = orthogonalize(net, gain=2.0)
    for module in result.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            values = torch.linalg.svdvals(module.weight.flatten(1).double())
            torch.testing.assert_close(values, torch.full_like(values, 2.0), rtol=1e-5, atol=0)
    assert torch.equal(result.conv1.bias, net.conv1.bias)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="found no convolution or linear layer"):
        orthogonalize(nn.ReLU())


@pytest.mark.parametrize("made", ["masks", "zeros"])
def test_the_zeros_of_sparse_weights_stay(made: str) -> None:
    net = networks.build("lenet-5-relu", seed=0)
    masked = prune(net, Magnitude(), {"*": 0.9, "fc2": 0.0}).model
    layers = [module for module in masked.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in layers[:-1] if made == "zeros" else ():
        nn.utils.prune.remove(layer, "weight")
    result = orthogonalize(masked, gain=2.0)
    results = [module for module in result.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for before, after in zip(layers, results, strict=True):
        assert torch.equal(before.weight == 0, after.weight == 0)
        far, near = (orthogonal.distance(layer.weight.detach().flatten(1)) for layer in (before, after))
        assert orthogonal.distance(after.weight.detach().flatten(1) / 2) < 0.7 * far, (far, near)
    torch.testing.assert_close(result.fc2.weight, 2 * orthogonal.qr(net.fc2.weight.detach()))
    assert torch.isfinite(result(torch.randn(2, 1, 32, 32))).all()


def test_a_weight_computed_from_others_is_refused_with_the_call_that_folds_it() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"orthogonalize\(\) cannot set the weight of 0 .*remove_parametrizations\(model.0"
    ):
        orthogonalize(net)
