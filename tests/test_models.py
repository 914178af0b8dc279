"""Whatever module a user has: it is measured right, or refused by a message that names the module and the way out."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import batch_norm_net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from isometry import compare, measure
from isometry.report import Report


def truth(function: Any, leaf: Tensor) -> Tensor:
    """Singular values a sample in float64, one sample at a time, by torch.autograd.functional."""
    values = []
    for sample in leaf.double():
        j = torch.autograd.functional.jacobian(lambda s: function((s * 1)[None])[0].flatten(), sample)
        values.append(torch.linalg.svdvals(j.reshape(j.shape[0], -1)))
    return torch.stack(values)


def check(report: Report, expected: Tensor, rtol: float = 1e-5) -> None:
    """The exact values, or brackets that hold what they must."""
    torch.testing.assert_close(report.spectrum.values, expected, rtol=rtol, atol=rtol * float(expected.max()))


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


@pytest.mark.parametrize("method", ["exact", "krylov"])
@pytest.mark.parametrize("name", WORKS)
def test_models_that_people_have(name: str, method: str) -> None:
    build, shape = WORKS[name]
    torch.manual_seed(0)
    net = build().eval()
    x = torch.randn(4, *shape)
    expected = truth(copy.deepcopy(net).double(), x)
    report = measure(net, x, method=method)
    if method == "exact":
        check(report, expected)
        return
    # The bracket is certified for the probes; with as many independent probes as it takes, the truth is inside.
    wide = measure(net, x, method="krylov", budget=40_000)
    low, high = wide.interval
    assert low <= float(expected.mean()) * 1.02
    assert high >= float(expected.mean()) * 0.98
    assert float(wide.min_jsv) >= float(expected.min()) - 1e-4
    assert float(wide.max_jsv) <= float(expected.max()) * (1 + 1e-4)


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
        (lambda y: (y, y * 2), 0),
        (lambda y: {"out": y, "aux": 2 * y}, "out"),
        (lambda y: {"logits": y}, None),
        (lambda y: Output(y), None),
        (lambda y: Output(y), "logits"),
        (lambda y: (y,), None),
        (lambda y: [[y]], lambda result: result[0][0]),
    ],
)
def test_any_output_can_be_selected(tell: Any, output: Any) -> None:
    net = Tells(tell)
    x = torch.randn(3, 6)
    check(measure(net, x, output=output), truth(copy.deepcopy(net.a).double(), x))


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
    check(measure(net, ids, at="embedding"), truth(lambda e: head(e.tanh().flatten(1)), leaf))
    with pytest.raises(TypeError, match=r"dtype torch\.int64, which have no derivative.*at='embedding'"):
        measure(net, ids)
    with pytest.raises(ValueError, match=r"at='embed'; the model's modules are embedding, head"):
        measure(net, ids, at="embed")


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
    rows = [truth(lambda s, i=i: 2 * a(x[i : i + 1].double()) * b(s), z[i : i + 1]) for i in range(5)]
    expected = torch.cat(rows)
    check(measure(net, {"x": x, "z": z, "scale": 2.0}, wrt="z"), expected)
    check(measure(net, [(x[:3], z[:3], 2.0), (x[3:], z[3:], 2.0)], wrt=1), expected)
    with pytest.raises(
        TypeError, match=r"say which of them is differentiated, e\.g\. measure\(model, inputs, wrt='x'\)"
    ):
        measure(net, {"x": x, "z": z})
    with pytest.raises(ValueError, match="wrt='y'; the batch holds 'x', 'z'"):
        measure(net, {"x": x, "z": z}, wrt="y")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_computed_in_float32(half: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).to(half)
    x = torch.randn(4, 6, dtype=half)
    report = measure(net, x)
    check(report, truth(copy.deepcopy(net).double(), x))
    assert f"computed in float32, the model is in {str(half)[6:]}" in report.notes
    assert net[0].weight.dtype == half
    kept = measure(net, x, dtype=half) if half == torch.bfloat16 else report
    assert kept.mean_jsv == pytest.approx(report.mean_jsv, rel=0.03)
    assert measure(net, x, dtype=torch.float64).mean_jsv == pytest.approx(report.mean_jsv, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_masks_and_parametrisations_are_seen_through() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
    x = torch.randn(4, 6)
    expected = truth(copy.deepcopy(net).double(), x)
    check(measure(nn.DataParallel(net), x), expected)
    check(measure(torch.compile(net), x), expected)
    torch_prune.l1_unstructured(net[0], "weight", 0.5)
    masked = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), copy.deepcopy(net[2]))
    masked[0].load_state_dict({"weight": net[0].weight.detach(), "bias": net[0].bias})
    check(measure(net, x), truth(masked.double(), x))
    turned = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))
    assert measure(turned, x).isometry_gap < 1e-9


def test_checkpointed_models_are_measured() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.one, self.two, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 3), reentrant

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.utils.checkpoint.checkpoint(self.one, x, use_reentrant=self.reentrant).tanh())

    x = torch.randn(4, 6)
    for reentrant in (False, True):
        net = Checkpointed(reentrant)
        plain = nn.Sequential(copy.deepcopy(net.one), nn.Tanh(), copy.deepcopy(net.two)).double()
        check(measure(net, x), truth(plain, x))


def test_a_backward_that_does_not_exist_is_replaced_by_differences() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            raise NotImplementedError("no backward")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return OneWay.apply(self.a(x))

    net, x = Net(), torch.randn(3, 6)
    report = measure(net, x, dtype=torch.float64)
    assert any("differences" in note for note in report.notes)
    a = copy.deepcopy(net.a).double()
    check(report, truth(lambda s: a(s).sin(), x), rtol=1e-6)


def test_a_narrow_layer_before_the_output_is_used() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 30), nn.Tanh()
    )
    x = torch.randn(3, 1, 8, 8)
    report = measure(net, x)
    check(report, truth(copy.deepcopy(net).double(), x))
    assert any("narrow cut at 2 (5 of 30)" in note for note in report.notes)
    assert report.cost.products < 3 * 30

    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.head, self.around = nn.Linear(40, 4), nn.Linear(4, 30), nn.Linear(40, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.narrow(x).tanh()) + self.around(x)

    leaky, x = Leaks(), torch.randn(3, 40)
    report = measure(leaky, x)
    check(report, truth(copy.deepcopy(leaky).double(), x))
    assert not any("narrow" in note for note in report.notes)


def test_folding_a_conv_that_is_read_twice_is_noticed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
            nn.init.uniform_(self.norm.weight, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head((self.norm(y).relu() + y).mean((2, 3)))

    net, x = Twice().eval(), torch.randn(3, 1, 6, 6)
    report = measure(net, x)
    check(report, truth(copy.deepcopy(net).double(), x))
    assert not any("folded" in note for note in report.notes)


@pytest.mark.parametrize("name", WORKS)
def test_models_on_cuda_agree_with_the_cpu(cuda: torch.device, name: str) -> None:
    build, shape = WORKS[name]
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(4, *shape)
    expected = measure(net, x).mean_jsv
    report = measure(copy.deepcopy(net).to(cuda), x)
    assert report.mean_jsv == pytest.approx(expected, rel=1e-3)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.round(self.a(x).detach().numpy() * 8))


REFUSED = [
    (lambda: measure(nn.Sequential(nn.Linear(6, 4), Random()), torch.randn(3, 6)), ValueError, r"1 \(Random\) is random or keeps state in eval mode"),
    (lambda: measure(nn.Sequential(nn.Linear(6, 4), Counts()), torch.randn(3, 6)), ValueError, r"1 \(Counts\) is random or keeps state"),
    (lambda: measure(Rounds(), torch.randn(3, 6)), ValueError, "carry no gradient: an operation of the model is not differentiable"),
    (lambda: measure(nn.LSTM(4, 6), torch.randn(3, 7, 4), output=0), ValueError, r"the model \(LSTM\) mixes the samples.*batch_first=True"),
    (lambda: measure(nn.LSTM(4, 6, batch_first=True), torch.randn(3, 7, 4)), TypeError, "returns a tuple of 2. Say which part is meant"),
    (lambda: measure(Tells(lambda y: y.sum(0, keepdim=True)), torch.randn(3, 6)), ValueError, r"outputs of shape \(1, 4\) for 2 inputs"),
    (lambda: measure(nn.Linear(6, 4), [torch.randn(2, 6), torch.randn(2, 3, 6)]), ValueError, r"samples of different shapes, \(6,\) and \(3, 6\)"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), rtol=0.0), ValueError, r"rtol=0\.0; it is the half-width"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), rtol=1.5), ValueError, r"rtol=1\.5"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), budget=0), ValueError, "budget=0; it is a number of products"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), layers=True, method="krylov"), ValueError, "layers need every row"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), layers="conv*"), ValueError, r"layers='conv\*', which matches no module"),
    (lambda: measure(nn.Linear(6, 4), torch.randn(3, 6), output="loss"), ValueError, "output='loss', but the model returns"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_cannot_be_measured_is_refused_with_the_way_out(case: int) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_models_are_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 4))
    net[0] = torch.ao.nn.quantized.dynamic.Linear(6, 4)
    with pytest.raises(ValueError, match=r"cannot differentiate 0 \(Linear\), which is quantised"):
        measure(net, torch.randn(3, 6))


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    class Interrupts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.calls = nn.Linear(6, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return self.a(x)

    net = Interrupts().train()
    with pytest.raises(KeyboardInterrupt):
        measure(net, torch.randn(3, 6))
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert not net.a._forward_hooks


@pytest.mark.parametrize("kind", [nn.SiLU, nn.ELU, nn.LeakyReLU])
def test_operations_in_place_behind_a_captured_module_change_nothing(kind: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64, dtype=torch.float64)
    first, last = nn.Linear(64, 32).double(), nn.Linear(32, 100).double()
    plain = nn.Sequential(first, kind(), last)
    hurried = nn.Sequential(first, kind(inplace=True), last)
    expected = truth(plain, x)
    report = measure(hurried, x, progress=False)
    assert any("narrow cut" in note for note in report.notes)
    torch.testing.assert_close(report.spectrum.values[:, :32], expected[:, :32], rtol=1e-9, atol=1e-12)
    for at in ("0",):
        a, b = (measure(net, x, at=at, progress=False).spectrum.values for net in (plain, hurried))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    one, other = (measure(net, x, layers=["0"], progress=False).layers for net in (plain, hurried))
    assert one["mean_jsv"].tolist() == pytest.approx(other["mean_jsv"].tolist(), rel=1e-9)


def test_a_network_that_changes_its_inputs_in_place_leaves_the_users_alone() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.sub_(0.5).div_(0.25).square())

    net = Normalising().double()
    x = torch.randn(7, 6, dtype=torch.float64)
    before = x.clone()
    expected = truth(lambda s: net(s.clone()), x)
    for method in ("exact", "krylov"):
        report = measure(net, x, method=method, progress=False)
        assert torch.equal(x, before)
        assert report.mean_jsv == pytest.approx(float(expected.mean()), rel=0.2 if method == "krylov" else 1e-9)
    table = compare({"a": net, "same": net}, x)
    assert table["difference"].tolist() == [0, 0]


def test_samples_that_meet_without_a_gradient_are_found() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x / x.detach().abs().max())

    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        measure(Scaled(), torch.randn(7, 6))
    assert measure(Scaled(), torch.randn(1, 6)).mean_jsv > 0


def test_masked_layers_in_front_of_a_batchnorm_are_not_folded() -> None:
    torch.manual_seed(0)
    net = batch_norm_net().double().eval()
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = measure(net, x, progress=False).spectrum.values
    torch.testing.assert_close(found, truth(net, x), rtol=1e-8, atol=1e-12)


def test_buffers_bound_anew_in_the_forward_pass_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.head(x)

    net = Counting()
    measure(net, torch.randn(3, 4))
    assert float(net.calls) == 0


def test_pairs_of_inputs_and_targets_are_told_from_batches() -> None:
    net = nn.Linear(4, 2)
    x = torch.randn(9, 4)
    for given in ((x, torch.randn(9, 1)), [x, torch.zeros(9, dtype=torch.long)], (x, torch.randn(9))):
        assert len(measure(net, given).spectrum) == 9
    assert len(measure(net, [x, x + 1]).spectrum) == 18
    with pytest.raises(ValueError, match=r"two tensors of one shape \(9, 4\): \(x, y\), or two batches"):
        measure(net, (x, x + 1))


def test_a_pilot_in_small_batches_loses_no_sample_and_budgets_price_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(160, 170), nn.Tanh(), nn.Linear(170, 150))
    x = torch.randn(6, 160)
    assert len(measure(net, list(x.split(1)), budget=2000, progress=False).spectrum) == 6
    tall = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 64))
    report = measure(tall, torch.randn(50, 8), layers=True, budget=300, progress=False)
    assert report.cost.products <= 330
    with pytest.raises(ValueError, match=r"budget=100\.5; it is a number of products"):
        measure(tall, budget=100.5)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        measure(tall)
    with pytest.raises(ValueError, match=r"inputs of dtype torch\.float64 for a model in torch\.float32"):
        measure(tall, torch.randn(3, 8, dtype=torch.float64))


def test_iterables_are_read_once_for_all_networks() -> None:
    class Fresh:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([torch.randn(6, 4)])

    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    assert compare({"a": net, "same": net}, Fresh())["difference"].tolist() == [0, 0]


def test_differences_of_brackets_cover_the_truth() -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(*[nn.Linear(60, 60, bias=False) for _ in range(4)]) for _ in range(2))
    x = torch.randn(400, 60)
    exact = compare({"a": a, "b": b}, x[:3], method="exact")
    found = compare({"a": a, "b": b}, x, method="krylov")
    low, high = found["difference_low"][1], found["difference_high"][1]
    assert low <= exact["difference"][1] <= high
