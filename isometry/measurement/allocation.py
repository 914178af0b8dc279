"""Allocation: how to spend products on further samples for the shortest interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isometry.measurement.brackets import Brackets
from isometry.measurement.calibration import Calibration
from isometry.measurement.jacobian import CHECK
from isometry.spectra import bracketed_half_width, bracketed_quantile, student_quantile

__all__ = ["Option", "Prospect", "Route", "allocate", "allocate_to_reach", "between_samples", "routes"]

_PROBES = (2, 3, 4, 6, 8, 12, 16, 24, 48)
_PILOT_EXTRA = (1, 2, 3, 4, 6, 8, 12)
_GRID = torch.logspace(-4, 1, 41, dtype=torch.float64)


@dataclass(frozen=True)
class Route:
    """A way to measure further samples.

    Attributes:
        price: products per sample.
        noise: variance of a sample's estimate about its mean.
        half: half-width of a sample's bracket.
        probes: per sample; 0 for exact.
        calibration: of short runs; None for exact ones and for runs without one.
    """

    price: int
    noise: float = 0.0
    half: float = 0.0
    probes: int = 0
    calibration: Calibration | None = None


def routes(mean: float, calibrations: Iterable[Calibration]) -> list[Route]:
    """Return the routes by short runs.

    Args:
        mean: the mean JSV, approximately.
        calibrations: of short runs.
    """
    return [
        Route(2 * probes * short.steps + CHECK, short.probe_variance / probes, short.half * mean, probes, short)
        for short in calibrations
        for probes in _PROBES
    ]


def between_samples(means: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return possible variances between samples [g] and how probable they are [g].

    Few samples cannot tell a small variance between them from none, least of all where their probes vary, too: an estimate
    would be 0 in many a run. The posterior of normal samples, with a prior that is flat in the logarithm, says how little
    is known.

    Args:
        means: [B], the samples' estimates.
        noise: [B], the variance of each about the sample's mean.
    """
    observed = float(means.var()) + 1e-12 * float(means.mean()) ** 2 + 1e-300
    grid = _GRID * observed
    variance = grid[:, None] + noise  # [g, B]
    precision = (1 / variance).sum(1)
    centers = (means / variance).sum(1) / precision
    squares = ((means - centers[:, None]).square() / variance).sum(1)
    loglikelihood = -0.5 * (variance.log().sum(1) + precision.log() + squares)
    return grid, torch.softmax(loglikelihood, 0)


@dataclass(frozen=True)
class Option:
    """Samples that might be measured next.

    Attributes:
        route: of most of them.
        further: how many by it.
        pilot: how `extra` samples are measured before, which calibrate.
        extra: their number.
    """

    route: Route
    further: int
    pilot: Route | None = None
    extra: int = 0


@dataclass(frozen=True)
class Prospect:
    """What has been measured, and what intervals further samples would give.

    Attributes:
        brackets: of the samples measured.
        pilot: how many of them calibrate.
        between: variances between samples; see `between_samples`.
    """

    brackets: Brackets
    pilot: int
    between: tuple[Tensor, Tensor]

    def half_widths(self, options: Sequence[Option]) -> Tensor:
        """Return the expected half-widths of the interval after the samples of each option: [options].

        t sqrt(V + W) / n, joined in squares by the error of calibration, around brackets of a half-width (see
        `bracketed_quantile`): n samples with variance V between them and W of their probes. As V is not known, its mean over
        `between` plus one standard deviation: products spent on a wrong guess do not come back. Infinite for fewer than two
        samples.
        """
        found = self.brackets
        middle, noise, shared = float(found.middle.mean()), float(found.noise.sum()), float(found.shared.sum())
        half = float((found.upper - found.lower).sum()) / 2
        rows = []
        for option in options:
            route, further, extra = option.route, option.further, option.extra
            added = option.pilot or Route(0)
            calibrating = self.pilot + extra
            each = (self.pilot * route.half + extra * added.half) / calibrating if route.calibration else route.half
            error = route.calibration.expected_error(max(2, calibrating)) * middle if route.calibration else 0.0
            rows.append(
                (
                    len(found.lower) + extra + further,
                    noise + extra * added.noise + further * route.noise,
                    half + extra * added.half + further * each,
                    shared + further * error,
                )
            )
        counts, noises, halves, errors = torch.tensor(rows, dtype=torch.float64).unbind(1)
        variances, weights = self.between
        quantiles = torch.tensor([student_quantile(max(2, int(count))) for count in counts], dtype=torch.float64)
        reach = quantiles[:, None].square() * (counts[:, None] * variances + noises[:, None]).clamp_min(1e-300)
        sides = bracketed_half_width((reach + errors[:, None].square()).sqrt() / 1.96, halves[:, None])
        mean = sides @ weights
        deviation = (sides.square() @ weights - mean.square()).clamp_min(0).sqrt()
        return torch.where(counts < 2, math.inf, (mean + deviation) / counts)


def allocate(
    prospect: Prospect,
    products: int,
    *,
    exact: Route | None,
    short: Sequence[Route],
    pilots: Sequence[Route],
    available: int | None = None,
) -> Option:
    """Return the samples with the shortest expected interval.

    Short runs may be preceded by further samples of a pilot, where those pay.

    Args:
        prospect: what has been measured.
        products: to spend.
        exact: the route to all values; None where that is no choice.
        short: the routes by short runs.
        pilots: kinds of samples that calibrate.
        available: how many further samples there are; None where they can be had as needed.
    """

    def option(route: Route, pilot: Route | None = None, extra: int = 0) -> Option:
        count = (products - (extra * pilot.price if pilot else 0)) // route.price
        return Option(route, max(0, count if available is None else min(count, available - extra)), pilot, extra)

    alone = [option(route) for route in ([] if exact is None else [exact]) + list(short)]
    extras = (option(route, pilot, extra) for pilot in pilots for extra in _PILOT_EXTRA for route in short)
    options = [each for each in (*alone, *extras) if each.further]
    widths = prospect.half_widths(options) if options else torch.tensor([math.inf])
    if bool(torch.isinf(widths).all()):
        return min(alone, key=lambda each: each.route.price)
    return options[int(widths.argmin())]


def allocate_to_reach(choices: Iterable[Route], prospect: Prospect, half_width: float, *, least: int) -> Route:
    """Return the route that reaches a half-width of the interval with the fewest products.

    Args:
        choices: to choose from.
        prospect: what has been measured.
        half_width: of the interval wanted.
        least: samples that are measured in any case.
    """
    variance = float((prospect.between[0] * prospect.between[1]).sum())
    mean, measured = float(prospect.brackets.middle.mean()), len(prospect.brackets.lower)

    def products(route: Route) -> tuple[float, float]:
        error = 0.0 if route.calibration is None else mean * route.calibration.error
        left = max(half_width - route.half, 1e-300)
        quantile = float(bracketed_quantile(torch.tensor(1.8 * route.half / left, dtype=torch.float64)))
        room = (left / quantile) ** 2 - (error / 1.96) ** 2
        if room <= 0 or half_width <= route.half:
            return math.inf, math.hypot(route.half, error)
        count = max(least, math.ceil(1.04 * (variance + route.noise) / room))
        return float(route.price) * max(1, count - measured), 0.0

    return min(choices, key=products)
