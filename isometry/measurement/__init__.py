"""Measuring: the Jacobian spectrum of a network at some inputs, with error bars."""

from isometry.measurement.comparison import compare
from isometry.measurement.measuring import measure
from isometry.measurement.report import Report

__all__ = ["Report", "compare", "measure"]
