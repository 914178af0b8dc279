"""Selecting units and preparing the network for their removal; one file per pruner."""

from isometry.pruners.greg import GReg, GReg2
from isometry.pruners.l1 import L1
from isometry.pruners.magnitude import Magnitude
from isometry.pruners.masking import Masking
from isometry.pruners.polarization import Polarization
from isometry.pruners.pruner import DivergedError, Pruner, PruningContext
from isometry.pruners.pruning import prune
from isometry.pruners.random import Random, RandomWeights
from isometry.pruners.receding import RecedingBN, receding_penalty
from isometry.pruners.result import Pruned
from isometry.pruners.slimming import Slimming
from isometry.pruners.snip import SNIP
from isometry.pruners.stage import Stage
from isometry.pruners.stepwise import Pruning
from isometry.pruners.tpp import TPP

__all__ = [
    "L1",
    "SNIP",
    "TPP",
    "DivergedError",
    "GReg",
    "GReg2",
    "Magnitude",
    "Masking",
    "Polarization",
    "Pruned",
    "Pruner",
    "Pruning",
    "PruningContext",
    "Random",
    "RandomWeights",
    "RecedingBN",
    "Slimming",
    "Stage",
    "prune",
    "receding_penalty",
]
