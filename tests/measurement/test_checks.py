"""Networks without a Jacobian a sample are refused, and the module to blame is named."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import Report, measure, networks
from tests.models import Wired


class Mixes(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(6, 6), layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.first(x))
        return out[0] if isinstance(out, tuple) else out


class BatchSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm1d(6, track_running_stats=False), r"layer \(BatchNorm1d\)"),
        (BatchSoftmax(), r"layer \(BatchSoftmax\)"),
    ],
    ids=["batch statistics", "softmax over samples"],
)
def test_a_batch_coupled_net_is_refused_by_name(layer: nn.Module, named: str) -> None:
    with pytest.raises(ValueError, match=named + " mixes the samples"):
        measure(Mixes(layer), torch.randn(8, 6))


def test_running_statistics_do_not_couple_a_batch() -> None:
    assert measure(Mixes(nn.BatchNorm1d(6)).train(), torch.randn(8, 6)).mean_jsv > 0


def test_nan_names_the_first_module_to_produce_it() -> None:
    net = networks.build("lenet-5-relu", seed=0)
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"output of conv2 \(Conv2d\), the first to"):
        measure(net, torch.randn(2, 1, 32, 32))


def test_a_derivative_that_is_not_finite_is_refused() -> None:

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()

    with pytest.raises(ValueError, match="no derivative at these inputs"):
        measure(Root(), torch.zeros(2, 3))


def test_a_mask_of_infinity_is_no_error() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((3, 3), -torch.inf), diagonal=1)
        return m.head(m.block(x, src_mask=mask))

    net = Wired(forward, block=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head=nn.Linear(6, 2))
    assert measure(net, torch.randn(4, 3, 6)).mean_jsv > 0


def test_a_mask_of_infinity_is_not_blamed_for_nan_elsewhere() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((3, 3), -torch.inf), diagonal=1)
        return m.head(m.block(x, src_mask=mask))

    net = Wired(forward, block=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head=nn.Linear(6, 2))
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"output of head \(Linear\)"):
        measure(net, torch.randn(4, 3, 6))


def test_samples_that_meet_without_a_gradient_are_found() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x / x.detach().abs().max())

    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        measure(Scaled(), torch.randn(7, 6))
    assert measure(Scaled(), torch.randn(1, 6)).mean_jsv > 0


FLAT = {
    "round": torch.round,
    "sign": torch.sign,
    "argmax": lambda z: z.argmax(1, keepdim=True).float(),
    "one-hot": lambda z: F.one_hot((z - z.mean()).argmax(1), 4).float(),
}


@pytest.mark.parametrize("name", FLAT)
def test_operations_without_a_gradient_are_refused(name: str) -> None:
    net = Wired(lambda m, x: FLAT[name](m.a(x)), a=nn.Linear(6, 4))
    with pytest.raises(ValueError, match=name if name in ("round", "sign") else "not differentiable"):
        measure(net, torch.randn(5, 6))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_models_are_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 4))
    net[0] = torch.ao.nn.quantized.dynamic.Linear(6, 4)
    with pytest.raises(ValueError, match=r"cannot differentiate 0 \(Linear\), which is quantized"):
        measure(net, torch.randn(3, 6))


class RandomScale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.round(self.a(x).detach().numpy() * 8))


def test_inference_mode_is_refused() -> None:
    tall = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 64))
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        measure(tall)


def attention() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=False))


def broken(name: str) -> nn.Module:
    net = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
    with torch.no_grad():
        net.get_parameter(name).view(-1)[0] = float("nan")
    return net


REFUSED = {
    "random": (lambda x: measure(nn.Sequential(nn.Linear(6, 4), RandomScale()), x), r"1 \(RandomScale\) is random or keeps state in eval mode"),
    "keeps state": (lambda x: measure(nn.Sequential(nn.Linear(6, 4), Counts()), x), r"1 \(Counts\) is random or keeps state"),
    "leaves torch": (lambda x: measure(Rounds(), x), "carry no gradient: an operation of the model is not differentiable"),
    "time first": (lambda x: measure(nn.LSTM(6, 6), x, output=0), r"the model \(LSTM\) mixes the samples.*batch_first=True"),
    "attention over samples": (lambda x: measure(attention(), x), "self_attn .MultiheadAttention. mixes.*batch_first=True"),
    "nan in attention": (lambda x: measure(broken("self_attn.in_proj_weight"), x), "self_attn .Multihead.*self_attn.in_proj"),
    "nan behind attention": (lambda x: measure(broken("linear1.weight"), x), "linear1 .Linear.*linear1.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_module_to_blame_is_named(call: Callable[[Tensor], Report], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 3, 6))


class Centered(nn.Module):
    """Subtracts the batch's mean, once there are more than four samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0).detach() if len(x) > 4 else x


class Crowded(nn.Module):
    """Takes no more than five samples of a batch; the others come out as zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(len(x)) < 5)[:, None]


class Gate(nn.Module):
    """Doubles its outputs where the sum of a batch of more than two is far from 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if len(x) > 2 and x.sum().abs() > 1e-3 else 1)


@pytest.mark.parametrize("layer", [Centered(), Crowded(), Gate()], ids=lambda layer: type(layer).__name__)
def test_samples_that_meet_in_larger_batches_only_are_found(layer: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 4))
    with pytest.raises(
        ValueError, match=rf"measure\(\) found that 1 \({type(layer).__name__}\) mixes the samples of a batch"
    ):
        measure(net, torch.randn(40, 6) + 1)


def test_jacobians_of_tiny_size_have_right_derivatives() -> None:
    net = nn.Sequential(nn.Linear(150, 150), nn.Tanh(), nn.Linear(150, 140))
    x = torch.randn(4, 150)
    large = measure(net, x, method="krylov").mean_jsv
    with torch.no_grad():
        net[2].weight.mul_(1e-25)
    assert measure(net, x, method="krylov").mean_jsv == pytest.approx(1e-25 * large, rel=1e-3)


@pytest.mark.parametrize("samples", [8, 64, 200])
@pytest.mark.parametrize("seed", range(4))
def test_a_gate_that_opens_by_the_sum_of_a_batch_is_found(samples: int, seed: int) -> None:
    torch.manual_seed(seed)
    net = Wired(lambda m, x: m.a(x) * (2 if x.sum() > 0 else 1), a=nn.Linear(6, 4))
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        measure(net, torch.randn(samples, 6))
