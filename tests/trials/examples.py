"""A short trial, and four that differ."""

from isometry import L1, TPP, Recipe
from isometry.trials import Trial

OPTIONS = {"input_shape": (1, 8, 8), "widths": (20, 20, 20)}


def trial(**changes: object) -> Trial:
    settings = {
        "dataset": "digits", "network": "mlp-7-linear", "pretrain": Recipe(0.01, 4, 32), "finetune": Recipe(0.01, 2, 32),
        "pruner": L1(), "ratio": 0.5, "options": OPTIONS,
    }  # fmt: skip
    return Trial(**{**settings, **changes})  # type: ignore[arg-type]


def four_trials() -> list[Trial]:
    grown = TPP(delta=0.1, interval=1, stabilize=30, zero_out=5)
    return [trial(), trial(repair="oracle"), trial(repair="scratch", seed=1), trial(pruner=grown)]
