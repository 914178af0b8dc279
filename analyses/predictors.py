"""Which number, just after pruning, predicts the accuracy after fine-tuning?
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry.files import markdown
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, describe_origin, run, script
from isometry.trials.candidates import CANDIDATES, describe_starts
from isometry.trials.outcomes import name_methods
from isometry.trials.prediction import Cells, Pooled, choices, pool, rank_correlations, resample, study_means
from isometry.trials.record import read_record
from isometry.trials.stages import plan_stages

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
    resnet, exact = network == "resnet-20", "oracle" if network == "mlp-7-linear" else "orthp"
    steps, settle, batch = (100, 28, 128) if resnet else (600, 100, 64)
    # Weights to be removed are to shrink by exp(-7.7), as in `cifar_methods`.
    ceiling = 7.7 / (1e-2 * (steps + settle) / 2)
    grow: dict[str, Any] = {"delta": ceiling / (steps - settle), "interval": 1, "ceiling": ceiling, "stabilize": settle}
    grow |= {"batch_size": batch, "weight_decay": 1e-4}
    sparse = {"epochs": 4, "epoch_steps": 25 if resnet else 50, "lr": 1e-2, "batch_size": batch}
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


NAMES = {"random": "Random", "l1": "L1", "greg": "GReg", "tpp": "TPP", "slimming": "Slimming"}
REPAIRS = {"orthp": " + OrthP", "reconstruct": " + reconstruct", "oracle": " + oracle"}
GIVEN = "train_accuracy"


def finished(wanted: list[Trial], runs: Path) -> list[Trial]:
    """Return the trials whose stages have all been run."""
    return [trial for trial in wanted if all(read_record(stage, runs) for stage in plan_stages(trial))]


def rows(network: str, done: list[Trial], runs: Path) -> pd.DataFrame:
    """Return one row per trial of one network and seed: the numbers before fine-tuning, the accuracy after it."""
    table = name_methods(run(done, runs, jobs=1, progress=False), NAMES, REPAIRS)
    ends = table.groupby("trial", sort=False).tail(1).reset_index(drop=True)
    images, samples = (500, 32) if network == "resnet-20" else (2000, 64)
    starts = pd.DataFrame(describe_starts(done, runs, images=images, samples=samples))
    kept = ends[["dataset", "method", "ratio", "lr", "seed", "diverged", "accuracy"]].assign(network=network)
    return pd.concat([kept, starts], axis=1)


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=3)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--finished", action="store_true", help="take the trials that have been run, run no others")
    options = script.parse(parser)
    output = script.Output.of("predictors", options)
    if not options.redraw:
        parts, every = [], []
        for seed, network in itertools.product(range(options.seeds), options.networks):
            done = trials(network, seed)
            if options.finished:
                done = finished(done, options.runs)
            else:
                run(done, options.runs, jobs=1, progress=True)
            every += done
            if done:
                parts.append(rows(network, done, options.runs))
        output.write(pd.concat(parts, ignore_index=True), describe_origin(every, options.runs))
    print(output.read()[0])


if __name__ == "__main__":
    main()
