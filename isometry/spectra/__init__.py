"""Spectra of linear maps: matrices in, singular values out; nothing here depends on neural networks."""

from isometry.spectra import laws, orthogonal
from isometry.spectra.control import Controlled
from isometry.spectra.convolution import Convolution, circular
from isometry.spectra.estimate import Bound, Estimate, mean_with_error
from isometry.spectra.exact import RESOLUTION, exact, row_singular_values, singular_values, singular_vectors
from isometry.spectra.golub_kahan import Bidiagonal, bidiagonalize, probes
from isometry.spectra.intervals import (
    bracketed_half_width,
    bracketed_quantile,
    confidence_interval,
    normal_quantile,
    skewness,
    student_quantile,
)
from isometry.spectra.operator import Matrices, Operator
from isometry.spectra.spectrum import Spectrum

__all__ = [
    "RESOLUTION",
    "Bidiagonal",
    "Bound",
    "Controlled",
    "Convolution",
    "Estimate",
    "Matrices",
    "Operator",
    "Spectrum",
    "bidiagonalize",
    "bracketed_half_width",
    "bracketed_quantile",
    "circular",
    "confidence_interval",
    "exact",
    "laws",
    "mean_with_error",
    "normal_quantile",
    "orthogonal",
    "probes",
    "row_singular_values",
    "singular_values",
    "singular_vectors",
    "skewness",
    "student_quantile",
]
