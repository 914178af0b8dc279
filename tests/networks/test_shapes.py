"""What a network takes is found by trying, and trying leaves no trace."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, measure, networks, prune
from isometry.networks import InputSpec, find_inputs
from isometry.surgery import transfer_optimizer_state
from tests.models import ShortcutResidual, ViT, Wired, batch_norm_net, cbr, last_state, padded_conv, wide_net


class Strided(nn.Module):
    """A network of an overall stride of 32 with global pooling, as for ImageNet."""

    def __init__(self, seen: list[tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(*[cbr(3 if i == 0 else 6, 6, 3, 2) for i in range(5)])
        self.head = nn.Linear(6, 4)
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None and x.device.type != "meta":
            self.seen.append(tuple(x.shape))
        return self.head(self.body(x).mean((2, 3)))


def flat(size: int, stride: int = 1) -> nn.Module:
    """A convolution whose head fixes the size of the images."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride, 1), nn.Flatten(), nn.Linear(2 * (size // stride) ** 2, 3))


class Language(nn.Module):
    def __init__(self, positions: int = 12, whole: bool = False) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(11, 6), nn.Embedding(positions, 6)
        self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.whole = whole

    def forward(self, ids: Tensor) -> Tensor:
        number = self.position.num_embeddings if self.whole else ids.shape[1]
        x = self.token(ids) + self.position(torch.arange(number, device=ids.device))
        return self.head(self.block(x).tanh().mean(1))


def configured(net: nn.Module, config: Any) -> nn.Module:
    net.config = config
    return net


def numeric() -> nn.Module:
    """A network that looks at numbers, which the meta device does not have."""
    return Wired(lambda m, x: m.net(x if float(x.sum()) < 1e9 else -x), net=flat(64, 4))


FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "features": (lambda: nn.Sequential(nn.Linear(7, 3)), (7,)),
    "any image": (ShortcutResidual, (3, 32, 32)),
    "28 pixels": (lambda: flat(28, 2), (1, 28, 28)),
    "96 pixels": (lambda: flat(96, 8), (1, 96, 96)),
    "224 pixels": (lambda: flat(224, 16), (1, 224, 224)),
    "stride of 32": (Strided, (3, 64, 64)),
    "numbers": (numeric, (1, 64, 64)),
    "small images": (batch_norm_net, (3, 8, 8)),
    "patches with positions": (ViT, (3, 8, 8)),
    "signals": (lambda: nn.Sequential(nn.Conv1d(2, 3, 5, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)), (2, 32)),
    "long signals": (lambda: nn.Sequential(nn.Conv1d(1, 3, 400, 160), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)), (1, 1024)),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(1, 3, 3, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2)), (1, 32, 32, 32)),
    "sequences": (last_state, (16, 6)),
    "latents": (lambda: nn.Sequential(nn.ConvTranspose2d(5, 3, 4), nn.Flatten(), nn.Linear(48, 2)), (5, 1, 1)),
    "a head registered first": (lambda: Wired(lambda m, x: m.head(m.conv(x).mean((2, 3))), head=nn.Linear(4, 2), conv=padded_conv(3, 4)), (3, 32, 32)),
    "tokens": (Language, (8,)),
    "tokens at fixed positions": (lambda: Language(20, whole=True), (20,)),
    "a wrapped network": (lambda: nn.DataParallel(flat(28)), (1, 28, 28)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_a_shape_that_the_network_accepts_is_found(name: str) -> None:
    build, shape = FOUND[name]
    net = build()
    spec = find_inputs(net)
    assert spec.shape == shape
    net.eval()(spec.draw(net, 2))
    assert (spec.vocabulary is not None) == name.startswith("tokens")


def test_a_configuration_says_what_the_network_takes() -> None:
    convolution = nn.Sequential(padded_conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    for config in (SimpleNamespace(image_size=40, num_channels=3), {"image_size": (40, 40)}):
        assert find_inputs(configured(convolution, config)).shape == (3, 40, 40)
    spec = find_inputs(configured(Language(6), SimpleNamespace(vocab_size=9, max_position_embeddings=6)))
    assert (spec.shape, spec.vocabulary, spec.embedding) == ((6,), 9, "token")
    assert int(spec.draw(nn.Linear(1, 1), 500).max()) == 8


def test_a_configuration_that_the_network_contradicts_does_not_hinder() -> None:
    assert find_inputs(configured(flat(28), SimpleNamespace(image_size=7, num_channels="rgb"))).shape == (1, 28, 28)


def test_trying_runs_the_network_itself_once() -> None:
    seen: list[tuple[int, ...]] = []
    assert find_inputs(Strided(seen)).shape == (3, 64, 64)
    assert seen == [(2, 3, 64, 64)]


class Restless(nn.Module):
    """Draws random numbers, writes buffers and modes in its forward pass, and fails at most inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = padded_conv(3, 4), nn.BatchNorm2d(4), nn.Linear(4 * 28 * 28, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.norm.train()
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.head(self.norm(self.conv(x)).flatten(1)) * (1 + 0 * float(noise))


def test_failed_tries_leave_no_trace() -> None:
    net = Restless()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(4).tolist(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    assert find_inputs(net).shape == (3, 28, 28)
    assert (torch.rand(4).tolist(), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_inputs_have_the_networks_precision() -> None:
    assert networks.example_inputs(flat(28).double(), 3).dtype == torch.float64
    assert networks.example_inputs(flat(28).bfloat16(), 3).dtype == torch.bfloat16


def nothing_fits() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))


def two_inputs() -> nn.Module:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor, condition: Tensor) -> Tensor:
            return self.a(x) + condition

    return Two()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing fits": (lambda: measure(nothing_fits()), r"measure\(\) cannot infer an input shape from 0 \(Conv2d\): none of \d+ was accepted, \(3, 32, 32\) for instance \(RuntimeError: .*\)\. Pass inputs of the shape it was built for, e\.g\. measure\(model, torch\.randn\(64, \*shape\)\)\.$"),
    "prune": (lambda: prune(nothing_fits(), L1(), 0.5), r"prune\(\) cannot infer .* e\.g\. prune\(model, pruner, ratio, inputs=torch\.randn\(64, \*shape\)\)\.$"),
    "tokens": (lambda: measure(nn.Sequential(nn.Embedding(9, 4), nn.Linear(5, 2))), r"Pass inputs of the shape it was built for, e\.g\. measure\(model, torch\.randint\(9, \(64, \*shape\)\)\)\.$"),
    "two inputs": (lambda: measure(two_inputs()), r"model that takes 2, x, condition\. Pass inputs, e\.g\. measure\(model, \(x, condition\), wrt=0\)\.$"),
    "no parameters": (lambda: measure(nn.ReLU()), r"from a model without parameters\. Pass inputs, e\.g\. measure\(model, torch\.randn\(64, \.\.\.\)\)\.$"),
    "lazy": (lambda: find_inputs(nn.Sequential(nn.LazyConv2d(3, 3))), r"whose 0 are not initialized yet; run it once first: model\(inputs\)\."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_only_where_nothing_works_an_error_shows_the_call(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_every_verb_does_without_inputs() -> None:
    net = nn.Sequential(cbr(3, 8), cbr(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    nn.init.normal_(net[0][1].weight)
    assert isometry.convert(net) is not net
    pruned = prune(net, L1(), 0.5)
    assert isometry.Pruning(net, L1(), 0.5).finish().plan == pruned.plan
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    assert len(transfer_optimizer_state(optimizer, net, pruned).state) == len(list(net.parameters()))
    assert "(3, 32, 32), as none were given (by trying, from 0.0 (Conv2d)" in measure(net).inputs


def test_a_network_of_tokens_is_measured_from_its_embedding() -> None:
    net = Language()
    report = measure(net)
    ids = find_inputs(net).draw(net, 64)
    torch.testing.assert_close(report.spectrum.values, measure(net, ids, at="token").spectrum.values)
    assert "random token ids below 11 of shape (8,), as none were given" in report.inputs
    assert report.inputs.endswith("derivatives start at token")
    assert len(measure(net, at="block").spectrum) == 64
    assert list(isometry.compare({"a": net, "b": Language()})["samples"]) == [64, 64]


def test_specs_describe_batches() -> None:
    assert InputSpec.of(torch.randn(4, 3, 8)) == InputSpec((3, 8))
    assert InputSpec.of(torch.tensor([[1, 5]])) == InputSpec((2,), 6)
    assert measure(wide_net(20), rtol=0.2).inputs.startswith("32 standard normal inputs of shape (3, 16, 16)")
