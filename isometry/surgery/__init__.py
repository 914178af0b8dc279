"""Removing units from a network; nothing here trains."""

from isometry.surgery.adoption import adopt
from isometry.surgery.archive import Loaded, load, save
from isometry.surgery.graph import Graph, trace
from isometry.surgery.groups import Member, Selection, UnitGroup
from isometry.surgery.optimizer_state import transfer_optimizer_state
from isometry.surgery.plan import Applied, Plan
from isometry.surgery.removal import InexactError, cut, find_inexact, mask, remove, to_plan, to_selection
from isometry.surgery.support import check_supported

__all__ = [
    "Applied",
    "Graph",
    "InexactError",
    "Loaded",
    "Member",
    "Plan",
    "Selection",
    "UnitGroup",
    "adopt",
    "check_supported",
    "cut",
    "find_inexact",
    "load",
    "mask",
    "remove",
    "save",
    "to_plan",
    "to_selection",
    "trace",
    "transfer_optimizer_state",
]
