"""Networks on which a measurement could be wrong without a word: each is right, or refused by name."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_models import truth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

from isometry import compare, measure
from isometry.view import View, frozen


class Wired(nn.Module):
    """Modules by name, and how they are wired."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.wiring(self, *inputs)


def mean(net: nn.Module, x: Tensor) -> float:
    return float(truth(net.double(), x).mean())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_operations_in_place_do_not_spoil_a_replayed_derivative() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.SELU(inplace=True), nn.Linear(64, 64), nn.SELU(inplace=True))
    x = torch.randn(150, 64)
    for options in ({}, {"at": "0"}):
        exact = measure(net, x, method="exact", **options).mean_jsv
        low, high = measure(net, x, method="krylov", rtol=0.02, **options).interval
        assert 0.99 * low < exact < 1.01 * high


def skipping() -> nn.Module:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "skip": nn.Linear(40, 40)}
    return Wired(lambda m, x: m.up(m.narrow(x).tanh()) + (8 * m.skip(x) - 12).relu(), **modules)


def branching() -> nn.Module:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "wide": nn.Linear(40, 40)}
    return Wired(lambda m, x: m.wide(x) if x.sum() > 5 else m.up(m.narrow(x)), **modules)


def checkpointed() -> nn.Module:
    inner = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 8))
    return Wired(lambda m, x: m.head(checkpoint(m.inner, x, use_reentrant=True)), inner=inner, head=nn.Linear(8, 40))


@pytest.mark.parametrize("build", [skipping, branching, checkpointed])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_cut_that_is_none_at_other_samples_is_left(build: Callable[[], nn.Module]) -> None:
    net, x = build(), torch.randn(12, 40)
    found = measure(net, list(x.split(1 if build is branching else 4))).mean_jsv
    slow = nn.Sequential(net.inner, net.head) if build is checkpointed else net
    assert found == pytest.approx(mean(slow, x), rel=1e-5)


def test_an_input_counted_from_the_end_is_that_input() -> None:
    modules = {"narrow": nn.Linear(40, 4), "up": nn.Linear(4, 40), "skip": nn.Linear(40, 40)}
    net = Wired(lambda m, a, b: m.up(m.narrow(b).tanh()) + m.skip(b), **modules)
    pair = (torch.randn(4, 40), torch.randn(4, 40))
    assert measure(net, pair, wrt=-1).mean_jsv == pytest.approx(measure(net, pair, wrt=1).mean_jsv)


def test_folding_leaves_the_outputs_of_tapped_containers() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight, 3, 5)
    body = nn.Sequential(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(OrderedDict(body=body, norm=norm, act=nn.ReLU(), flat=nn.Flatten(), head=nn.Linear(144, 5)))
    x = torch.randn(4, 3, 8, 8)
    net.eval()
    found = [measure(net, x, layers=name).layers for name in ("body", "body.0", "norm")]
    assert all(table is not None for table in found)
    inside, itself, behind = (float(table["mean_jsv"].iloc[0]) for table in found if table is not None)
    assert inside == pytest.approx(itself)
    assert inside > 2 * behind  # the norm multiplies by 3 to 5
    assert measure(net, x, at="body").mean_jsv == pytest.approx(inside, rel=1e-5)


def test_layers_inside_a_checkpoint_are_those_of_the_first_pass() -> None:
    inner, head = nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 8)), nn.Linear(8, 5)
    net = Wired(lambda m, x: m.head(checkpoint(m.inner, x, use_reentrant=False)), inner=inner, head=head)
    plain = Wired(lambda m, x: m.head(m.inner(x)), inner=inner, head=head)
    x = torch.randn(4, 10)
    tables = [measure(n, x, layers="*").layers for n in (net, plain)]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0]["mean_jsv"].tolist() == pytest.approx(tables[1]["mean_jsv"].tolist(), rel=1e-5)


def test_outputs_of_any_layout_have_layers() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding="same"))
    table = measure(net, torch.randn(3, 2, 4, 4), layers=True).layers
    assert table is not None
    assert table["mean_jsv"].iloc[-1] == 1
    assert table["operator"].tolist() == ["exact", "exact"]


def test_a_layer_whose_output_is_not_used_is_left_out_and_named() -> None:
    last = nn.LSTM(6, 5, batch_first=True)
    net = Wired(lambda m, x: m.head(m.rnn(x)[1][0][-1]), rnn=last, head=nn.Linear(5, 3))
    report = measure(net, torch.randn(4, 3, 6), layers="*")
    assert report.layers is not None
    assert report.layers["layer"].tolist() == ["head"]
    assert any("without rnn" in note for note in report.notes)


def test_one_number_a_sample_is_a_fine_output_and_a_fine_input() -> None:
    net = Wired(lambda m, x: m.a(x).squeeze(1), a=nn.Linear(6, 1))
    x = torch.randn(4, 6)
    for method in ("exact", "krylov"):
        assert measure(net, x, method=method).mean_jsv == pytest.approx(float(net.a.weight.detach().norm()), rel=1e-5)
    timed = Wired(lambda m, x, t: m.a(x) * t[:, None].sin(), a=nn.Linear(6, 3))
    t = torch.rand(4)
    expected = (timed.a(x) * t[:, None].cos()).norm(dim=1).mean().detach()
    for method in ("exact", "krylov"):
        assert measure(timed, (x, t), wrt=1, method=method).mean_jsv == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_other_inputs_are_repeated_with_the_samples_and_get_no_gradient() -> None:
    net = Wired(lambda m, x, y: m.b(checkpoint(m.a, x, use_reentrant=True) * y), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    x, y = torch.randn(5, 6), torch.rand(5, 6, requires_grad=True)
    expected = [torch.linalg.svdvals(net.b.weight * one @ net.a.weight).mean() for one in y]
    assert measure(net, (x, y), wrt=0).mean_jsv == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-5)
    assert y.grad is None


def test_masked_networks_are_copied() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    torch_prune.random_unstructured(net[0], "weight", 0.5)
    x = torch.randn(4, 6)
    single = measure(net, x).mean_jsv
    assert measure(net, x, dtype=torch.float64).mean_jsv == pytest.approx(single, rel=1e-5)


def test_buffers_written_behind_torchs_back_are_given_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)
            self.register_buffer("m", torch.zeros(4))
            self.register_buffer("v", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            F.batch_norm(h.detach(), self.m, self.v, training=True)
            return h

    net = Counting()
    measure(net, torch.randn(4, 6))
    assert not net.m.any()
    assert (net.v == 1).all()


def test_settings_of_the_backends_are_the_users_again() -> None:
    seen = []
    torch.backends.cudnn.deterministic = True
    try:
        net = Wired(lambda m, x: seen.append(torch.backends.cudnn.deterministic) or m.a(x), a=nn.Linear(3, 2))
        before = torch.backends.cudnn.allow_tf32
        assert before
        with frozen(net), View(net).differentiable():
            assert not torch.backends.cudnn.allow_tf32
        measure(net, torch.randn(2, 3))
        assert torch.backends.cudnn.allow_tf32 == before
        assert all(seen)
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_of_products_is_the_users_again(precision: str) -> None:
    seen = []
    net = Wired(lambda m, x: seen.append(torch.get_float32_matmul_precision()) or m.a(x), a=nn.Linear(3, 2))
    torch.set_float32_matmul_precision(precision)
    try:
        measure(net, torch.randn(2, 3))
        assert torch.get_float32_matmul_precision() == precision
        assert "highest" in seen
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_mask_of_infinity_is_not_blamed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((3, 3), -torch.inf), diagonal=1)
        return m.head(m.block(x, src_mask=mask))

    net = Wired(forward, block=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), head=nn.Linear(6, 2))
    assert measure(net, torch.randn(4, 3, 6)).mean_jsv > 0
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"output of head \(Linear\)"):
        measure(net, torch.randn(4, 3, 6))


def test_tokens_with_labels_need_nothing_but_the_embedding_named() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    batch = (torch.randint(0, 9, (5, 3)), torch.randint(0, 3, (5,)))
    expected = float(torch.linalg.svdvals(net[2].weight.detach()).mean())
    for given in (batch, [batch, batch]):
        assert measure(net, given, at="0").mean_jsv == pytest.approx(expected, rel=1e-5)


def test_a_larger_budget_keeps_buying_a_shorter_interval() -> None:
    net = nn.Sequential(nn.Linear(150, 256), nn.Tanh(), nn.Linear(256, 150))
    x = torch.randn(2000, 150)
    widths: dict[str, list[float]] = {"krylov": [], "auto": []}
    for method, found in widths.items():
        for budget in (2000, 16_000):
            report = measure(net, x, method=method, budget=budget)
            found.append((report.interval[1] - report.interval[0]) / 2 / report.mean_jsv)
            assert report.components["probes"] >= 0
            assert report.cost.products < 1.1 * budget
    assert widths["krylov"][1] < 0.6 * widths["krylov"][0]
    assert widths["auto"][1] < 0.6 * widths["krylov"][1]  # exact, where brackets are wider than the rest


def test_budgets_are_fine_with_an_orthogonal_network() -> None:
    net = nn.Linear(200, 200, bias=False)
    nn.init.orthogonal_(net.weight)
    for method in ("krylov", "auto"):
        report = measure(net, torch.randn(20, 200), method=method, budget=500)
        assert report.mean_jsv == pytest.approx(1, abs=1e-5)


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


def time_first() -> nn.Module:
    return Wired(lambda m, x: m.head(m.rnn(x.transpose(0, 1))[0][-1]), rnn=nn.LSTM(6, 6), head=nn.Linear(6, 3))


def unused() -> nn.Module:
    return Wired(lambda m, x: m.head(m.rnn(x)[1][0][-1]), rnn=nn.LSTM(6, 6, batch_first=True), head=nn.Linear(6, 3))


def attention() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=False))


def broken(name: str) -> nn.Module:
    net = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
    with torch.no_grad():
        net.get_parameter(name).view(-1)[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: measure(time_first(), x, layers="rnn"), ValueError, "rnn.*samples must come first"),
        (lambda x: measure(unused(), x, at="rnn"), ValueError, "do not depend on.*rnn"),
        (lambda x: measure(unused(), x, layers="rnn"), ValueError, "rnn, none of which"),
        (lambda x: measure(attention(), x), ValueError, "self_attn .MultiheadAttention. mixes.*batch_first=True"),
        (
            lambda x: measure(broken("self_attn.in_proj_weight"), x),
            ValueError,
            "self_attn .Multihead.*self_attn.in_proj",
        ),
        (lambda x: measure(broken("linear1.weight"), x), ValueError, "linear1 .Linear.*linear1.weight"),
        (lambda x: measure(checkpointed(), torch.randn(3, 40), layers=True), ValueError, "use_reentrant=False"),
        (lambda x: measure(nn.Linear(6, 0), x), ValueError, r"\(2, 3, 0\), which hold nothing"),
        (lambda x: measure(torch.jit.trace(nn.Linear(6, 2), x), x), TypeError, "TorchScript"),
        (lambda x: measure(nn.LazyLinear(3), x), ValueError, "not initialised"),
        (lambda x: measure(None, x), TypeError, "NoneType.*e.g."),  # type: ignore[arg-type]
        (lambda x: measure(nn.Linear(6, 2), x, wrt=0), TypeError, "wrt=0 with a tensor.*wrt=0"),
        (lambda x: measure(nn.Linear(6, 2), (x.long(),), wrt=0), TypeError, "int64.*no derivative"),
        (lambda x: measure(nn.Linear(6, 2), (x * torch.nan,), wrt=0), ValueError, "NaN or infinite"),
        (lambda x: measure(nn.Linear(6, 2), x, layers=None), ValueError, "layers=None"),  # type: ignore[arg-type]
        (lambda x: measure(nn.Linear(6, 2), x, rtol="a"), ValueError, "rtol=a"),  # type: ignore[arg-type]
        (lambda x: measure(nn.Linear(6, 2), x, budget=True), ValueError, "budget=True"),
        (lambda x: measure(nn.Linear(6, 2), x, dtype=torch.int32), ValueError, "int32.*float64"),
        (lambda x: compare([nn.Linear(6, 2)], x), ValueError, "a list; it takes"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Lazy modules", "ignore:Initializing zero", "ignore:None of the inputs have"
)
def test_what_would_be_wrong_is_refused_by_name(call: Callable[[Tensor], Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call(torch.randn(4, 3, 6))
