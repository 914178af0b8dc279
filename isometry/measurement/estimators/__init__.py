"""Estimators, one file each: from a batch of samples to their singular values, or to brackets of their means."""

from __future__ import annotations

from isometry.measurement.estimators.bottleneck import BottleneckBypassedError, ThroughBottleneck
from isometry.measurement.estimators.controlled import ControlledKrylov
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator
from isometry.measurement.estimators.exact import Exact
from isometry.measurement.estimators.krylov import Krylov
from isometry.measurement.estimators.layered import Layered
from isometry.measurement.preparation import Subject

__all__ = [
    "BottleneckBypassedError",
    "ControlledKrylov",
    "EstimatedBatch",
    "Estimator",
    "Exact",
    "Krylov",
    "Layered",
    "ThroughBottleneck",
    "exact_estimator",
]


def exact_estimator(subject: Subject) -> Estimator:
    """Return the estimator of all singular values that suits the subject."""
    if subject.layers is not None:
        return Layered(subject, subject.layers)
    if subject.bottleneck is not None:
        return ThroughBottleneck(subject, subject.bottleneck)
    return Exact(subject)
