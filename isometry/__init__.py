"""Trainability analysis of pruned networks: see it, explain it, repair it.

Pruning moves the singular values of a network's input-output Jacobian (JSVs) away from where training put them, and
fine-tuning suffers.

    import isometry

    data = isometry.data.load("digits")
    model = isometry.networks.build("mlp-7-linear", input_shape=data.input_shape, seed=0)
    for epoch in isometry.train(model, data, lr=1e-2, epochs=90, batch_size=32):
        pass
    isometry.measure(model, data.test)                            # Report: mean JSV with its interval, spectrum, cost

    pruned = isometry.prune(model, isometry.L1(), ratio=0.8)      # the network gets smaller; also TPP, RecedingBN, ...
    recovered = isometry.recover(pruned.model)                    # linear MLPs: every JSV becomes 1
    isometry.measure(pruned.model, data.test, reference=model)    # also the ratio to the dense network, and a verdict
    isometry.compare({"dense": model, "L1": pruned.model, "recovered": recovered}, data.test)

In a training loop of your own, `Pruning` does step by step what `prune` does. Repairs of any pruned network are `repair`
(least squares on the dense network's features), `recalibrate` (BatchNorm statistics) and `orthogonalize`; `convert` and `fold` go
between ordinary and bounded BatchNorm, `save` and `load` between a pruned network and its file.
`sweep` compares pruners at several ratios on a network and data of your own, resumably, in one table.
Every verb leaves its argument alone and returns a new thing; `train` trains in place. Spectra of explicit matrices are
in `isometry.spectra`, channel surgery in `isometry.surgery`, experiments as data in `isometry.trials`, pictures in
`isometry.plots`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isometry import data, networks, spectra
from isometry.measurement import compare, measure
from isometry.measurement.report import Report
from isometry.networks import convert, fold
from isometry.pruners import (
    L1,
    SNIP,
    TPP,
    GReg,
    GReg2,
    Magnitude,
    Polarization,
    Pruned,
    Pruner,
    Pruning,
    Random,
    RandomWeights,
    RecedingBN,
    Slimming,
    prune,
)
from isometry.repairs import orthogonalize, recalibrate, recover, repair
from isometry.surgery import Plan, load, save
from isometry.training import train
from isometry.training.evaluation import evaluate
from isometry.training.recipe import Cosine, Recipe, Steps
from isometry.training.regularizers import KernOrth, OrthConv

if TYPE_CHECKING:
    from isometry.trials import sweep

__all__ = [
    "L1",
    "SNIP",
    "TPP",
    "Cosine",
    "GReg",
    "GReg2",
    "KernOrth",
    "Magnitude",
    "OrthConv",
    "Plan",
    "Polarization",
    "Pruned",
    "Pruner",
    "Pruning",
    "Random",
    "RandomWeights",
    "RecedingBN",
    "Recipe",
    "Report",
    "Slimming",
    "Steps",
    "compare",
    "convert",
    "data",
    "evaluate",
    "fold",
    "load",
    "measure",
    "networks",
    "orthogonalize",
    "prune",
    "recalibrate",
    "recover",
    "repair",
    "save",
    "spectra",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import `isometry.plots`, `isometry.trials` and `sweep` when first asked for: drawing is not needed to measure."""
    if name in ("plots", "trials"):
        return importlib.import_module(f"isometry.{name}")
    if name == "sweep":
        return importlib.import_module("isometry.trials").sweep
    raise AttributeError(f"module 'isometry' has no attribute {name!r}")
