"""Selecting units and preparing the network for their removal; one file per pruner."""

from isometry.pruners.greg import GReg, GReg2
from isometry.pruners.l1 import L1
from isometry.pruners.polarization import Polarization
from isometry.pruners.pruner import DivergedError, Pruner, PruningContext
from isometry.pruners.pruning import prune
from isometry.pruners.random import Random
from isometry.pruners.receding import RecedingBN, receding_penalty
from isometry.pruners.result import Pruned
from isometry.pruners.slimming import Slimming
from isometry.pruners.stage import Stage
from isometry.pruners.stepwise import Pruning
from isometry.pruners.tpp import TPP

__all__ = [
    "L1",
    "TPP",
    "DivergedError",
    "GReg",
    "GReg2",
    "Polarization",
    "Pruned",
    "Pruner",
    "Pruning",
    "PruningContext",
    "Random",
    "RecedingBN",
    "Slimming",
    "Stage",
    "prune",
    "receding_penalty",
]
