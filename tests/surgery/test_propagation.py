"""Units are followed through whatever the forward pass does with them."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import L1, prune
from isometry.surgery import removal, trace
from tests.models import Wired, lively
from tests.references import masked_by

X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shuffle(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def shuffled_groups() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.two(shuffle(m.one(m.stem(x)).relu(), 2)).mean((2, 3)))

    return Wired(
        forward,
        stem=nn.Conv2d(3, 8, 1),
        one=nn.Conv2d(8, 16, 1, groups=2),
        two=nn.Conv2d(16, 8, 1),
        head=nn.Linear(8, 2),
    )


def halves() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.stem(x).chunk(2, 1)
        return m.head(shuffle(torch.cat([one, m.back(m.inner(two).relu())], 1), 2).mean((2, 3)))

    return Wired(
        forward,
        stem=nn.Conv2d(3, 8, 1),
        inner=nn.Conv2d(4, 10, 1),
        back=nn.Conv2d(10, 4, 1),
        head=nn.Linear(8, 2),
    )


def ghost() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.primary(x)
        return m.head(torch.cat([y, m.cheap(y)], 1)[:, :12].relu().mean((2, 3)))

    return Wired(
        forward, primary=nn.Conv2d(3, 6, 1), cheap=nn.Conv2d(6, 6, 3, padding=1, groups=6), head=nn.Linear(12, 2)
    )


def pixels() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 196, 2)
    )


def selective_kernels() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        branches = torch.stack([m.a(x), m.b(x)], 1)
        weights = m.up(m.down(branches.sum(1).mean((2, 3), keepdim=True)).relu()).unflatten(1, (2, -1)).softmax(1)
        return m.head((branches * weights).sum(1).mean((2, 3)))

    return Wired(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(3, 8, 1),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 16, 1),
        head=nn.Linear(8, 2),
    )


class MaskedKernel(nn.Conv2d):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 1)
        self.register_buffer("allowed", (torch.rand(after, before, 1, 1) < 0.7).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.allowed, self.bias)


def masked_kernels() -> nn.Module:
    return nn.Sequential(MaskedKernel(3, 8), nn.ReLU(), MaskedKernel(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 2))


def multiplied_depthwise() -> nn.Module:
    convolutions = (nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(144, 2))


def instance_norms() -> nn.Module:
    layers = (
        nn.Conv2d(3, 6, 1),
        nn.GroupNorm(6, 6),
        nn.InstanceNorm2d(6, affine=True),
        nn.PReLU(6),
        nn.Conv2d(6, 4, 1),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 2))


def token_mixer() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.patches(x).flatten(2)
        y = y + m.out(F.gelu(m.tokens(y)))
        return m.head(y.mean(2))

    return Wired(
        forward, patches=nn.Conv2d(3, 8, 2, 2), tokens=nn.Linear(16, 24), out=nn.Linear(24, 16), head=nn.Linear(8, 2)
    )


def scaled_and_placed() -> nn.Module:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mlp, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(8, 2)
            self.place, self.first = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.randn(1, 1, 8))
            self.back, self.scale = nn.Linear(12, 8), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.patches(x).flatten(2).transpose(1, 2)
            y = torch.cat([self.first.expand(len(x), -1, -1), y], 1) + self.place
            return self.head((y + self.scale * self.back(self.mlp(y).relu()))[:, 0])

    return Placed()


@pytest.mark.parametrize(
    ("build", "cut"),
    [
        (shuffled_groups, {"stem", "one", "two"}),
        (halves, {"stem", "inner", "back"}),
        (ghost, {"primary", "cheap"}),
        (pixels, {"0", "2"}),
        (selective_kernels, {"a", "b", "down", "up"}),
        (masked_kernels, {"0", "2"}),
        (multiplied_depthwise, {"0", "1", "3"}),
        (instance_norms, {"0", "4"}),
        (token_mixer, {"patches", "tokens"}),
        (scaled_and_placed, {"patches", "mlp", "back"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_moves_mixes_or_gates_units_is_cut_exactly(build: Callable[[], nn.Module], cut: set[str]) -> None:
    torch.manual_seed(0)
    net = lively(build())
    result = prune(net, L1(), 0.5, inputs=X)
    assert {layer for layer, units in result.plan.removed.items() if units} == cut
    masked = masked_by(net, result.plan, X)
    assert not torch.allclose(masked(X), net(X))
    torch.testing.assert_close(result.model(X), masked(X), rtol=1e-9, atol=1e-11)


def test_units_of_a_pixel_shuffle_are_sets_of_filters() -> None:
    (group, _) = trace(pixels(), X.float()).groups
    assert group.units == 4
    assert group.members[0].indices[1] == (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda y: y.softmax(1), "softmax mixes its units"),
        (lambda y: y / y.norm(dim=1, keepdim=True), "the network takes the linalg_vector_norm over its units"),
        (lambda y: torch.fft.fft2(y).real, r"an operation that cannot be followed \(_?fft_"),
        (
            lambda y: y * torch.linspace(1, 2, 8)[:, None, None],
            "its units meet a tensor of fixed size .mul.",
        ),
        (lambda y: y[:, :5], "the network takes a slice of its units"),
        (lambda y: torch.cat(y.split([3, 5], 1)[::-1], 1), r"the network splits its units into chunks of \[3, 5\]"),
    ],
    ids=["softmax", "norm", "unknown", "constant", "slice", "uneven chunks"],
)
def test_what_ties_all_units_together_is_named(operation: Callable[[Tensor], Tensor], reason: str) -> None:
    width = operation(torch.zeros(1, 8, 2, 2)).shape[1]
    net = Wired(
        lambda m, x: m.head(m.last(operation(m.one(x))).relu().mean((2, 3))),
        one=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(width, 4, 1),
        head=nn.Linear(4, 2),
    )
    graph = trace(net, X.float())
    assert [group.root for group in graph.groups] == ["last"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(graph.fixed["one"])


def test_a_reduction_that_only_a_condition_reads_ties_nothing() -> None:
    net = Wired(
        lambda m, x: m.head(m.one(x) if float(m.one(x).max()) > -9 else x), one=nn.Linear(3, 6), head=nn.Linear(6, 2)
    )
    assert [group.units for group in trace(net, torch.randn(2, 3)).groups] == [6]


def test_rounding_in_single_precision_is_no_wrong_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(removal._TOLERANCE, torch.float32, 1e-9)  # as if rounding had grown over many layers
    torch.manual_seed(0)
    net = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(30, 30), nn.Tanh())), nn.Linear(30, 5))
    x = torch.randn(64, 30)
    result = prune(net, L1(), 0.5, inputs=x)
    assert float((result.model(x) - masked_by(net, result.plan, x)(x)).detach().abs().max()) > 1e-9
    assert result.left_alone.keys() == {"12"}


def test_deep_grouped_nets_keep_units_at_the_same_place_of_each_group() -> None:
    net = shuffled_groups()
    groups = {group.root: group for group in trace(net, X.float()).groups}
    assert groups["one"].units == 8
    for unit, other in itertools.pairwise(sorted(groups["one"].members[0].indices)):
        assert groups["one"].members[0].indices[unit] == (unit, unit + 8)
        assert other == unit + 1
