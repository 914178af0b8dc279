"""Networks for tests: small ones of every kind that people have, and some that are difficult."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import networks


class Wired(nn.Module):
    """Modules by name, and how they are wired."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.wiring(self, *inputs)


def batch_norm_net() -> nn.Module:
    """Two convolutions with BatchNorm whose statistics, scales (of both signs) and shifts are not those of the start."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(54, 5),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net


def lenet() -> nn.Module:
    return networks.build("lenet-5-relu", seed=0)


def digits_mlp() -> nn.Module:
    return networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(16, 12))


def normed_conv(norm: str = "bounded", seed: int = 0) -> nn.Module:
    """Four convolutions of 10, 8, 8 and 6 filters for digits, with BatchNorm of either kind."""
    return networks.build("conv-4", seed=seed, input_shape=(1, 8, 8), widths=(10, 8, 8, 6), norm=norm)


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters of a network as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def small_conv() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    nn.init.normal_(net[1].weight)
    nn.init.normal_(net[1].bias)
    return net.double()


class SmallResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.back = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.back(self.inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


NETS = {
    "mlp": (lambda: networks.build("mlp-7-relu", seed=0, input_shape=(1, 6, 6), widths=(20, 15)), (1, 6, 6)),
    "lenet": (lambda: networks.build("lenet-5-relu", seed=0), (1, 32, 32)),
    "batchnorm": (batch_norm_net, (3, 8, 8)),
    "decoder": (lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 50)), (4,)),
    "in-place": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)), (6,)),
}


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in float64 with statistics, scales and shifts that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
    return net


def cbr(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class ShortcutResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.a1, self.b1 = nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.a2, self.b2 = nn.Conv2d(10, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.short = nn.Sequential(nn.Conv2d(8, 12, 1, 2), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.b2(self.a2(F.relu(self.b1(self.a1(x))))) + self.short(x))
        return self.head(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.expand, self.depth = cbr(8, 24, 1), cbr(24, 24, 3, groups=24)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(x.mean((2, 3)))


class DenselyConnected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.head = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.norms[2](torch.cat(features, 1))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = cbr(3, 12), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.last, self.head = cbr(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.last(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8), cbr(8, 12, groups=4), cbr(12, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = cbr(3, 8), cbr(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.stem(x)))
        return self.head(x.mean((2, 3))) if float(x.detach().abs().max()) >= 0 else x  # a data-dependent branch


class HardCoded(nn.Module):
    """Its code holds the width of `one`, so that only `two` can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).view(len(x), 8, *x.shape[2:])
        return self.head(self.two(y).relu()).mean((2, 3))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 12))
        self.blocks = nn.Sequential(Encoder(), Encoder())
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def wide_net(classes: int = 160) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, classes),
    ).eval()  # fmt: skip


def joined() -> nn.Module:
    """Three layers of eight units, two of them summed, joined by a concatenation; four units of the sum matter least."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.s, self.ns = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.b, self.nb = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.d, self.head = nn.Conv2d(16, 16, 1, groups=16), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            total = torch.cat([self.na(self.a(x)) + self.ns(self.s(x)), self.nb(self.b(x))], 1)
            return self.head(self.d(total)).mean((2, 3))

    net = Joined().eval()
    with torch.no_grad():
        for layer in (net.a, net.s, net.b, net.d):
            layer.weight.fill_(1.0)
        for layer in (net.a, net.s):
            layer.weight[:4] = 0.9  # the least important, in both of the layers that are summed
        for norm in (net.na, net.ns):
            norm.weight[:4] = 0.9
    return net


def padded_conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


def last_state() -> nn.Module:
    """Only the last state of a recurrent layer is used, not its outputs."""
    return Wired(lambda m, x: m.head(m.rnn(x)[1][0][-1]), rnn=nn.LSTM(6, 6, batch_first=True), head=nn.Linear(6, 3))
