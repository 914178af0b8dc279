"""Inputs: of every kind, guessed where there are none, refused where they are wrong."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import isometry
from isometry import Report, measure, networks


def test_every_kind_of_inputs_gives_the_same_numbers(digits: isometry.data.Data) -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8))
    x, y = digits.test
    expected = measure(net, x).spectrum.values
    kinds: list[Any] = [digits, digits.test, (x, y), list(x.split(100)), DataLoader(TensorDataset(x, y), 64)]
    for kind in kinds:
        torch.testing.assert_close(measure(net, kind).spectrum.values, expected)


@pytest.mark.parametrize("name", [name for name in networks.names() if "resnet" not in name and "vgg" not in name])
def test_inputs_are_guessed_and_said_so(name: str) -> None:
    report = measure(networks.build(name, seed=0))
    assert len(report.spectrum) == 64
    assert "64 standard normal inputs of shape (1, 32, 32), as none were given" in str(report)


def test_guessing_works_from_a_first_linear_layer() -> None:
    assert measure(nn.Sequential(nn.Linear(7, 3))).spectrum.values.shape == (64, 3)


def test_pairs_of_inputs_and_targets_are_told_from_batches() -> None:
    net = nn.Linear(4, 2)
    x = torch.randn(9, 4)
    for given in ((x, torch.randn(9, 1)), [x, torch.zeros(9, dtype=torch.long)], (x, torch.randn(9))):
        assert len(measure(net, given).spectrum) == 9
    assert len(measure(net, [x, x + 1]).spectrum) == 18
    with pytest.raises(ValueError, match=r"two tensors of one shape \(9, 4\): \(x, y\), or two batches"):
        measure(net, (x, x + 1))


MLP = networks.build("mlp-7-relu", seed=0)
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
REFUSED = {
    "none that fits": (lambda: measure(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 2))), ValueError, r"measure\(\) cannot infer an input shape from 0 \(Conv2d\): none of .* was accepted, \(3, 32, 32\) for instance \(RuntimeError: .*\)\. Pass inputs of the shape it was built for, e\.g\. measure\(model, torch\.randn\(64, \*shape\)\)\."),
    "none without parameters": (lambda: measure(nn.ReLU()), ValueError, "from a model without parameters"),
    "shape": (lambda: measure(MLP, torch.randn(2, 3)), ValueError, r"shape \(2, 3\), dtype torch\.float32, which the model does not accept"),
    "empty batch": (lambda: measure(MLP, torch.randn(0, 1, 32, 32)), ValueError, "non-empty batch"),
    "no batch": (lambda: measure(MLP, torch.randn(1024)), ValueError, r"non-empty batch \[B, \.\.\.\]"),
    "integers": (lambda: measure(MLP, torch.zeros(2, 1, 32, 32, dtype=torch.int64)), TypeError, r"dtype torch\.int64, which have no derivative"),
    "no values": (lambda: measure(MLP, torch.randn(2, 1, 32, 32, device="meta")), TypeError, r"inputs on the meta device; it takes .*e\.g\."),
    "sparse": (lambda: measure(MLP, torch.eye(2, 1024).to_sparse()), TypeError, r"inputs of layout torch\.sparse_coo; it takes .*to_dense"),
    "several inputs": (
        lambda: measure(MLP, [({"x": torch.randn(2, 1, 32, 32)}, torch.zeros(2))]),
        TypeError,
        r"inputs are a dict of several; .*e\.g\. measure\(model, isometry\.data\.Batches\(loader\), wrt='x'\)",
    ),
    "nan": (lambda: measure(MLP, torch.full((2, 1, 32, 32), math.nan)), ValueError, "2048 NaN or infinite entries"),
    "nan in a tuple": (lambda: measure(nn.Linear(6, 2), (torch.randn(4, 3, 6) * torch.nan,), wrt=0), ValueError, "NaN or infinite"),
    "empty iterable": (lambda: measure(MLP, []), ValueError, "the iterable is empty"),
    "a number": (lambda: measure(MLP, 3), TypeError, "inputs of type int"),
    "batch of text": (lambda: measure(MLP, ["x"]), TypeError, "batch of type str"),
    "samples of different shapes": (lambda: measure(nn.Linear(6, 4), [torch.randn(2, 6), torch.randn(2, 3, 6)]), ValueError, r"samples of different shapes, \(6,\) and \(3, 6\)"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_inputs_are_refused_with_the_call_that_works(
    call: Callable[[], Report], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_inputs_of_another_precision_are_refused() -> None:
    tall = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 64))
    with pytest.raises(ValueError, match=r"inputs of dtype torch\.float64 for a model in torch\.float32"):
        measure(tall, torch.randn(3, 8, dtype=torch.float64))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_inputs_are_converted_to_the_precision_of_a_half_precision_model(half: torch.dtype) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).to(half), torch.randn(5, 8)
    report = measure(net, x)
    assert f"inputs converted from float32 to {str(half).removeprefix('torch.')}, the model's precision" in report.notes
    expected = measure(net, x.to(half))
    torch.testing.assert_close(report.spectrum.values, expected.spectrum.values)
    assert not any("converted" in note for note in expected.notes)
    for kind in ([x], (x, torch.zeros(5)), DataLoader(TensorDataset(x), 5)):
        torch.testing.assert_close(measure(net, kind).spectrum.values, expected.spectrum.values)
    assert all(p.dtype == half for p in net.parameters())


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.a(x) + condition


def test_several_inputs_without_wrt_are_refused_with_the_call_that_works() -> None:
    x, condition = torch.randn(5, 3), torch.randn(5, 4)
    for inputs in ((x, condition), x, [x, x]):
        with pytest.raises(
            ValueError,
            match=r"measure\(\) got one input for a model that takes 2, x, condition .* measure\(model, \(x, condition\), wrt=0\)\.",
        ):
            measure(Conditional(), inputs)
    assert len(measure(Conditional(), (x, condition), wrt=0).spectrum) == 5


def test_whatever_a_network_raises_at_wrong_inputs_is_said_with_their_shape() -> None:
    class Particular(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 9:
                raise AssertionError("Wrong image width")
            return x

    with pytest.raises(ValueError, match=r"shape \(2, 8\), .* which the model does not accept \(Wrong image width\)"):
        measure(Particular(), torch.randn(4, 8))
