"""Matrices in, spectra out; nothing here knows a neural network."""

from isometry.spectra import orthogonal
from isometry.spectra.exact import exact, singular_values
from isometry.spectra.operator import Matrices, Operator
from isometry.spectra.spectrum import Bound, Estimate, Spectrum, mean_with_error

__all__ = [
    "Bound",
    "Estimate",
    "Matrices",
    "Operator",
    "Spectrum",
    "exact",
    "mean_with_error",
    "orthogonal",
    "singular_values",
]
