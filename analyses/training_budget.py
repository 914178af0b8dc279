"""From how many training steps on does a pruner that preserves trainability pay?
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

import isometry
from isometry import plots
from isometry.files import markdown
from isometry.training.recipe import Recipe, Steps
from isometry.trials import Trial, describe_origin, run, script
from isometry.trials.record import read_record
from isometry.trials.stages import plan_stages

BUDGETS = (200, 400, 800, 1600, 3200, 6400)


def methods(budget: int, quick: bool) -> dict[str, tuple[isometry.Pruner, str | None, int]]:
    """Return {method: (pruner, repair, steps of fine-tuning)}; with those before removal they make the budget.

    Growing penalties shrink the weights to be removed by exp(-7.7) whatever the budget, as `cifar_methods` does at 400.
    """
    half, long, batch = budget // 2, 2 * budget // 3, 32 if quick else 128

    def grow(steps: int) -> dict[str, Any]:
        settle = max(int(0.28 * steps), 2)
        ceiling = 7.68 / (1e-2 * (steps + settle) / 2)
        return {"delta": ceiling / (steps - settle), "interval": 1, "ceiling": ceiling, "stabilize": settle, "batch_size": batch}

    sparse: dict[str, Any] = {"epochs": 4, "epoch_steps": half // 4, "lr": 1e-2, "batch_size": batch, "weight_decay": 5e-4}
    return {
        "L1": (isometry.L1(), None, budget),
        "L1 + reconstruct": (isometry.L1(), "reconstruct", budget),
        "TPP, 2/3 before": (isometry.TPP(**grow(long), zero_out=None if quick else 1), None, budget - long),
        "TPP, 1/2 before": (isometry.TPP(**grow(half), zero_out=None if quick else 1), None, budget - half),
        "GReg, 1/2 before": (isometry.GReg(**grow(half), magnitude_ratio=None), None, budget - half),
        "Slimming, 1/2 before": (isometry.Slimming(strength=1e-2, **sparse), None, budget - half),
        "RNI, 1/2 before": (isometry.RecedingBN(strength=5e-2, shift=0.0, **sparse), None, budget - half),
    }


def trials(network: str, budgets: list[int], ratios: list[float], seeds: int, quick: bool) -> Iterator[tuple[int, str, Trial]]:
    """Yield (budget, method, trial), the cheapest budgets first."""
    base: dict[str, Any] = {"dataset": "cifar10", "network": network, "pretrain": "cifar10", "autocast": True}
    base["validation"] = 5000
    if quick:
        base = {"dataset": "digits", "network": network, "pretrain": Recipe(1e-1, 1, 32, epoch_steps=5)}
        base["options"] = {"input_shape": (1, 8, 8)}
    for budget, ratio, seed in itertools.product(budgets, ratios, range(seeds)):
        for name, (pruner, repair, steps) in methods(budget, quick).items():
            batch = 32 if quick else 128
            tune = Recipe(1e-2, 2, batch, 0.9, 5e-4, Steps((0.5,)), epoch_steps=steps // 2, autocast=not quick)
            yield budget, name, Trial(
                **base, finetune=tune, pruner=pruner, ratio=ratio, layers="layer*.conv1", repair=repair, seed=seed
            )


def main() -> None:
    """Run, write, draw."""
    parser = script.build_parser(__doc__, seeds=2, ratios=(0.9, 0.7), device=True)
    parser.add_argument("--network", choices=["resnet-20", "resnet-56"], default="resnet-20")
    parser.add_argument("--budgets", type=script.positive, nargs="+", default=list(BUDGETS), help="total training steps")
    parser.add_argument("--only", nargs="+", help="these methods only")
    parser.add_argument("--finished", action="store_true", help="take the trials that have been run, run no others")
    options = script.parse(parser)
    output = script.Output.of("training_budget", options)
    if not options.redraw:
        budgets, seeds, ratios = (12,) if options.quick else options.budgets, options.seeds, options.ratios
        wanted = trials(options.network, budgets, ratios[: 1 if options.quick else None], seeds, options.quick)
        parts, done = [], []
        for budget, name, trial in wanted:
            if options.only and name not in options.only:
                continue
            if options.finished and not all(read_record(stage, options.runs) for stage in plan_stages(trial)):
                continue
            table = run([trial], options.runs, jobs=1, device=options.device, progress=False)
            parts.append(table.assign(method=name, budget=budget))
            done.append(trial)
            print(budget, trial.ratio, name, trial.seed, table["accuracy"].iloc[-1], flush=True)
        output.write(pd.concat(parts, ignore_index=True), describe_origin(done, options.runs))


if __name__ == "__main__":
    main()
