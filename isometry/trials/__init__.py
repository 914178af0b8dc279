"""Trials: experiments as data; many of them run in parallel and resumably, to one tidy table."""

from isometry.trials.runner import Trial, provenance, run

__all__ = ["Trial", "provenance", "run"]
