"""Repairs of pruned networks, without training."""

from isometry.repairs.orthogonalization import orthogonalize
from isometry.repairs.recalibration import recalibrate
from isometry.repairs.reconstruction import repair
from isometry.repairs.recovery import recover
from isometry.repairs.registry import REPAIRS, Repair, best_repair, repair_by_name

__all__ = ["REPAIRS", "Repair", "best_repair", "orthogonalize", "recalibrate", "recover", "repair", "repair_by_name"]
