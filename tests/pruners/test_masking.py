"""Unstructured pruning: weights masked, nothing removed."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import isometry
from isometry import L1, SNIP, Magnitude, Pruning, RandomWeights, evaluate, measure, networks, prune, train
from isometry.data import Data
from tests.pruners.loops import assert_equal, net
from tests.pruners.test_stepwise import X

PRUNERS = [Magnitude(), Magnitude(scope="global"), RandomWeights(), SNIP(), SNIP(scope="layer")]


def layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.weight == 0 for name, layer in layers(model).items()}


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_the_requested_fraction_is_masked_and_nothing_is_removed(digits: Data, pruner: isometry.Pruner) -> None:
    dense = net()
    before = copy.deepcopy(dense.state_dict())
    result = prune(dense, pruner, 0.7, data=digits)
    counts = {name: mask.sum().item() for name, mask in zeros(result.model).items()}
    sizes = {name: layer.weight.numel() for name, layer in layers(dense).items()}
    if pruner.scope == "layer":
        assert counts == {name: -(-7 * size // 10) for name, size in sizes.items()}
    assert result.ratio == pytest.approx(sum(counts.values()) / sum(sizes.values()))
    assert sum(counts.values()) == pytest.approx(0.7 * sum(sizes.values()), abs=len(sizes))
    assert result.sparsity == pytest.approx({name: counts[name] / sizes[name] for name in sizes})
    assert (result.after.parameters, result.after.flops) == (result.before.parameters, result.before.flops)
    assert result.plan.removed == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    kept = layers(result.model)["features.3"]
    assert torch.equal(kept.weight, dense.features[3].weight * kept.weight_mask)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_magnitude_masks_what_torch_masks(scope: str) -> None:
    dense, other = net(), net()
    result = prune(dense, Magnitude(scope=scope), 0.75, inputs=X)
    pairs = [(layer, "weight") for layer in layers(other).values()]
    if scope == "global":
        count = math.ceil(0.75 * sum(layer.weight.numel() for layer, _ in pairs))
        torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=count)
    else:
        for layer, name in pairs:
            torch_prune.l1_unstructured(layer, name, math.ceil(0.75 * layer.weight.numel()))
    for name, mask in zeros(other).items():
        assert torch.equal(zeros(result.model)[name], mask)


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
def test_a_larger_ratio_masks_a_superset_at_once_and_in_rounds(digits: Data, pruner: isometry.Pruner) -> None:
    dense = net()
    first = prune(dense, pruner, 0.4, data=digits)
    at_once = prune(dense, pruner, 0.8, data=digits)
    again = prune(first.model, pruner, 0.8, data=digits)
    for name, mask in zeros(first.model).items():
        assert bool((zeros(at_once.model)[name] | ~mask).all())
        assert bool((zeros(again.model)[name] | ~mask).all())
    assert sum(first.sparsity.values()) < sum(again.sparsity.values())
    assert list(again.sparsity) == list(at_once.sparsity)


@pytest.mark.parametrize("optimizer", [None, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_training_keeps_the_zeros(digits: Data, optimizer: Any) -> None:
    masked = prune(net(), Magnitude(), 0.8, inputs=X).model
    before, start = zeros(masked), copy.deepcopy(masked)
    if optimizer is not None:
        optimizer = optimizer(masked.parameters(), lr=1e-3)
    epochs = list(train(masked, digits, lr=0.02, epochs=2, optimizer=optimizer))
    assert epochs[1].loss < epochs[0].loss
    for name, mask in zeros(masked).items():
        assert torch.equal(mask, before[name])
        assert not torch.equal(layers(masked)[name].weight, layers(start)[name].weight)
    copied = copy.deepcopy(masked)
    assert evaluate(copied, digits.test).loss == evaluate(masked, digits.test).loss


def test_a_masked_network_is_measured_as_one_with_zeros_is() -> None:
    masked = prune(net(), Magnitude(), 0.6, inputs=X).model
    plain = copy.deepcopy(masked)
    for layer in layers(plain).values():
        torch_prune.remove(layer, "weight")
    assert measure(masked, X).mean_jsv == pytest.approx(measure(plain, X).mean_jsv, rel=1e-5)


def test_a_masked_network_comes_back_from_its_file(tmp_path: Path) -> None:
    first = prune(net(), L1(), 0.3, inputs=X)
    both = first.then(prune(first.model, Magnitude(), 0.6, inputs=X))
    for name, result in (("masked", prune(net(), Magnitude(), 0.8, inputs=X)), ("both", both)):
        isometry.save(result, tmp_path / name)
        back = isometry.load(tmp_path / name, net(seed=9), inputs=X)
        assert back.plan == result.plan
        assert_equal(back.model, result.model)
        layout = torch.contiguous_format
        assert torch.equal(back.model.to(memory_format=layout)(X), result.model.to(memory_format=layout)(X))
        assert_equal(
            isometry.load(tmp_path / name, net() if name == "both" else back.model, inputs=X).model, result.model
        )
    with pytest.raises(ValueError, match=r"masked, which belongs to another network"):
        isometry.load(tmp_path / "masked", networks.build("mlp-7-linear"))


def test_the_report_names_what_was_masked() -> None:
    result = prune(net(), Magnitude(), {"features.*": 0.5}, skip="features.0", inputs=X)
    lines = str(result).splitlines()
    assert lines[0] == "features.3: 360 of 720 weights masked"
    assert result.left_alone == {"features.0": "not requested", "classifier": "not requested"}
    assert lines[-1] == "50.0% of the weights of these layers masked; parameters and FLOPs stay as they are"
    both = (first := prune(net(), L1(), 0.5, inputs=X)).then(prune(first.model, Magnitude(), 0.5, inputs=X))
    assert "50.0% of the units removed; parameters" in str(both)
    assert str(both).endswith("50.1% of the weights of these layers masked")


def test_a_ratio_of_zero_leaves_a_layer_without_a_mask() -> None:
    result = prune(net(), Magnitude(), {"*": 0.5, "classifier": 0.0}, inputs=X)
    assert "classifier" not in result.sparsity
    assert "classifier" in result.left_alone
    assert prune(net(), Magnitude(), 0.0, inputs=X).sparsity == {}


def test_every_layer_keeps_the_floor() -> None:
    dense = net()
    with torch.no_grad():
        dense.features[3].weight.mul_(1e-3)
    result = prune(dense, Magnitude(scope="global", floor=3), 0.9, inputs=X)
    assert int((~zeros(result.model)["features.3"]).sum()) == 3


def test_layers_that_a_mask_would_not_reach_are_left_alone() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), encoder, nn.Linear(8, 3))
    result = prune(model, RandomWeights(), 0.5, inputs=torch.randn(2, 5, 6))
    assert result.left_alone == {
        "0": "its weight is computed from other parameters",
        "1.self_attn.out_proj": "it does not run as a module of its own",
    }
    assert set(result.sparsity) == {"1.linear1", "1.linear2", "2"}


MLP = networks.build("mlp-7-linear", seed=0, input_shape=(12,), widths=(9, 9))
NAN = copy.deepcopy(MLP)
nn.init.constant_(NAN.net[0].weight, float("nan"))
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "ratio": (lambda: prune(MLP, Magnitude(), 1.0), r"prune\(\) got the ratio 1.0; it is the fraction of weights masked"),
    "flops": (lambda: prune(MLP, Magnitude(), flops=0.5), r"prune\(\) got ratio=None, flops=0.5.*Magnitude.*e.g."),
    "round_to": (lambda: prune(MLP, Magnitude(), 0.5, round_to=8), r"round_to=8 for Magnitude, which masks.*e.g."),
    "pattern": (lambda: prune(MLP, Magnitude(), {"conv*": 0.5}), r"pattern 'conv\*', which matches none.*net.0.*E.g."),
    "skip": (lambda: prune(MLP, Magnitude(), 0.5, skip="*"), r"leave no layer to mask of net.0, net.2, net.4.*e.g."),
    "no data": (lambda: prune(MLP, SNIP(), 0.5), r"prune\(\) got no data for SNIP.*e.g. prune\(model, isometry.SNIP"),
    "nan": (lambda: prune(NAN, Magnitude(), 0.5), r"scores of weights of net.0 that are not finite.*e.g."),
    "no layers": (lambda: prune(nn.ReLU(), Magnitude(), 0.5, inputs=X), r"can be masked: there are none.*E.g."),
    "stepwise": (lambda: Pruning(MLP, Magnitude(), 0.5), r"Pruning\(\) got Magnitude, which masks weights.*prune\("),
    "structured": (lambda: prune(prune(MLP, Magnitude(), 0.5).model, L1(), 0.5), "carries a mask of torch.nn.utils.prune"),
    "batch_size": (lambda: SNIP(batch_size=0), r"SNIP\(\) got batch_size=0.*e.g."),
    "scope": (lambda: Magnitude(scope="net"), r"Magnitude\(\) got scope='net'.*e.g."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_the_call_that_works(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
