"""Does recovering or preserving dynamical isometry explain what fine-tuning recovers after pruning?"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import isometry
from isometry.training import Recipe
from isometry.trials import Trial, provenance, run, write_table

PUBLISHED_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def trials(dataset: str, ratios: list[float], seeds: int, quick: bool) -> list[Trial]:
    """Return every trial of the question: four pruners, with and without the oracle, two rates, and the control."""
    if quick:
        shape, pretrain, epochs = (1, 8, 8), Recipe(1e-2, 10, 32), 2
        grow = {"delta": 2e-2, "interval": 2, "stabilise": 60, "zero_out": 10, "batch_size": 128}
    elif dataset == "digits":
        shape, pretrain, epochs = (1, 8, 8), Recipe(1e-2, 90, 32), 30
        grow = {"delta": 1e-3, "interval": 5, "stabilise": 1000, "zero_out": 100, "batch_size": 128}
    else:
        shape, pretrain, epochs = (1, 32, 32), Recipe(1e-2, 90), 90
        grow = {"delta": 1e-4, "interval": 10, "stabilise": 10_000, "batch_size": 256}
    grow["weight_decay"] = 1e-4
    pruners = [
        isometry.Random(),
        isometry.L1(),
        isometry.GReg(**{**grow, "zero_out": None}),
        isometry.TPP(**grow),
    ]
    found = []
    for seed in range(seeds):
        base = {"dataset": dataset, "network": "mlp-7-linear", "pretrain": pretrain, "seed": seed}
        base["options"] = {} if dataset != "digits" else {"input_shape": shape}
        for pruner, ratio, lr in itertools.product(pruners, ratios, (1e-2, 1e-3)):
            recipe = Recipe(lr, epochs, pretrain.batch_size)
            repairs = [None, "oracle"] + (["scratch"] if isinstance(pruner, isometry.L1) else [])
            found += [Trial(**base, finetune=recipe, pruner=pruner, ratio=ratio, repair=repair) for repair in repairs]
        # The published curve: mean JSV of the just-pruned network against the ratio.
        found += [Trial(**base, pruner=isometry.L1(), ratio=ratio) for ratio in PUBLISHED_RATIOS]
    return found


def main() -> None:
    """Run, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=["digits", "mnist", "fashion-mnist"], default="digits")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--redraw", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wanted = trials(options.dataset, options.ratios, 1 if options.quick else options.seeds, options.quick)
    table = run(wanted, options.runs, jobs=options.jobs)
    write_table(table, provenance(wanted, options.runs), (options.out or options.runs) / "linear_mlp_oracle")


if __name__ == "__main__":
    main()
