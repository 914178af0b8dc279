"""Bounded BatchNorm: its layer, and networks converted to it and folded back."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, Magnitude, convert, fold, measure, networks, prune
from isometry.networks import BoundedBatchNorm1d, BoundedBatchNorm2d, importances
from tests.models import Wired, batch_norm_net, padded_conv


def bounded_conv(seed: int = 0) -> nn.Module:
    return networks.build("conv-4", seed=seed, input_shape=(3, 8, 8), widths=(8, 6, 6, 5), norm="bounded")


KINDS = pytest.mark.parametrize(
    ("kind", "plain", "shape"),
    [
        pytest.param(BoundedBatchNorm2d, nn.BatchNorm2d, (6, 4, 5, 5), id="2d"),
        pytest.param(BoundedBatchNorm1d, nn.BatchNorm1d, (9, 4), id="1d"),
    ],
)


@KINDS
def test_a_bounded_batchnorm_is_batchnorm_scaled_by_a_sigmoid(kind: Any, plain: Any, shape: tuple[int, ...]) -> None:
    layer, reference, x = kind(4), plain(4, affine=False), torch.randn(shape)
    channels = (1, 4) + (1,) * (x.ndim - 2)
    for _ in range(3):
        expected = reference(x) * torch.sigmoid(layer.weight).view(channels)
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_var, reference.running_var)
    assert int(layer.num_batches_tracked) == 3
    torch.testing.assert_close(layer.eval()(x), reference.eval()(x) * torch.sigmoid(layer.weight).view(channels))


@KINDS
def test_a_bounded_batchnorm_has_the_state_of_batchnorm_and_its_bound(
    kind: Any, plain: Any, shape: tuple[int, ...]
) -> None:
    layer = kind(4)
    assert layer.bias is None
    assert set(layer.state_dict()) == {"weight", "bound", "running_mean", "running_var", "num_batches_tracked"}
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert torch.equal(kind(4, shift=True).bias, torch.zeros(4))


@KINDS
def test_inputs_of_another_shape_are_refused(kind: Any, plain: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        kind(4)(torch.randn(4))
    layer = kind(4)
    layer(torch.randn(shape))
    with pytest.raises(ValueError, match="expected"):
        layer.eval()(torch.randn(4))


def test_momentum_none_averages_as_batchnorm_does() -> None:
    layer, reference = BoundedBatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, momentum=None)
    for _ in range(4):
        x = torch.randn(5, 3, 2, 2)
        layer(x), reference(x)
    torch.testing.assert_close(layer.running_mean, reference.running_mean)


def test_importances_start_normal() -> None:
    gamma = torch.cat([s.logit() for s in importances(networks.build("resnet-56", seed=0, norm="bounded")).values()])
    assert len(gamma) == 2032
    assert abs(float(gamma.mean())) < 0.1
    assert float(gamma.std()) == pytest.approx(1, abs=0.05)


def test_conversion_changes_no_output() -> None:
    net = batch_norm_net().eval()  # scales of both signs, shifts
    assert any(bool((m.weight < 0).any()) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    x = torch.randn(16, 3, 8, 8)
    made = convert(net, x)
    torch.testing.assert_close(made(x), net(x), rtol=1e-4, atol=1e-5)


def test_folding_back_changes_no_output_at_all() -> None:
    net = batch_norm_net().eval()  # scales of both signs, shifts
    x = torch.randn(16, 3, 8, 8)
    made = convert(net, x)
    assert torch.equal(fold(made)(x), made(x))
    assert not any(isinstance(m, BoundedBatchNorm2d) for m in fold(made).modules())


def test_conversion_leaves_the_original_as_it_was() -> None:
    net = batch_norm_net().eval()  # scales of both signs, shifts
    x = torch.randn(16, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    convert(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_converted_importances_have_headroom_below_their_bound() -> None:
    net = batch_norm_net().eval()  # scales of both signs, shifts
    x = torch.randn(16, 3, 8, 8)
    made = convert(net, x)
    for layer in made.modules():
        if isinstance(layer, BoundedBatchNorm2d):
            assert layer.weight.sigmoid().max().item() == pytest.approx(1 / 1.5)


def test_conversion_keeps_the_mode() -> None:
    net = batch_norm_net().eval()  # scales of both signs, shifts
    x = torch.randn(16, 3, 8, 8)
    assert convert(net.train(), x).training


def test_folding_a_network_built_bounded_changes_no_output() -> None:
    x = torch.randn(16, 3, 8, 8)
    bare = bounded_conv().eval()
    assert torch.equal(fold(bare)(x), bare(x))


def test_a_scale_of_zero_converts_to_the_least_importance() -> None:
    net = batch_norm_net().eval()
    with torch.no_grad():
        net[1].weight[2] = 0
    x = torch.randn(4, 3, 8, 8)
    made = convert(net, x)
    torch.testing.assert_close(made(x), net(x), rtol=1e-4, atol=1e-4)
    assert float(importances(made)["1"][2]) == pytest.approx(1e-6, rel=1e-3)


def test_conversion_keeps_shared_norms_shared() -> None:
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(padded_conv(3, 4), norm, padded_conv(4, 4), norm)
    bounded = isometry.convert(net, inputs=torch.randn(2, 3, 4, 4))
    folded = isometry.fold(bounded)
    assert bounded[1] is bounded[3]
    assert folded[1] is folded[3]
    assert isinstance(bounded[1], isometry.networks.BoundedBatchNorm2d)
    assert type(folded[1]) is nn.BatchNorm2d


class NormOfSum(nn.Module):
    """A BatchNorm of negative scales behind a sum, into which no layer can take the sign."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)
        nn.init.constant_(self.norm.weight, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x) + x).mean((2, 3)))


class ReadTwice(NormOfSum):
    """The same behind a convolution that is read elsewhere too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y) + 3 * y).mean((2, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda x: convert(NormOfSum(), x),
            r"3 negative scales in norm \(BatchNorm2d\).*convert\(model, skip='norm'\)",
            id="negative scales behind a sum",
        ),
        pytest.param(lambda x: convert(ReadTwice(), x), "is read elsewhere", id="convolution read elsewhere"),
        pytest.param(lambda x: convert(NormOfSum(), x, skip="norm"), "found no BatchNorm to convert", id="all skipped"),
        pytest.param(lambda x: convert(batch_norm_net(), headroom=1), "headroom=1", id="headroom"),
        pytest.param(lambda x: fold(NormOfSum()), r"^fold\(\) found no bounded BatchNorm", id="nothing to fold"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(call: Callable[[Tensor], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(2, 3, 4, 4))


def test_bounded_networks_are_measured_like_their_folded_twins() -> None:
    net = bounded_conv().eval()
    x = torch.randn(6, 3, 8, 8)
    a, b = measure(net, x, progress=False), measure(fold(net), x, progress=False)
    torch.testing.assert_close(a.spectrum.values, b.spectrum.values, rtol=1e-5, atol=1e-8)
    assert any("folded" in note for note in a.notes)


def test_bounded_networks_are_pruned_like_their_folded_twins() -> None:
    net = bounded_conv().eval()
    x = torch.randn(6, 3, 8, 8)
    one, two = prune(net, L1(), 0.5, inputs=x), prune(fold(net), L1(), 0.5, inputs=x)
    assert one.plan == two.plan
    torch.testing.assert_close(one.model(x), two.model(x))


def test_pruners_of_plain_batchnorm_refuse_bounded_ones() -> None:
    net = bounded_conv().eval()
    x = torch.randn(6, 3, 8, 8)
    with pytest.raises(ValueError, match=r"is a bounded BatchNorm.*isometry\.fold"):
        prune(net, isometry.TPP(stabilize=1000), 0.5, data=(x, torch.arange(6) % 5))


@pytest.mark.data
def test_the_pretrained_resnet_converts_without_loss(real_data) -> None:
    net = networks.build("resnet-56", weights=real_data / "weights" / "resnet56_cifar10.safetensors").eval()
    cifar = isometry.data.load("cifar10", real_data, normalization=isometry.data.IMAGENET).test
    made = convert(net)
    with torch.no_grad():
        old, new = net(cifar.inputs[:1000]), made(cifar.inputs[:1000])
    assert float((old - new).abs().max() / old.abs().max()) < 1e-4
    assert torch.equal(old.argmax(1), new.argmax(1))


def test_conversion_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    convert(batch_norm_net(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)  # what batch_norm_net sets
    batch_norm_net()
    after = torch.get_rng_state()
    torch.manual_seed(0)
    made = batch_norm_net()
    state = torch.get_rng_state()
    convert(made, torch.zeros(2, 3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(after, state)
    assert not torch.equal(before, after)


def test_activations_in_place_between_a_layer_and_its_norm_are_seen() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    nn.init.constant_(net[2].weight, -1.0)
    with pytest.raises(ValueError, match="no convolution or linear layer alone feeds"):
        convert(net, torch.randn(2, 3, 2, 2))


def test_signs_move_into_weights_behind_masks_too() -> None:
    net, x = batch_norm_net().eval(), torch.randn(4, 3, 8, 8)
    masked = prune(net, Magnitude(), 0.5, inputs=x).model
    converted = convert(masked, x)
    torch.testing.assert_close(converted(x), masked(x))
    assert torch.equal(converted[0].weight == 0, masked[0].weight == 0)


def test_a_network_that_returns_a_dataclass_is_checked_like_others() -> None:
    @dataclass
    class Out:
        logits: Tensor

    def forward(self: Any, x: Tensor) -> Out:
        h = self.conv(x)
        return Out(self.head(torch.cat([self.norm(h), h], 1).relu().mean((2, 3))))

    torch.manual_seed(0)
    net = Wired(forward, conv=nn.Conv2d(1, 8, 3), norm=nn.BatchNorm2d(8), head=nn.Linear(16, 3)).eval()
    nn.init.normal_(net.norm.weight)
    with pytest.raises(ValueError, match="the outputs change"):
        convert(net, torch.randn(2, 1, 8, 8))


def test_conversion_is_the_same_where_the_caller_uses_autocast() -> None:
    net, x = batch_norm_net().eval(), torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = convert(net, x)
    assert torch.equal(found(x), convert(net, x)(x))


def test_a_layer_whose_weight_is_computed_cannot_take_a_sign() -> None:
    net = batch_norm_net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(net[0])
    with pytest.raises(ValueError, match=r"convert\(\) found .* negative scales in 1, whose sign 0 cannot take"):
        convert(net, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("verb", [convert, fold, importances])
def test_what_is_no_network_is_refused(verb: Any) -> None:
    with pytest.raises(TypeError, match=r"for a model; it takes a torch\.nn\.Module"):
        verb(5)
