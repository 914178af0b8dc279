"""Repairs of pruned networks, without training."""

from isometry.repairs.orthogonalization import orthogonalize
from isometry.repairs.recalibration import recalibrate
from isometry.repairs.recovery import recover

__all__ = ["orthogonalize", "recalibrate", "recover"]
