"""Networks whose own code does more than call layers: what they return, hold, change and draw."""

import dataclasses
import warnings
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

import isometry
from isometry.networks.precision import no_fast_path
from tests.models import Wired

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Out:
    logits: Tensor
    features: Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    logits: Tensor
    features: Tensor


class Pair(namedtuple("Pair", "logits features")):
    pass


def net(forward: Any, **others: nn.Module) -> Wired:
    torch.manual_seed(0)
    return Wired(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 10), c=nn.Linear(10, 3), **others)


def hidden(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.b(F.relu(self.a(x))))


@pytest.mark.parametrize(
    "pack",
    [
        lambda y, h: (y, Out(y, h)),
        lambda y, h: {"all": [Slotted(y, h)]},
        lambda y, h: OrderedDict(logits=y, features=h),
        lambda y, h: (y, Independent(Normal(h, 1.0), 1)),
        Pair,
        Slotted,
    ],
)
def test_what_a_network_returns_keeps_its_width_however_it_is_packed(pack: Any) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        h = hidden(self, x)
        return pack(self.c(h), h)

    pruned = isometry.prune(net(forward), isometry.L1(), 0.5, inputs=X)
    assert pruned.plan.removed.keys() == {"a"}
    assert "outputs of the network" in pruned.left_alone["b"]


def test_inputs_that_the_network_changes_in_place_stay_as_they_are() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(hidden(self, x.sub_(0.5)))

    x = X.clone()
    for pruner in (isometry.L1(), isometry.Magnitude()):
        isometry.prune(net(forward), pruner, 0.5, inputs=x)
    isometry.prune(net(forward), isometry.SNIP(), 0.5, data=(x, torch.zeros(4, dtype=torch.long)))
    assert torch.equal(x, X)


def test_a_network_that_holds_tensors_of_its_last_pass_is_copied() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.held = [hidden(self, x)]
        return self.c(self.held[0])

    model = net(forward)
    model(X).sum().backward()
    pruned = isometry.prune(model, isometry.L1(), 0.5, inputs=X)
    assert pruned.model.b.out_features == 5
    assert isometry.surgery.adopt(model, pruned.model.state_dict()).b.out_features == 5


def test_a_network_that_draws_noise_is_cut_where_the_noise_is_not() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x + torch.randn_like(x))))))

    model, state = net(forward), torch.get_rng_state()
    assert isometry.prune(model, isometry.L1(), 0.5, inputs=X).model.a.out_features == 4
    assert torch.equal(state, torch.get_rng_state())


def test_infinite_outputs_are_compared_by_their_places() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(hidden(self, x)).masked_fill(torch.tensor([False, True, False]), float("-inf"))

    assert isometry.prune(net(forward), isometry.L1(), 0.5, inputs=X).model.a.out_features == 4


def test_outputs_that_become_nan_are_a_difference() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        return self.c(F.relu(self.b(h))) * (h.shape[1] - 1) / torch.tensor(h.shape[1] - 1.0)

    with pytest.raises(ValueError, match=r"cannot be removed .*nan"):
        isometry.prune(net(forward), isometry.L1(), 7 / 8, layers="a", inputs=X)


def test_dropout_in_code_is_followed_where_only_training_reaches_a_layer() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.dropout(hidden(self, x), 0.5, self.training))

    pruned = isometry.prune(net(forward, unused=nn.Linear(2, 2)), isometry.L1(), 0.5, inputs=X)
    assert pruned.plan.removed.keys() == {"a", "b"}


class Scale(nn.Module):
    """A layer with a parameter of the width, and integers of the same value: a size, and a number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8))
        self.num_features = self.reset_every = 8

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.num_features
        return x * self.gamma


def test_only_integers_that_are_called_sizes_follow_a_cut() -> None:
    model = net(lambda self, x: self.c(F.relu(self.b(self.scale(F.relu(self.a(x)))))), scale=Scale())
    scale = isometry.prune(model, isometry.L1(), 0.5, layers="a", inputs=X).model.scale
    assert (scale.num_features, scale.reset_every) == (4, 8)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_network_is_pruned_as_the_one_inside(wrap: Any, tmp_path: Any) -> None:
    model = net(lambda self, x: self.c(hidden(self, x)))
    pruned = isometry.prune(wrap(model), isometry.L1(), {"a": 0.5}, inputs=X)
    assert pruned.plan.removed.keys() == {"a"}
    isometry.save(pruned, tmp_path / "pruned.safetensors")
    for target in (model, wrap(model)):
        loaded = isometry.load(tmp_path / "pruned.safetensors", target).model
        assert torch.equal(loaded(X), pruned.model(X))
        assert torch.equal(isometry.surgery.adopt(target, pruned.model.state_dict())(X), pruned.model(X))


@pytest.mark.parametrize("pruner", [isometry.L1(), isometry.Magnitude()])
def test_patterns_from_a_generator_are_read_in_full(pruner: Any) -> None:
    model = net(lambda self, x: self.c(hidden(self, x)))
    found = isometry.prune(model, pruner, 0.5, inputs=X, skip=(name for name in ["b"])).model
    assert found.b.out_features == 10
    assert not hasattr(found.b, "weight_mask")
    assert found.a.out_features == 4 or hasattr(found.a, "weight_mask")


def test_a_scalar_among_the_inputs_is_shared_by_all_samples() -> None:
    torch.manual_seed(0)
    model = Wired(lambda self, x, scale: self.c(F.relu(self.a(x))) * scale, a=nn.Linear(6, 8), c=nn.Linear(8, 3))
    assert isometry.prune(model, isometry.L1(), 0.5, inputs=(X, torch.tensor(2.0))).model.a.out_features == 4


def test_a_fraction_of_flops_is_reached_where_the_smallest_network_does_not_run() -> None:
    torch.manual_seed(0)
    model = Wired(
        lambda self, x: self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3), keepdim=True).squeeze()),
        a=nn.Conv2d(1, 8, 3), b=nn.Conv2d(8, 8, 3), c=nn.Linear(8, 3),
    )  # fmt: skip
    pruned = isometry.prune(model, isometry.L1(), flops=0.3, inputs=torch.randn(2, 1, 8, 8))
    assert 0.3 <= 1 - pruned.after.flops / pruned.before.flops < 0.6


@pytest.mark.parametrize("factor", [float("nan"), 1e30])
def test_an_archive_is_loaded_whatever_the_weights_of_the_model(factor: float, tmp_path: Any) -> None:
    model = net(lambda self, x: self.c(hidden(self, x)))
    pruned = isometry.prune(model, isometry.L1(), 0.5, inputs=X)
    isometry.save(pruned, tmp_path / "pruned.safetensors")
    other = net(lambda self, x: self.c(hidden(self, x)))
    nn.init.constant_(other.c.weight, factor)
    assert torch.equal(isometry.load(tmp_path / "pruned.safetensors", other).model(X), pruned.model(X))


def test_an_archive_brings_tied_masks_and_the_precision_of_unsaved_buffers(tmp_path: Any) -> None:
    def tied() -> Wired:
        torch.manual_seed(0)
        model = Wired(
            lambda self, t: self.o(F.relu(self.a(self.e(t) * self.frequencies))),
            e=nn.Embedding(20, 8), a=nn.Linear(8, 8), o=nn.Linear(8, 20, bias=False),
        )  # fmt: skip
        model.o.weight = model.e.weight
        model.register_buffer("frequencies", torch.rand(8), persistent=False)
        return model

    tokens = torch.arange(8).view(2, 4)
    masked = isometry.prune(tied(), isometry.Magnitude(), 0.5, inputs=tokens)
    isometry.save(masked, tmp_path / "tied.safetensors")
    loaded = isometry.load(tmp_path / "tied.safetensors", tied(), inputs=tokens).model
    assert torch.equal(loaded(tokens), masked.model(tokens))

    half = net(lambda self, x: self.c(hidden(self, (x.float() * self.frequencies).to(x.dtype)))).bfloat16()
    half.register_buffer("frequencies", torch.rand(6), persistent=False)
    pruned = isometry.prune(half, isometry.L1(), 0.5, inputs=X.bfloat16())
    isometry.save(pruned, tmp_path / "half.safetensors")
    found = isometry.load(tmp_path / "half.safetensors", half).model
    assert found.frequencies.dtype == torch.float32
    assert torch.equal(found(X.bfloat16()), pruned.model(X.bfloat16()))


def test_a_state_of_more_than_tensors_is_refused_by_name(tmp_path: Any) -> None:
    class Counting(Wired):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    model = Counting(lambda self, x: self.c(F.relu(self.a(x))), a=nn.Linear(6, 8), c=nn.Linear(8, 3))
    pruned = isometry.prune(model, isometry.L1(), 0.5, inputs=X)
    with pytest.raises(ValueError, match=r"more than tensors.*_extra_state \(dict\)"):
        isometry.save(pruned, tmp_path / "pruned.safetensors")


def test_a_repair_names_what_it_leaves_alone() -> None:
    torch.manual_seed(0)
    model = Wired(
        lambda self, x: self.c(self.attention(x, x, x)[0].mean(1)),
        attention=nn.MultiheadAttention(8, 4, batch_first=True), c=nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x = torch.randn(8, 5, 8)
    pruned = isometry.prune(model, isometry.L1(), 0.5, inputs=x).model
    with pytest.warns(UserWarning, match=r"leaves attention.out_proj as they are") as caught:
        isometry.repair(pruned, reference=model, data=x, progress=False)
    assert caught[0].filename == __file__


def test_a_transformer_with_padding_is_repaired_and_measured() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = nn.TransformerEncoder(layer, 2)
    model = Wired(
        lambda self, x: self.c(self.encoder(x, src_key_padding_mask=x[..., 0] > 1).mean(1)),
        encoder=encoder,
        c=nn.Linear(8, 3),
    ).eval()
    x = torch.randn(32, 5, 8)
    x[:, 0, 0] = 0  # some token is always there
    pruned = isometry.prune(model, isometry.L1(), 0.5, inputs=x[:2], layers="*linear1").model
    repaired = isometry.repair(pruned, reference=model, data=x, progress=False)
    with torch.no_grad(), no_fast_path():
        before, after = ((other(x) - model(x)).square().mean() for other in (pruned, repaired))
    assert after < before
    assert isometry.measure(model, x, progress=False).mean_jsv > 0


@pytest.mark.parametrize("verb", ["prune", "repair", "recalibrate", "orthogonalize", "adopt"])
def test_verbs_that_make_networks_refuse_inference_mode(verb: str) -> None:
    model = net(lambda self, x: self.c(hidden(self, x)))
    calls = {
        "prune": lambda: isometry.prune(model, isometry.L1(), 0.5, inputs=X),
        "repair": lambda: isometry.repair(model, reference=model, data=X),
        "recalibrate": lambda: isometry.recalibrate(model, X),
        "orthogonalize": lambda: isometry.orthogonalize(model),
        "adopt": lambda: isometry.surgery.adopt(model, model.state_dict()),
    }
    with torch.inference_mode(), pytest.raises(ValueError, match=f"^{verb}\\(\\) was called in torch.inference_mode"):
        calls[verb]()
