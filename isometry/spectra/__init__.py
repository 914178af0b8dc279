"""Matrices in, spectra out; nothing here knows a neural network."""

from isometry.spectra import laws, orthogonal
from isometry.spectra.convolution import Convolution, circular
from isometry.spectra.exact import exact, singular_values
from isometry.spectra.krylov import Bidiagonal, bidiagonalise, probes
from isometry.spectra.operator import Matrices, Operator
from isometry.spectra.spectrum import Bound, Estimate, Spectrum, mean_with_error

__all__ = [
    "Bidiagonal",
    "Bound",
    "Convolution",
    "Estimate",
    "Matrices",
    "Operator",
    "Spectrum",
    "bidiagonalise",
    "circular",
    "exact",
    "laws",
    "mean_with_error",
    "orthogonal",
    "probes",
    "singular_values",
]
