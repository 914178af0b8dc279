"""GReg-1 and GReg-2."""

import copy
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import isometry
from isometry import TPP, GReg, prune
from isometry.data import Data, Split
from tests.models import small_conv
from tests.references import sgd_by_hand, slow_weight_decay

SHORT = {"delta": 0.05, "interval": 2, "stabilize": 60, "zero_out": 5, "batch_size": 64}


def test_tpp_without_gram_is_greg_exactly(dense: nn.Module, digits: isometry.data.Data) -> None:
    same = {**SHORT, "interval": 10, "zero_out": None, "magnitude_ratio": 1.3}
    greg = prune(dense, GReg(**same), 0.5, data=digits)
    tpp = prune(dense, TPP(**same, gram=0.0, biases=False, norms=False), 0.5, data=digits)
    for one, other in zip(greg.model.state_dict().values(), tpp.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    pd.testing.assert_frame_equal(greg.history.drop(columns="seconds"), tpp.history.drop(columns="seconds"))
    assert greg.history["strength"].max() < 1  # the magnitude ratio ended the growth


def test_greg_2_grows_on_all_units_then_chooses_and_contrasts() -> None:
    net = small_conv()
    data = Split(torch.randn(40, 2, 4, 4, dtype=torch.float64), torch.arange(40) % 3)
    pruner = isometry.GReg2(
        delta=0.3, interval=2, ceiling=1.0, stabilize=3, magnitude_ratio=None, pick_delta=0.2, pick=0.4, batch_size=16,
        lr=0.05, weight_decay=1e-3,
    )  # fmt: skip
    result = prune(net, pruner, 0.5, data=data, seed=5)
    reference = copy.deepcopy(net)
    layers = [reference[0], reference[3]]
    training: dict[str, Any] = {"seed": 5, "batch_size": 16, "decay": 1e-3}

    everything = [torch.arange(len(layer.weight)) for layer in layers]
    sgd_by_hand(
        reference, *data, [0.05] * 5, lambda s: slow_weight_decay(layers, everything, min(0.2 * (s // 2), 0.4), 0.0),
        **training,
    )  # fmt: skip
    removed = [layer.weight.detach().abs().mean((1, 2, 3)).argsort()[: len(layer.weight) // 2] for layer in layers]
    assert {layer: set(units) for layer, units in result.plan.removed.items()} == {
        name: set(units.tolist()) for name, units in zip(("0", "3"), removed, strict=True)
    }

    def contrasting(step: int) -> Tensor:
        grown = 0.3 * (step // 2)
        return slow_weight_decay(layers, removed, min(0.4 + grown, 1.0), max(0.4 - grown, 0.0))

    sgd_by_hand(reference, *data, [0.05] * 7, contrasting, **training)
    kept = [
        sorted(set(range(len(layer.weight))) - set(units.tolist()))
        for layer, units in zip(layers, removed, strict=True)
    ]
    torch.testing.assert_close(result.model[0].weight, layers[0].weight[kept[0]], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.model[3].weight, layers[1].weight[kept[1]][:, kept[0]], rtol=1e-9, atol=1e-11)
    assert list(result.history["stage"].unique()) == ["before_selection", "after_selection"]
    assert result.history["strength"].max() == 1.0


def test_greg_2_may_zero_out(digits: Data) -> None:
    pruner = isometry.GReg2(delta=0.5, interval=1, ceiling=1.0, stabilize=40, zero_out=1, batch_size=32)
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    assert any(isometry.prune(net, pruner, 0.5, data=digits, progress=False).plan.removed.values())
