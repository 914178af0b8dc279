"""Protocols: the pruners of a comparison with their hyperparameters and how each is fine-tuned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import isometry
from isometry.pruners.growing import Growing
from isometry.pruners.sparsifying import Sparsifying
from isometry.training.recipe import Recipe, Steps
from isometry.trials.trial import Trial

__all__ = ["cifar_methods", "growing", "most_steps_before", "predictor_methods", "published_trials", "vgg_methods"]

_IMAGES = 50_000  # of CIFAR-10's training part


def cifar_methods(schedule: str, budget: int = 400) -> list[tuple[isometry.Pruner, str | None, Recipe | None]]:
    """Return (pruner, repair, fine-tuning) of every method that residual networks are compared by.

    Args:
        schedule: "published", with `L1 + reconstruct` besides; "short", in which every method has `budget` training steps, those before removal included;
            or "quick", a few steps of the cheaper methods.
        budget: see above.
    """
    quick, steps = schedule == "quick", Steps((0.5, 0.75))
    grow: dict[str, Any]
    sparse: dict[str, Any]
    if schedule == "published":
        one_shot = trained = Recipe(1e-2, 120, 128, 0.9, 5e-4, steps, autocast=True)
        grow, sparse, zero_out, slimming, receding = {}, {"epochs": 160}, 100, 1e-5, 1e-4
    else:
        half, epochs, batch, settle = (8, 2, 32, 4) if quick else (budget // 2, 4, 128, 56)
        # The penalty's pull on the weights to be removed, the sum of lr x strength / (1 - momentum) over steps, is to be 7.7
        # in these few steps: they shrink by exp(-7.7). Zeroing layer by layer takes one step per layer.
        grow = {"delta": 6 / (half - settle), "interval": 1, "ceiling": 6.0, "stabilize": settle, "batch_size": batch}
        sparse = {
            "epochs": epochs,
            "epoch_steps": half // epochs,
            "lr": 1e-2,
            "batch_size": batch,
            "weight_decay": 5e-4,
        }
        one_shot = Recipe(1e-2, epochs, batch, 0.9, 5e-4, steps, epoch_steps=2 * half // epochs, autocast=not quick)
        trained, zero_out, slimming, receding = replace(one_shot, epoch_steps=half // epochs), 1, 1e-2, 5e-2
    tpp = isometry.TPP(**{**grow, "zero_out": zero_out})
    return [
        (isometry.Random(), None, one_shot),
        (isometry.L1(), None, one_shot),
        (isometry.L1(), "orthp", one_shot),
        *([(isometry.L1(), "reconstruct", one_shot)] if schedule == "published" else []),
        (isometry.L1(), "recalibrate", None),  # training replaces the statistics: from then on it is L1
        (isometry.GReg(**grow), None, trained),
        *([] if quick else [(tpp, None, trained)]),
        (isometry.Slimming(strength=slimming, **sparse), None, trained),
        (isometry.RecedingBN(strength=receding, shift=0.0, **sparse), None, trained),
    ]


def vgg_methods() -> list[tuple[str, Sparsifying, Recipe]]:
    """Return (name, pruner, fine-tuning) of the methods that VGG-16 is trained and pruned by, as published.

    All train from scratch for 160 epochs and fine-tune for as many, again from lr 0.1.

    Source: Suteu & Guo 2022 (arXiv 2204.06404), its reference code and notebook; here in bfloat16.
    """
    tune = Recipe(0.1, 160, 64, schedule=Steps((0.5, 0.75)), nesterov=True, autocast=True)
    return [
        ("RNI", isometry.RecedingBN.vgg(), tune),
        ("Slimming", isometry.Slimming(strength=1e-4), tune),
        ("UCS", isometry.Slimming(strength=0.0, scope="layer"), tune),
    ]


def published_trials(
    network: str, ratios: Sequence[float], seeds: int
) -> tuple[list[Trial], list[dict[str, Any]], list[int]]:
    """Return the trials of published protocols on CIFAR-10, nothing held out, with columns of their rows, and their ranks.

    The ranks are the order of value: L1, alone and reconstructed, then TPP, at the largest ratio, then at the others; receding
    importances on VGG-16; then all other methods, on the network and on VGG-16.

    Args:
        network: resnet-20 or resnet-56, with given weights.
        ratios: of that network; VGG-16, trained from scratch, has the published ones.
        seeds: how many.
    """
    trials: list[Trial] = []
    labels: list[dict[str, Any]] = []
    ranks: list[int] = []
    descending, methods = sorted(ratios, reverse=True), cifar_methods("published")
    last = 2 * len(descending)
    for (place, ratio), seed, (pruner, repair, tune) in itertools.product(enumerate(descending), range(seeds), methods):
        first = isinstance(pruner, isometry.L1) and repair in (None, "reconstruct")
        ranks.append(2 * place if first else 2 * place + 1 if isinstance(pruner, isometry.TPP) else last + 1 + place)
        labels.append({"steps_before": most_steps_before(pruner, _IMAGES)})
        settings: dict[str, Any] = {"layers": "layer*.conv1", "repair": repair, "seed": seed, "autocast": True}
        trials.append(Trial("cifar10", network, "cifar10", tune, pruner, ratio, **settings))
    for (place, (name, sparse, tune)), ratio, seed in itertools.product(
        enumerate(vgg_methods()), (0.9, 0.5), range(seeds)
    ):
        ranks.append(last + place * (len(descending) + 1))
        labels.append({"method": name, "steps_before": most_steps_before(sparse, _IMAGES)})
        norm = "bounded" if isinstance(sparse, isometry.RecedingBN) else "batch"
        settings = {"options": {"norm": norm}, "seed": seed, "autocast": True}
        trials.append(Trial("cifar10", "vgg-16", None, tune, sparse, ratio, **settings))
    return trials, labels, ranks


def most_steps_before(pruner: isometry.Pruner, images: int) -> int:
    """Return how many training steps a pruner takes before removal, at most.

    Args:
        pruner: its growth may end earlier where it has a `magnitude_ratio`.
        images: that it trains on.
    """
    if isinstance(pruner, Growing):
        return math.ceil(pruner.ceiling / pruner.delta - 1e-9) * pruner.interval + pruner.stabilize
    if isinstance(pruner, Sparsifying):
        return pruner.epochs * (pruner.epoch_steps or math.ceil(images / pruner.batch_size))
    return 0


def growing(steps: int, settle: int, *, batch_size: int, weight_decay: float = 5e-4) -> dict[str, Any]:
    """Return settings of `GReg` and `TPP` for short schedules, of any length, that pull alike on the weights to be removed.

    The sum of lr x strength / (1 - momentum) over all steps is 7.7: the weights shrink by exp(-7.7), as in `cifar_methods`.

    Args:
        steps: of training before removal.
        settle: how many of them follow the growth.
        batch_size: of the training.
        weight_decay: of the training.
    """
    ceiling = 7.7 / (1e-2 * (steps + settle) / 2)
    delta = ceiling / (steps - settle)
    return {"delta": delta, "interval": 1, "ceiling": ceiling, "stabilize": settle, "batch_size": batch_size,
            "weight_decay": weight_decay}  # fmt: skip


def predictor_methods(network: str, *, quick: bool = False) -> list[tuple[isometry.Pruner, str | None]]:
    """Return (pruner, repair) of the methods whose networks are compared before and after one and the same fine-tuning.

    Args:
        network: mlp-7-linear has the oracle in place of OrthP; conv-4 and resnet-20, which have BatchNorm, have Slimming, too.
        quick: take few steps.
    """
    resnet, exact = network == "resnet-20", "oracle" if network == "mlp-7-linear" else "orthp"
    steps, settle, batch = (100, 28, 128) if resnet or quick else (600, 100, 64)
    grow = growing(steps, settle, batch_size=batch, weight_decay=1e-4)
    sparse: dict[str, Any] = {"epochs": 4, "epoch_steps": 25 if resnet else 50, "lr": 1e-2, "batch_size": batch}
    return [
        (isometry.L1(), None),
        (isometry.L1(), "reconstruct"),
        (isometry.L1(), exact),
        (isometry.TPP(**grow, zero_out=1), None),
        (isometry.GReg(**grow), None),
        (isometry.Random(), None),
        (isometry.Random(), "reconstruct"),
        (isometry.Random(), exact),
        *([(isometry.Slimming(strength=1e-2, **sparse), None)] if network in ("conv-4", "resnet-20") else []),
    ]
