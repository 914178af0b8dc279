"""Taking units out of a network; nothing here trains."""

from isometry.surgery.families import Family, Graph, Member, trace
from isometry.surgery.plan import Plan
from isometry.surgery.removal import mask, remove

__all__ = ["Family", "Graph", "Member", "Plan", "mask", "remove", "trace"]
