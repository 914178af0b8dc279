"""Tally: what a measurement has found so far, and whether that is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isometry.measurement.brackets import Brackets
from isometry.measurement.estimators import EstimatedBatch
from isometry.measurement.layers import layer_table
from isometry.measurement.options import Options
from isometry.measurement.preparation import FORWARDS, PRODUCTS, Subject
from isometry.measurement.report import Cost, Report
from isometry.spectra import Estimate, Spectrum, mean_with_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Tally"]

_FEWEST = 8  # samples before an interval is trusted to end a measurement


class Tally:
    """Results of the batches measured so far, their cost, and notes; the one object of a measurement that changes.

    Args:
        options: of the measurement.
        notes: how it is done, in words.

    Attributes:
        forwards, products: spent so far; see `Cost`.
        limit: the number of samples that fit into memory together, as far as known.
    """

    def __init__(self, options: Options, notes: tuple[str, ...] = ()) -> None:
        self.options = options
        self.notes = list(notes)
        self.forwards, self.products = FORWARDS, PRODUCTS
        self.limit = 2**20
        self._estimates: list[EstimatedBatch] = []

    def add(self, estimated: EstimatedBatch) -> None:
        """Take in the results of a batch."""
        self._estimates.append(estimated)
        self.forwards += estimated.forwards
        self.products += estimated.products
        routes = ", ".join(sorted(estimated.routes))
        self.note(f"derivatives by {routes}" if routes else "constant in the input")

    def restart(self) -> None:
        """Forget the results, but not what they cost."""
        self._estimates = []

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __len__(self) -> int:
        """The number of samples measured."""
        return sum(len(estimated.spectrum) for estimated in self._estimates)

    @property
    def brackets(self) -> Brackets | None:
        """The brackets of all samples' means; None for an exact measurement."""
        parts = [estimated.brackets for estimated in self._estimates if estimated.brackets is not None]
        return Brackets.pool(parts) if parts else None

    @property
    def sample_means(self) -> Tensor:
        """[B]: every sample's mean JSV, the middle of its bracket where it is known by one."""
        if (brackets := self.brackets) is not None:
            return brackets.middle
        means = [estimated.spectrum.sample_means for estimated in self._estimates]
        return torch.cat(means) if means else torch.zeros(0)

    @property
    def estimate(self) -> Estimate:
        """The mean JSV with its error."""
        if (brackets := self.brackets) is not None:
            return mean_with_error(brackets.middle, brackets.lower, brackets.upper)
        return mean_with_error(self.sample_means)

    def is_enough(self, price: int) -> bool:
        """Whether the tolerance is reached, or another sample at `price` products would exceed the budget."""
        if not self._estimates:
            return False
        if self.options.budget is not None and self.products + price > self.options.budget:
            return True
        return self.options.rtol is not None and len(self) >= _FEWEST and self.half_width <= self.options.rtol

    @property
    def half_width(self) -> float:
        """Half-width of the interval as a share of the mean; 0 where the mean is 0."""
        estimate = self.estimate
        low, high = estimate.interval
        return (high - low) / 2 / abs(estimate.value) if estimate.value else 0.0

    def note_ending(self, enough: bool) -> None:
        """Note why sampling ended: `enough`, or because the inputs ran out."""
        rtol, budget = self.options.rtol, self.options.budget
        if rtol is None:
            if budget is not None and enough:
                self.note(f"budget of {budget} products spent after {len(self)} samples")
            return
        reached = f"{len(self)} samples, half-width {self.half_width:.2%}"
        if self.half_width <= rtol:
            self.note(f"rtol={rtol:g} reached after {reached}")
        else:
            why = "the budget was spent" if enough else "the inputs ran out"
            self.note(f"rtol={rtol:g} NOT reached: {why} after {reached}")

    def report(self, subject: Subject, method: str, description: str, seconds: float) -> Report:
        """Return the report of what was found, at inputs so described."""
        return Report(
            Spectrum.pool(estimated.spectrum for estimated in self._estimates),
            method,
            Cost(self.forwards, self.products, seconds),
            f"{len(self)} {description}",
            self._layers(subject),
            tuple(self.notes),
            self.brackets,
        )

    def _layers(self, subject: Subject) -> pd.DataFrame | None:
        if subject.layers is None:
            return None
        spectra: dict[str, list[Spectrum]] = {}
        for estimated in self._estimates:
            for name, spectrum in estimated.layers.items():
                spectra.setdefault(name, []).append(spectrum)
        return layer_table(subject.function.model, subject.layers, spectra)
