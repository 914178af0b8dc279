"""Taking units out of a network; nothing here trains."""

from isometry.surgery.archive import Loaded, adopt, load, save
from isometry.surgery.families import Family, Graph, Member, refuse, trace
from isometry.surgery.optimiser import carry
from isometry.surgery.plan import Plan
from isometry.surgery.removal import inexact, mask, remove, to_plan

__all__ = [
    "Family",
    "Graph",
    "Loaded",
    "Member",
    "Plan",
    "adopt",
    "carry",
    "inexact",
    "load",
    "mask",
    "refuse",
    "remove",
    "save",
    "to_plan",
    "trace",
]
