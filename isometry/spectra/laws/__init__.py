"""Closed-form spectra: limit distributions of the singular values of random, pruned and residual maps.

Unless stated otherwise, layers are square, N x N with N to infinity; "Gaussian" weights are independent with variance
sigma²/N, "orthogonal" ones sigma times a Haar matrix. A law is the distribution of the singular values s; its formulas
are in lambda = s².
"""

from isometry.spectra.laws.discrete import CircularConvolution, Isometry, NormLaw
from isometry.spectra.laws.gated import BernoulliGaussian, BernoulliOrthogonal
from isometry.spectra.laws.gaussian import FussCatalan, MarchenkoPastur
from isometry.spectra.laws.law import Law
from isometry.spectra.laws.masked import MagnitudeMask, RandomMask, magnitude_variance
from isometry.spectra.laws.residual import Residual

__all__ = [
    "BernoulliGaussian",
    "BernoulliOrthogonal",
    "CircularConvolution",
    "FussCatalan",
    "Isometry",
    "Law",
    "MagnitudeMask",
    "MarchenkoPastur",
    "NormLaw",
    "RandomMask",
    "Residual",
    "magnitude_variance",
]
