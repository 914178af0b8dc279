"""Networks of every kind that people measure."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.models import Wired


def checkpointed() -> nn.Module:
    inner = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 8))
    return Wired(lambda m, x: m.head(checkpoint(m.inner, x, use_reentrant=True)), inner=inner, head=nn.Linear(8, 40))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).tanh() if len(x) > 100 or x.shape[1] == 6 else self.b(x)


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g * ctx.saved_tensors[0] ** 2


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(self.a(x))


class ViTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x)).mean(1))


class SDPA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 3, 2, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.norm(self.down(x)).relu())


WORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer norm, dropout": (lambda: nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Dropout(), nn.Linear(9, 3)), (6,)),
    "in-place at the input": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), (6,)),
    "branches": (Branches, (6,)),
    "custom function": (Custom, (6,)),
    "vit block": (ViTBlock, (5, 8)),
    "encoder layer": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3)), (5, 8)),
    "sdpa": (SDPA, (5, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (7, 4)),
    "gru": (lambda: Recurrent(nn.GRU), (7, 4)),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (2, 8)),
    "conv 3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(24, 2)), (1, 4, 4, 4)),
    "u-net": (UNet, (1, 6, 6)),
}  # fmt: skip
