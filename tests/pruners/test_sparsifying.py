"""Pruners that train scales to be sparse, and rank units of all layers."""

import math

import pytest
import torch

import isometry
from isometry import RecedingBN, Slimming, networks, prune, train
from tests.models import normed_conv


def test_global_ranking_keeps_a_floor_and_reports_what_was_removed() -> None:
    model = normed_conv()
    with torch.no_grad():
        for index, module in enumerate(m for m in model.modules() if isinstance(m, networks.BoundedBatchNorm2d)):
            module.weight.copy_(torch.arange(len(module.weight)) + (-100.0 if index == 0 else 100.0 * index))
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    result = prune(model, RecedingBN(epochs=0), 0.5, data=data)
    removed = {layer: len(units) for layer, units in result.plan.removed.items()}
    assert removed == {"features.0": 7, "features.3": 5, "features.7": 0, "features.10": 0}  # 16 of 32 asked for
    assert result.ratio == 12 / 32
    assert "37.5% of the units removed" in str(result)


def test_ranking_by_layer_is_uniform() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    uniform = prune(normed_conv("batch"), Slimming(strength=0, epochs=0, scope="layer"), 0.5, data=data)
    assert {layer: len(units) for layer, units in uniform.plan.removed.items()} == {
        "features.0": 5, "features.3": 4, "features.7": 4, "features.10": 3,
    }  # fmt: skip


def test_of_equal_units_the_first_are_removed() -> None:
    model = normed_conv()
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    with torch.no_grad():  # ties: the first units are removed, in every run
        for module in model.modules():
            if isinstance(module, networks.BoundedBatchNorm2d):
                module.weight.fill_(-1e4)
    tied = prune(model, RecedingBN(epochs=0), 0.25, data=data)
    assert tied.plan.removed["features.0"] == tuple(range(7))


def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(ValueError, match="scope='everywhere'"):
        Slimming(scope="everywhere")


def test_conditioning_resumes_bit_for_bit(digits: isometry.data.Data, tmp_path) -> None:
    pruner = Slimming(strength=1e-3, epochs=3, lr=0.05)
    whole = prune(normed_conv("batch"), pruner, 0.5, data=digits, progress=False)
    file = tmp_path / "training.safetensors"
    half = normed_conv("batch")
    for epoch in train(half, digits, **pruner.recipe().arguments(), seed=0, checkpoint=f"{file}.before_selection"):
        if epoch.number == 2:
            break
    resumed = prune(normed_conv("batch"), pruner, 0.5, data=digits, progress=False, checkpoint=file)
    assert resumed.history["number"].tolist() == [2, 3]  # the second epoch was not written, it is done again
    assert math.isclose(whole.history["loss"].iloc[-1], resumed.history["loss"].iloc[-1], rel_tol=1e-6)
    assert whole.plan == resumed.plan
