"""The function that is differentiated: which input, which output, at which module."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isometry import Report, measure
from tests.models import Wired, last_state
from tests.references import assert_spectrum, slow_singular_values


class Tells(nn.Module):
    def __init__(self, tell: Any) -> None:
        super().__init__()
        self.a, self.tell = nn.Linear(6, 4), tell

    def forward(self, x: Tensor) -> Any:
        return self.tell(self.a(x))


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize(
    ("tell", "output"),
    [
        pytest.param(lambda y: (y, y * 2), 0, id="index of a tuple"),
        pytest.param(lambda y: {"out": y, "aux": 2 * y}, "out", id="key of a dict"),
        pytest.param(lambda y: {"logits": y}, None, id="logits of a dict"),
        pytest.param(lambda y: Output(y), None, id="logits of an object"),
        pytest.param(lambda y: Output(y), "logits", id="attribute of an object"),
        pytest.param(lambda y: (y,), None, id="only one of a tuple"),
        pytest.param(lambda y: [[y]], lambda result: result[0][0], id="function"),
    ],
)
def test_any_output_can_be_selected(tell: Any, output: Any) -> None:
    net = Tells(tell)
    x = torch.randn(3, 6)
    assert_spectrum(measure(net, x, output=output), slow_singular_values(copy.deepcopy(net.a).double(), x))


REFUSED = {
    "dict": (lambda x: measure(Tells(lambda y: {"y": y}), x), TypeError, r"returns a dict with the keys 'y'\. Say which part is meant, e\.g\. measure\(model, inputs, output='y'\)"),
    "tuple": (lambda x: measure(nn.LSTM(6, 6, batch_first=True), x[:, None]), TypeError, "returns a tuple of 2. Say which part is meant"),
    "integers": (lambda x: measure(Tells(lambda y: y.argmax(1)), x), TypeError, r"output is torch\.int64"),
    "scalar": (lambda x: measure(Tells(lambda y: y.sum()), x), ValueError, r"outputs of shape \(\) for 2 inputs"),
    "one for the batch": (lambda x: measure(Tells(lambda y: y.sum(0, keepdim=True)), x), ValueError, r"outputs of shape \(1, 4\) for 2 inputs"),
    "unknown output": (lambda x: measure(nn.Linear(6, 4), x, output="loss"), ValueError, "output='loss', but the model returns"),
    "unused module": (lambda x: measure(last_state(), x[:, None], at="rnn"), ValueError, "do not depend on.*rnn"),
    "wrt with a tensor": (lambda x: measure(nn.Linear(6, 2), x, wrt=0), TypeError, "wrt=0 with a tensor.*wrt=0"),
    "wrt integers": (lambda x: measure(nn.Linear(6, 2), (x.long(),), wrt=0), TypeError, "int64.*no derivative"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_differentiated_is_refused_with_the_way_out(
    call: Callable[[Tensor], Report], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(torch.randn(3, 6))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).tanh().flatten(1))


def test_token_models_are_measured_from_their_embedding() -> None:
    net = Tokens()
    ids = torch.randint(0, 11, (4, 5))
    leaf = net.embedding(ids).detach()
    head = copy.deepcopy(net.head).double()
    assert_spectrum(measure(net, ids, at="embedding"), slow_singular_values(lambda e: head(e.tanh().flatten(1)), leaf))


def test_token_models_without_their_embedding_named_are_refused() -> None:
    net = Tokens()
    ids = torch.randint(0, 11, (4, 5))
    with pytest.raises(TypeError, match=r"dtype torch\.int64, which have no derivative.*at='embedding'"):
        measure(net, ids)
    with pytest.raises(ValueError, match=r"at='embed'; the model's modules are embedding, head"):
        measure(net, ids, at="embed")


def test_tokens_with_labels_need_nothing_but_the_embedding_named() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    batch = (torch.randint(0, 9, (5, 3)), torch.randint(0, 3, (5,)))
    expected = float(torch.linalg.svdvals(net[2].weight.detach()).mean())
    for given in (batch, [batch, batch]):
        assert measure(net, given, at="0").mean_jsv == pytest.approx(expected, rel=1e-5)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.a(x) * self.b(z)


def test_one_of_several_inputs_is_differentiated() -> None:
    net = Two()
    x, z = torch.randn(5, 6), torch.randn(5, 3)
    a, b = copy.deepcopy(net.a).double(), copy.deepcopy(net.b).double()
    rows = [slow_singular_values(lambda s, i=i: 2 * a(x[i : i + 1].double()) * b(s), z[i : i + 1]) for i in range(5)]
    expected = torch.cat(rows)
    assert_spectrum(measure(net, {"x": x, "z": z, "scale": 2.0}, wrt="z"), expected)
    assert_spectrum(measure(net, [(x[:3], z[:3], 2.0), (x[3:], z[3:], 2.0)], wrt=1), expected)


def test_several_inputs_without_the_right_one_named_are_refused() -> None:
    net = Two()
    x, z = torch.randn(5, 6), torch.randn(5, 3)
    with pytest.raises(
        TypeError, match=r"say which of them is differentiated, e\.g\. measure\(model, inputs, wrt='x'\)"
    ):
        measure(net, {"x": x, "z": z})
    with pytest.raises(ValueError, match="wrt='y'; the batch holds 'x', 'z'"):
        measure(net, {"x": x, "z": z}, wrt="y")


def test_an_input_counted_from_the_end_is_that_input() -> None:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "skip": nn.Linear(40, 40)}
    net = Wired(lambda m, a, b: m.up(m.narrow(b).tanh()) + m.skip(b), **modules)
    pair = (torch.randn(4, 40), torch.randn(4, 40))
    assert measure(net, pair, wrt=-1).mean_jsv == pytest.approx(measure(net, pair, wrt=1).mean_jsv)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_other_inputs_are_repeated_with_the_samples_and_get_no_gradient() -> None:
    net = Wired(lambda m, x, y: m.b(checkpoint(m.a, x, use_reentrant=True) * y), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    x, y = torch.randn(5, 6), torch.rand(5, 6, requires_grad=True)
    expected = [torch.linalg.svdvals(net.b.weight * one @ net.a.weight).mean() for one in y]
    assert measure(net, (x, y), wrt=0).mean_jsv == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-5)
    assert y.grad is None


def test_one_number_a_sample_is_a_fine_output() -> None:
    net = Wired(lambda m, x: m.a(x).squeeze(1), a=nn.Linear(6, 1))
    x = torch.randn(4, 6)
    for method in ("exact", "krylov"):
        assert measure(net, x, method=method).mean_jsv == pytest.approx(float(net.a.weight.detach().norm()), rel=1e-5)


def test_one_number_a_sample_is_a_fine_input() -> None:
    x = torch.randn(4, 6)
    timed = Wired(lambda m, x, t: m.a(x) * t[:, None].sin(), a=nn.Linear(6, 3))
    t = torch.rand(4)
    expected = (timed.a(x) * t[:, None].cos()).norm(dim=1).mean().detach()
    for method in ("exact", "krylov"):
        assert measure(timed, (x, t), wrt=1, method=method).mean_jsv == pytest.approx(float(expected), rel=1e-4)
