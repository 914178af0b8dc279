import pytest
import torch
from conftest import batch_norm_net
from torch import nn

from isometry import networks
from isometry.jacobian import Jacobian, frozen


def slow_jacobians(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Per-sample Jacobians in float64 by torch.autograd.functional, one sample at a time: [B, m, n]."""
    model = model.double().eval()
    rows = []
    for sample in x.double():
        j = torch.autograd.functional.jacobian(lambda s: model(s[None])[0].flatten(), sample)
        rows.append(j.reshape(j.shape[0], -1))
    return torch.stack(rows)


NETS = {
    "mlp": (lambda: networks.build("mlp-7-relu", seed=0, input_shape=(1, 6, 6), widths=(20, 15)), (1, 6, 6)),
    "lenet": (lambda: networks.build("lenet-5-relu", seed=0), (1, 32, 32)),
    "batchnorm": (batch_norm_net, (3, 8, 8)),
    "decoder": (lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 50)), (4,)),
    "in-place": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)), (6,)),
}


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_the_slow_jacobian(name: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build().double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    truth = slow_jacobians(net, x)
    with frozen(net):
        jacobian = Jacobian(net, x)
        assert jacobian.shape == tuple(truth.shape)
        v, u = torch.randn(3, 2, truth.shape[2]).double(), torch.randn(3, 2, truth.shape[1]).double()
        pushed, pulled = jacobian.matvec(v), jacobian.rmatvec(u)
    torch.testing.assert_close(pushed, v @ truth.mT)
    torch.testing.assert_close(pulled, u @ truth)
    torch.testing.assert_close((pushed * u).sum(), (v * pulled).sum())
    assert jacobian.products == 4


def test_a_linear_nets_jacobian_is_the_weight_product_at_any_input() -> None:
    net = networks.build("mlp-7-linear", seed=1).double()
    product = torch.eye(1024, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            product = module.weight.detach() @ product
    with frozen(net):
        for scale in (0, 1, 100):
            found = Jacobian(net, scale * torch.randn(2, 1, 32, 32).double()).dense()
            torch.testing.assert_close(found, product.expand(2, -1, -1))
