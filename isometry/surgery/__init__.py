"""Taking units out of a network; nothing here trains."""

from isometry.surgery.archive import Loaded, load, save
from isometry.surgery.families import Family, Graph, Member, refuse, trace
from isometry.surgery.plan import Plan
from isometry.surgery.removal import mask, remove

__all__ = ["Family", "Graph", "Loaded", "Member", "Plan", "load", "mask", "refuse", "remove", "save", "trace"]
