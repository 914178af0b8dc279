"""Protocols of comparisons."""

import pytest

import isometry
from isometry.trials.protocols import growing, predictor_methods


@pytest.mark.parametrize(("steps", "settle"), [(100, 28), (600, 100), (4266, 1194)])
def test_short_growing_penalties_take_the_steps_they_are_given_and_pull_alike(steps: int, settle: int) -> None:
    pruner = isometry.GReg(**growing(steps, settle, batch_size=64), magnitude_ratio=None)
    strengths = [min(pruner.delta * (step // pruner.interval), pruner.ceiling) for step in range(steps)]
    pull = sum(pruner.lr * strength / (1 - pruner.momentum) for strength in strengths)
    assert pull == pytest.approx(7.7, rel=0.01)
    assert strengths.count(pruner.ceiling) == pytest.approx(settle, abs=1)
    assert pruner.stabilize == settle


def test_a_short_growing_penalty_trains_for_the_steps_it_is_given() -> None:
    data = isometry.data.load("digits")
    net = isometry.networks.build("mlp-7-linear", input_shape=data.input_shape, widths=(20, 20), seed=0)
    pruner = isometry.GReg(**growing(60, 20, batch_size=64), magnitude_ratio=None)
    history = isometry.prune(net, pruner, 0.5, data=data, progress=False).history
    assert history["steps"].max() == 60


@pytest.mark.parametrize("network", ["mlp-7-linear", "lenet-5-relu", "conv-4", "resnet-20"])
def test_predictors_are_told_apart_on_at_least_eight_different_methods(network: str) -> None:
    methods = predictor_methods(network)
    assert len(set(methods)) == len(methods) >= 8
    assert ("oracle" in {repair for _, repair in methods}) == (network == "mlp-7-linear")
