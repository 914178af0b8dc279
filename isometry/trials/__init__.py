"""Trials: experiments as data; many of them run in parallel and resumably, to one tidy table."""

from isometry.trials.provenance import describe_origin
from isometry.trials.runner import run
from isometry.trials.sweeping import sweep
from isometry.trials.trial import Trial

__all__ = ["Trial", "describe_origin", "run", "sweep"]
