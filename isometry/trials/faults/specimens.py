"""Small networks of many kinds, for experiments on what may go wrong with any of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from isometry.networks import build

__all__ = ["SPECIMENS", "Specimen"]

_VECTOR, _IMAGE, _SERIES, _TOKENS = (6,), (2, 6, 6), (2, 8), (5, 8)


class Specimen(NamedTuple):
    """A kind of network.

    Attributes:
        build: returns a new one, with weights from torch's global generator.
        shape: of one input.
        options: what `measure` needs to be told of it.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = _VECTOR
    options: dict[str, Any] = {}  # noqa: RUF012

    def make(self) -> tuple[nn.Module, Tensor]:
        """Return the network with the weights of seed 0, in eval mode, and three inputs [3, *shape]."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = self.build().eval()
            first = next((p for p in model.parameters() if p.is_floating_point()), None)
            return model, torch.randn(3, *self.shape, dtype=None if first is None else first.dtype)


class _Wired(nn.Module):
    """Modules by name, a buffer, and a function of this module and its inputs."""

    def __init__(self, wiring: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        self.register_buffer("count", torch.zeros(()))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.wiring(self, *inputs)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def _chain(width: int, *modules: Callable[[], nn.Module], shape: tuple[int, ...] = _VECTOR) -> Specimen:
    """Return modules in sequence, of `width` outputs, and a linear layer of three."""
    return Specimen(lambda: nn.Sequential(*(m() for m in modules), nn.Flatten(), nn.Linear(width, 3)), shape)


def _wired(
    wiring: Callable[..., Any],
    shape: tuple[int, ...] = _VECTOR,
    options: dict[str, Any] | None = None,
    **modules: Callable[[], nn.Module],
) -> Specimen:
    return Specimen(lambda: _Wired(wiring, **{name: m() for name, m in modules.items()}), shape, options or {})


def _linear(before: int = 6, after: int = 8, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(before, after, **options)


def _conv(after: int = 4, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(2, after, 3, padding=1, **options)


def _tied() -> nn.Module:
    first, last = nn.Linear(6, 6), nn.Linear(6, 6)
    last.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), last)


def _masked() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def _attention(module: Any, x: Tensor) -> Tensor:
    return module.head(module.attention(x, x, x, need_weights=False)[0].mean(1))


def _energy(module: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(module.layer(x).square().sum(), x, create_graph=True)[0]


def _counted_anew(module: Any, x: Tensor) -> Tensor:
    module.count = module.count + 1
    return module.layer(x)


def _counted_in_place(module: Any, x: Tensor) -> Tensor:
    module.count.add_(1)
    return module.layer(x)


def _counted_unseen(module: Any, x: Tensor) -> Tensor:
    h = module.layer(x)
    F.batch_norm(h.detach(), module.norm.running_mean, module.norm.running_var, training=True)
    return h


def _drawing(module: Any, x: Tensor) -> Tensor:
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(2)
    return module.layer(x)


def _normalizing(module: Any, x: Tensor) -> Tensor:
    return module.layer(x.sub_(0.5).div_(0.25))


def _dropped(module: Any, x: Tensor) -> Tensor:
    return module.layer(F.dropout(x, 0.5, module.training))


_TRANSFORMER: Callable[..., nn.Module] = nn.TransformerEncoderLayer
SPECIMENS: dict[str, Specimen] = {
    "linear MLP": Specimen(lambda: build("mlp-7-linear", input_shape=(1, 6, 6), widths=(12, 12)), (1, 6, 6)),
    "ReLU MLP": Specimen(lambda: build("mlp-7-relu", input_shape=(1, 6, 6), widths=(12, 12)), (1, 6, 6)),
    "LeNet-5": Specimen(lambda: build("lenet-5-relu"), (1, 32, 32)),
    "ConvNet": Specimen(lambda: build("conv-4", input_shape=(1, 8, 8), widths=(4, 4, 6, 6)), (1, 8, 8)),
    "bounded BatchNorm": Specimen(
        lambda: build("conv-4", input_shape=(1, 8, 8), widths=(4, 4, 6, 6), norm="bounded"), (1, 8, 8)
    ),
    "ResNet-20": Specimen(lambda: build("resnet-20", input_shape=(3, 8, 8)), (3, 8, 8)),
    "GELU": _chain(8, _linear(), nn.GELU),
    "PReLU": _chain(8, _linear(), nn.PReLU),
    "RReLU": _chain(8, _linear(), nn.RReLU),
    "GLU": _chain(4, _linear(), nn.GLU),
    "ReLU in place": _chain(8, _linear(), lambda: nn.ReLU(inplace=True)),
    "ReLU in place at the input": _chain(6, lambda: nn.ReLU(inplace=True)),
    "BatchNorm1d": _chain(8, _linear(), lambda: nn.BatchNorm1d(8), nn.ReLU),
    "BatchNorm2d": _chain(144, _conv(), lambda: nn.BatchNorm2d(4), nn.ReLU, shape=_IMAGE),
    "BatchNorm without statistics": _chain(8, _linear(), lambda: nn.BatchNorm1d(8, track_running_stats=False)),
    "LayerNorm": _chain(8, _linear(), lambda: nn.LayerNorm(8), nn.Tanh),
    "GroupNorm": _chain(144, _conv(), lambda: nn.GroupNorm(2, 4), shape=_IMAGE),
    "InstanceNorm with statistics": _chain(
        144, _conv(), lambda: nn.InstanceNorm2d(4, track_running_stats=True), shape=_IMAGE
    ),
    "LocalResponseNorm": _chain(144, _conv(), lambda: nn.LocalResponseNorm(2), shape=_IMAGE),
    "Dropout": _chain(8, _linear(), nn.Dropout, nn.ReLU),
    "Dropout2d": _chain(144, _conv(), nn.Dropout2d, shape=_IMAGE),
    "AlphaDropout": _chain(8, _linear(), nn.SELU, nn.AlphaDropout),
    "functional dropout": _wired(_dropped, layer=_linear()),
    "Conv1d": _chain(24, lambda: nn.Conv1d(2, 4, 3), nn.ReLU, shape=_SERIES),
    "Conv3d": _chain(24, lambda: nn.Conv3d(1, 3, 3), lambda: nn.BatchNorm3d(3), shape=(1, 4, 4, 4)),
    "transposed convolution": _chain(256, lambda: nn.ConvTranspose2d(2, 4, 3), nn.ReLU, shape=_IMAGE),
    "grouped convolution": _chain(144, _conv(groups=2), nn.ReLU, shape=_IMAGE),
    "circular padding": _chain(144, _conv(padding_mode="circular"), nn.ReLU, shape=_IMAGE),
    "pooling": _chain(16, _conv(), lambda: nn.MaxPool2d(2), lambda: nn.AdaptiveAvgPool2d(2), shape=_IMAGE),
    "random pooling": _chain(36, _conv(), lambda: nn.FractionalMaxPool2d(2, 3), shape=_IMAGE),
    "LSTM": _wired(lambda m, x: m.head(m.cell(x)[0][:, -1]), _TOKENS, cell=lambda: nn.LSTM(8, 5, batch_first=True), head=_linear(5, 3)),
    "GRU": _wired(lambda m, x: m.head(m.cell(x)[1][0]), _TOKENS, cell=lambda: nn.GRU(8, 5, batch_first=True), head=_linear(5, 3)),
    "attention": _wired(_attention, _TOKENS, attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True), head=_linear(8, 3)),
    "transformer layer": _chain(40, lambda: _TRANSFORMER(8, 2, 16, batch_first=True), shape=_TOKENS),
    "weight normalization": _chain(8, lambda: parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU),
    "spectral normalization": _chain(8, lambda: parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU),
    "spectral normalization by hook": _chain(8, lambda: nn.utils.spectral_norm(nn.Linear(6, 8)), nn.ReLU),
    "masked weights": Specimen(_masked),
    "shared module": _wired(lambda m, x: m.layer(m.layer(x).relu()), layer=_linear(6, 6)),
    "tied weights": Specimen(_tied),
    "buffer bound anew": _wired(_counted_anew, layer=_linear()),
    "buffer written in place": _wired(_counted_in_place, layer=_linear()),
    "buffer written by a kernel": _wired(_counted_unseen, layer=_linear(), norm=lambda: nn.BatchNorm1d(8)),
    "draws random numbers": _wired(_drawing, layer=_linear()),
    "checkpointed": _wired(lambda m, x: m.head(checkpoint(m.layer, x, use_reentrant=False)), layer=_linear(), head=_linear(8, 3)),
    "own function": _wired(lambda m, x: _Doubled.apply(m.layer(x)), layer=_linear()),
    "differentiates itself": _wired(_energy, layer=lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh())),
    "changes its input": _wired(_normalizing, layer=_linear()),
    "float64, named output": _wired(lambda m, x: {"logits": m.layer(x), "hidden": x}, layer=_linear(dtype=torch.float64)),
    "tokens": _wired(lambda m, x: m.head(m.table(x.abs().long() % 9).mean(1)), (5,), {"at": "table"}, table=lambda: nn.Embedding(9, 4), head=_linear(4, 3)),
}  # fmt: skip
