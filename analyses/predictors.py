"""Which number, just after pruning, predicts the accuracy after fine-tuning?
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import isometry
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, run, script

RATIOS, RATES = (0.3, 0.5, 0.7, 0.8, 0.9), (3e-2, 1e-2, 1e-3)
MNIST = {"dataset": "mnist", "pretrain": Recipe(1e-2, 3, 64)}
DIGITS = {"dataset": "digits", "pretrain": Recipe(2e-2, 30, 64)}
NARROW = {"input_shape": (1, 8, 8), "widths": (16, 16, 32, 32)}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp-7-linear": {**MNIST, "network": "mlp-7-linear"},
    "mlp-7-relu": {**MNIST, "network": "mlp-7-relu"},
    "lenet-5-relu": {**MNIST, "network": "lenet-5-relu"},
    "conv-4": {**DIGITS, "network": "conv-4", "options": NARROW},
    "conv-4, no BatchNorm": {**DIGITS, "network": "conv-4", "options": {**NARROW, "norm": "none"}},
    "resnet-20": {"dataset": "cifar10", "pretrain": "cifar10", "network": "resnet-20", "layers": "layer*.conv1", "autocast": True},
}  # fmt: skip


def methods(network: str) -> list[tuple[isometry.Pruner, str | None]]:
    """Return (pruner, repair) of every method on a network."""
    resnet = network == "resnet-20"
    steps, settle, batch = (100, 28, 128) if resnet else (600, 100, 64)
    # Weights to be removed are to shrink by exp(-7.7), as in `cifar_methods`.
    ceiling = 7.7 / (1e-2 * (steps + settle) / 2)
    grow: dict[str, Any] = {"delta": ceiling / (steps - settle), "interval": 1, "ceiling": ceiling, "stabilize": settle}
    grow |= {"batch_size": batch, "weight_decay": 1e-4}
    sparse = {"epochs": 4, "epoch_steps": 25 if resnet else 50, "lr": 1e-2, "batch_size": batch}
    return [
        (isometry.L1(), None),
        (isometry.L1(), "reconstruct"),
        (isometry.L1(), "orthp"),
        (isometry.TPP(**grow, zero_out=1), None),
        (isometry.GReg(**grow), None),
        (isometry.Random(), None),
        (isometry.Random(), "reconstruct"),
        (isometry.Random(), "orthp"),
        *([(isometry.L1(), "oracle")] if network == "mlp-7-linear" else []),
        *([(isometry.Slimming(strength=1e-2, **sparse), None)] if network in ("conv-4", "resnet-20") else []),
    ]


def trials(network: str, seed: int) -> list[Trial]:
    """Return every method, ratio and rate on one network: the same fine-tuning for all methods."""
    ratios, rates, tune = RATIOS, RATES, Recipe(1e-2, 2, 64, schedule=Steps((0.5,)), epoch_steps=100)
    if network == "resnet-20":
        ratios, rates = (0.5, 0.7, 0.9), (1e-2, 1e-3)
        tune = Recipe(1e-2, 1, 128, 0.9, 5e-4, None, epoch_steps=60, autocast=True)
    return [
        Trial(**NETWORKS[network], finetune=replace(tune, lr=lr), pruner=pruner, ratio=ratio, repair=repair, seed=seed)
        for ratio, (pruner, repair), lr in itertools.product(ratios, methods(network), rates)
    ]


def main() -> None:
    parser = script.build_parser(__doc__, seeds=3)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    options = script.parse(parser)
    for seed, network in itertools.product(range(options.seeds), options.networks):
        run(trials(network, seed), options.runs, jobs=1, progress=True)


if __name__ == "__main__":
    main()
