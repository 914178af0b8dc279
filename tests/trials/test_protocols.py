"""Protocols of comparisons."""

import pytest

import isometry
from isometry.trials.protocols import growing, most_steps_before, predictor_methods, published_trials
from isometry.trials.stages import plan_stages


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


def test_published_trials_come_in_the_order_of_their_value() -> None:
    trials, labels, ranks = published_trials("resnet-56", [0.5, 0.9], seeds=2)
    order = sorted(range(len(trials)), key=ranks.__getitem__)
    found = [(trials[i].network, trials[i].pruner_name, trials[i].ratio, trials[i].repair) for i in order]
    unique = list(dict.fromkeys(found))
    assert unique[:7] == [
        ("resnet-56", "l1", 0.9, None), ("resnet-56", "l1", 0.9, "reconstruct"), ("resnet-56", "tpp", 0.9, None),
        ("resnet-56", "l1", 0.5, None), ("resnet-56", "l1", 0.5, "reconstruct"), ("resnet-56", "tpp", 0.5, None),
        ("vgg-16", "recedingbn", 0.9, None),
    ]  # fmt: skip
    assert len({plan_stages(trial)[-1].folder for trial in trials}) == len(trials) == 2 * (2 * 9 + 3 * 2)
    assert all(trial.validation == 0 and trial.autocast for trial in trials)
    steps = {trial.pruner_name: label["steps_before"] for trial, label in zip(trials, labels, strict=True)}
    assert steps["tpp"] == steps["greg"] == 110_000
    assert steps["l1"] == 0
    assert steps["recedingbn"] == 160 * 782


@pytest.mark.parametrize("pruner", [isometry.TPP(delta=0.25, interval=3, stabilize=40, zero_out=1),
                                    isometry.Slimming(epochs=2, epoch_steps=5), isometry.L1()])  # fmt: skip
def test_pruners_take_as_many_steps_before_removal_as_is_said(pruner: isometry.pruners.Pruner) -> None:
    data = isometry.data.load("digits")
    net = isometry.networks.build("conv-4", input_shape=data.input_shape, seed=0)
    history = isometry.prune(net, pruner, 0.5, data=data, progress=False).history
    steps = most_steps_before(pruner, len(data.train.targets))
    assert steps == (history["steps"].max() if len(history) else 0)
