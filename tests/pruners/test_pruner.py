"""What all pruners share: scores of units, seeds, the model given."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

import isometry
from isometry import L1, TPP, GReg2, Random, RecedingBN, Slimming, networks, prune
from isometry.networks import BoundedBatchNorm2d
from tests.models import joined


@pytest.mark.parametrize("pruner", [L1(), Random()], ids=lambda pruner: type(pruner).__name__)
def test_a_larger_ratio_removes_a_superset(pruner: isometry.Pruner) -> None:
    net = networks.build("lenet-5-relu", seed=3)
    plans = [prune(net, pruner, ratio, seed=5).plan for ratio in (0.0, 0.2, 0.5, 0.8)]
    assert plans[0].ratio == 0
    for small, large in pairwise(plans):
        assert all(set(small.removed[layer]) <= set(large.removed[layer]) for layer in small.removed)
    assert prune(net, pruner, 0.5, seed=5).plan == plans[2]


@pytest.mark.parametrize(
    "pruner", [L1(), isometry.Slimming(epochs=0, scope="layer", floor=1)], ids=lambda pruner: type(pruner).__name__
)
def test_coupled_layers_are_averaged_unit_by_unit(pruner: isometry.Pruner) -> None:
    x = torch.randn(4, 3, 5, 5)
    plan = prune(joined(), pruner, 0.25, inputs=x, data=(x, torch.arange(4) % 2)).plan
    assert plan.removed["a"] == plan.removed["s"] == (0, 1, 2, 3)
    assert plan.removed["b"] == ()


def test_frozen_layers_stay_frozen() -> None:
    net = networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6))
    net.net[0].requires_grad_(False)
    result = prune(net, L1(), 0.5)
    assert [p.requires_grad for p in result.model.parameters()] == [False, False, True, True, True, True]


def test_training_before_selection_can_be_switched_off_where_ratios_can_share_it() -> None:
    for pruner in (Slimming(epochs=3, strength=0.5), RecedingBN(epochs=3, shift=1.0)):
        assert pruner.trains_before_selection
        trained = pruner.without_training()
        assert not trained.trains_before_selection
        assert trained == dataclasses.replace(pruner, epochs=0)
    for other in (
        L1(),
        Random(),
        TPP(),
        GReg2(),
    ):  # GReg-2 trains the units that may be removed: not those of all layers
        assert not other.trains_before_selection
        assert other.without_training() is other


def test_receding_bn_adapts_a_network_to_bounded_batchnorm_once() -> None:
    plain = networks.build("conv-4", seed=0, input_shape=(1, 8, 8), norm="batch").eval()
    adapted = RecedingBN().adapt(plain)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(adapted(x), plain(x))
    assert any(isinstance(module, BoundedBatchNorm2d) for module in adapted.modules())
    assert RecedingBN().adapt(adapted) is adapted
    assert not any(isinstance(module, BoundedBatchNorm2d) for module in plain.modules())
    assert Slimming().adapt(plain) is plain


PRUNERS = [getattr(isometry.pruners, name) for name in isometry.pruners.__all__]
LIMITED = [
    (kind, name) for kind in PRUNERS if isinstance(kind, type) and hasattr(kind, "limits") for name in kind.limits
]


@pytest.mark.parametrize(("kind", "name"), LIMITED, ids=[f"{kind.__name__}-{name}" for kind, name in LIMITED])
def test_hyperparameters_that_are_no_numbers_in_their_range_are_refused(kind: type[isometry.Pruner], name: str) -> None:
    accepted, example = (
        kind.limits[name],
        rf"{kind.__name__}\(\) got {name}=.*it takes .*, e\.g\. {kind.__name__}\({name}=",
    )
    below = [accepted.least - 1] if accepted.least > -math.inf else []
    for wrong in [
        "1",
        math.nan,
        True,
        [1],
        *below,
        *([accepted.least] if accepted.above else []),
        *([1.5] if accepted.whole else []),
    ]:
        with pytest.raises(ValueError, match=example):
            kind(**{name: wrong})
    assert getattr(kind(**{name: 3}), name) == 3


def test_every_number_among_the_hyperparameters_of_a_pruner_has_its_limits() -> None:
    for kind in {kind for kind, _ in LIMITED}:
        numbers = {f.name for f in dataclasses.fields(kind) if f.type in ("int", "float", "int | None", "float | None")}
        assert numbers == set(kind.limits), kind
