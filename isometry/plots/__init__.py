"""Results in, matplotlib axes out. Every method has one color in all figures."""

from isometry.plots.colors import color
from isometry.plots.measurements import comparison, importance_history, importances, layers, spectrum
from isometry.plots.trajectories import outcome, sweep, trajectory

__all__ = [
    "color",
    "comparison",
    "importance_history",
    "importances",
    "layers",
    "outcome",
    "spectrum",
    "sweep",
    "trajectory",
]
