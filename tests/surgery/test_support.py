"""What cannot be cut exactly is refused or passed over by name."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

import isometry
from isometry import L1, Plan, prune
from isometry.surgery import remove
from tests.models import HardCoded, Wired, cbr, lenet, lively, padded_conv
from tests.references import masked_by


def masked_layer() -> nn.Module:
    net = lenet()
    torch_prune.l1_unstructured(net.fc1, "weight", 0.5)
    return net


def orthogonal_layer() -> nn.Module:
    net = lenet()
    torch.nn.utils.parametrizations.orthogonal(net.fc1)
    return net


def tied_layers() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (masked_layer, r"fc1 \(Linear\) carries a mask .* torch\.nn\.utils\.prune\.remove\(model\.fc1, 'weight'\)"),
        (orthogonal_layer, r"fc1 .* carries a parametrization.*remove_parametrizations\(model\.fc1, 'weight'\)"),
        (tied_layers, r"2\.weight is tied to 0\.weight"),
    ],
    ids=["masked", "parametrized", "tied"],
)
def test_what_surgery_would_break_is_refused_by_name(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(build(), L1(), 0.5)


def test_spectral_norm_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="remove_spectral_norm"):
        isometry.prune(nn.utils.spectral_norm(nn.Linear(3, 4)), isometry.L1(), 0.5)


def test_a_cut_that_cannot_be_exact_is_refused_when_it_is_planned() -> None:
    with pytest.raises(ValueError, match="nothing that can be cut exactly: The units of one cannot be removed"):
        prune(HardCoded(), L1(), {"one": 0.5}, inputs=torch.randn(2, 3, 4, 4))


def test_a_cut_that_cannot_be_exact_is_refused_when_it_is_made() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be cut exactly there\. Leave the layer out"):
        remove(HardCoded(), Plan({"one": (0, 1)}, {"one": 8}), torch.randn(2, 3, 4, 4))


def test_padding_with_zeros_is_no_hindrance() -> None:
    padded = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ConstantPad3d(1, 0.0), nn.Conv3d(4, 2, 3))
    assert prune(padded, L1(), 0.5, inputs=torch.randn(2, 2, 6, 6, 6)).ratio == 0.5


def test_transposed_convolutions_in_groups_are_named() -> None:
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    reasons = prune(transposed, L1(), 0.5, inputs=torch.randn(2, 4, 5, 5)).left_alone
    assert "transposed convolution in groups" in reasons["0"]


def spatial_gate() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.c(x).relu()
        return m.fc(F.relu(m.d(h * torch.sigmoid(m.gate(h)))).mean((2, 3)))

    return Wired(forward, c=padded_conv(3, 8), gate=nn.Conv2d(8, 1, 1), d=padded_conv(8, 6), fc=nn.Linear(6, 5))


def broadcast_sum() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(F.relu(m.d((m.bn(m.c(x)) + m.one(x)).relu())).mean((2, 3)))

    return Wired(
        forward,
        c=padded_conv(3, 8),
        bn=nn.BatchNorm2d(8),
        one=padded_conv(3, 1),
        d=padded_conv(8, 6),
        fc=nn.Linear(6, 5),
    )


def pooled_twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.d(m.c(x).relu()).relu()
        return m.fc(torch.cat([F.adaptive_avg_pool2d(h, 2).flatten(1), h.mean((2, 3))], 1))

    return Wired(forward, c=padded_conv(3, 8), d=padded_conv(8, 8), fc=nn.Linear(40, 5))


@pytest.mark.parametrize("build", [spatial_gate, broadcast_sum, pooled_twice], ids=lambda build: build.__name__)
@pytest.mark.parametrize("pruner", [isometry.L1(), isometry.Random()], ids=["L1", "Random"])
@pytest.mark.filterwarnings("ignore:prune.. leaves alone")
def test_what_cannot_be_cut_is_kept_and_the_rest_is_cut(
    build: Callable[[], nn.Module], pruner: isometry.Pruner
) -> None:
    result = isometry.prune(build(), pruner, 0.5, inputs=torch.randn(2, 3, 12, 12))
    assert any(result.plan.removed.values())
    assert result.model(torch.randn(2, 3, 12, 12)).shape == (2, 5)


def test_a_model_without_parameters_has_nothing_to_prune() -> None:
    with pytest.raises(ValueError, match=r"no layer"):
        isometry.prune(nn.Sequential(nn.Flatten()), isometry.L1(), 0.5, inputs=torch.randn(2, 6))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.last, self.head = cbr(3, 8), nn.Conv2d(8, 8, 1), cbr(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.stem(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        first, second = x.chunk(2, 1)
        return self.head(self.last(torch.cat([second, first], 1)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lstm = nn.Linear(6, 10), nn.LSTM(10, 7, batch_first=True)
        self.after, self.head = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.after(self.lstm(F.relu(self.inner(x)))[0][:, -1])))


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.conv2d(self.one(x), self.kernel)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Shuffled, (3, 8, 8)), (Recurrent, (5, 6)), (Raw, (3, 6, 6))],
    ids=["shuffled", "recurrent", "raw"],
)
def test_what_cannot_be_cut_exactly_is_kept_and_named_or_cut_rightly(build, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = lively(build())
    x = torch.randn(3, *shape, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = prune(net, L1(), 0.5, inputs=x)
    torch.testing.assert_close(result.model(x), masked_by(net, result.plan, x)(x), rtol=1e-9, atol=1e-11)
    cut = {layer for layer, units in result.plan.removed.items() if units}
    assert cut
    fixed = {"Shuffled": {"inner"}, "Recurrent": {"inner"}, "Raw": {"one"}}[build.__name__]
    assert fixed <= set(result.left_alone) or fixed <= cut
    for layer, reason in result.left_alone.items():
        assert reason, layer
    noisy = [str(w.message) for w in told if "leaves alone what cannot be cut exactly" in str(w.message)]
    assert all("cannot leave" in message for message in noisy)


def test_normalization_over_channels_is_said_to_be_inexact() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 3),
    )  # fmt: skip
    result = prune(net, L1(), 0.5, inputs=torch.randn(2, 3, 8, 8))
    assert result.inexact == ("1",)
    assert "not exact: 1 normalize over channels" in str(result)
    assert result.model(torch.randn(2, 3, 8, 8)).shape == (2, 3)


class Answer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Conv2d(3, 8, 3)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        z = self.body(x).relu().mean((2, 3))
        one, two = self.one(z), self.two(z * z.shape[1] if self.kind == "mixing" else z)
        return {"logits": one, "more": two} if self.kind == "dict" else (one, two)


def test_outputs_in_dicts_and_tuples_are_compared() -> None:
    x = torch.randn(4, 3, 6, 6)
    for kind in ("dict", "tuple"):
        assert prune(Answer(kind), L1(), 0.5, inputs=x).ratio == 0.5


def test_a_second_output_that_would_change_is_found() -> None:
    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(ValueError, match="nothing that can be cut exactly: The units of body cannot be removed"):
        prune(Answer("mixing"), L1(), 0.5, inputs=x)
    with pytest.raises(ValueError, match="nothing that can be cut exactly"):
        prune(Answer("mixing").bfloat16(), L1(), 0.5, inputs=x.bfloat16())
