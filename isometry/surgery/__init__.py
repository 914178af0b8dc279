"""Taking units out of a network; nothing here trains."""

from isometry.surgery.adoption import adopt
from isometry.surgery.archive import Loaded, load, save
from isometry.surgery.groups import Graph, Member, UnitGroup, trace
from isometry.surgery.optimizer_state import transfer_optimizer_state
from isometry.surgery.plan import Plan
from isometry.surgery.removal import find_inexact, mask, remove, to_plan
from isometry.surgery.support import check_supported

__all__ = [
    "Graph",
    "Loaded",
    "Member",
    "Plan",
    "UnitGroup",
    "adopt",
    "check_supported",
    "find_inexact",
    "load",
    "mask",
    "remove",
    "save",
    "to_plan",
    "trace",
    "transfer_optimizer_state",
]
