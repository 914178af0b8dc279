"""How units are chosen and how they leave, one pruner a file."""

from isometry.pruners.growing import GReg
from isometry.pruners.l1 import L1
from isometry.pruners.pruner import Pruned, Pruner, Run, Size, prune
from isometry.pruners.random import Random
from isometry.pruners.tpp import TPP

__all__ = ["L1", "TPP", "GReg", "Pruned", "Pruner", "Random", "Run", "Size", "prune"]
