"""Tally: what a measurement has found so far, and whether that is enough."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.calibration import Pilot
from isometry.measurement.cost import Cost
from isometry.measurement.estimators import EstimatedBatch
from isometry.measurement.layers import layer_table
from isometry.measurement.options import Options
from isometry.measurement.preparation import FORWARDS, PRODUCTS, Subject
from isometry.measurement.report import Report
from isometry.spectra import Estimate, Spectrum, mean_with_error, skewness

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIRST_LOOK", "Tally"]

FIRST_LOOK = 32  # samples before an interval is trusted to end a measurement
_MARGIN = 1.1
_FEW, _SKEWED = 16, 1.0


class Tally:
    """Results of the batches measured so far, their cost, and notes; the one object of a measurement that changes.

    Args:
        options: of the measurement.
        notes: how it is done, in words.
        is_stream: whether the samples come in an order that may not be random.

    Attributes:
        forwards, products: spent so far; see `Cost`.
        limit: the number of samples that fit into memory together, as far as known.
        suspect: the batch with the largest mean JSV of a sample, and the network's outputs there; None where that is the
            first one.
    """

    def __init__(self, options: Options, notes: tuple[str, ...] = (), is_stream: bool = False) -> None:
        self.options = options
        self.is_stream = is_stream
        self._look = FIRST_LOOK
        self.notes = list(notes)
        self.forwards, self.products = FORWARDS, PRODUCTS
        self.limit = 2**20
        self._estimates: list[EstimatedBatch] = []
        self._largest = 0.0
        self.suspect: tuple[Batch, Tensor] | None = None

    def add(self, estimated: EstimatedBatch, batch: Batch) -> None:
        """Take in the results of a batch."""
        largest = float(estimated.spectrum.sample_means.max())
        if estimated.outputs is not None and largest > self._largest and self._estimates:
            self._largest, self.suspect = largest, (batch, estimated.outputs)
        elif not self._estimates:
            self._largest = largest  # the first batch is checked when it is measured
        self._estimates.append(replace(estimated, outputs=None))
        self.forwards += estimated.forwards
        self.products += estimated.products
        routes = ", ".join(sorted(estimated.routes))
        self.note(f"derivatives by {routes}" if routes else "constant in the input")

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __len__(self) -> int:
        """The number of samples measured."""
        return sum(len(estimated.spectrum) for estimated in self._estimates)

    @property
    def brackets(self) -> Brackets | None:
        """The brackets of all samples' means; None where all of them are exact."""
        if all(estimated.brackets is None for estimated in self._estimates):
            return None
        return Brackets.pool([part.brackets or Brackets.exact(part.spectrum.sample_means) for part in self._estimates])

    @property
    def pilot(self) -> Pilot | None:
        """What the samples that were studied say about short runs; None where none were."""
        parts = [estimated.pilot for estimated in self._estimates if estimated.pilot is not None]
        return Pilot.pool(parts) if parts else None

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
            return brackets.estimate
        return mean_with_error(self.sample_means)

    @property
    def until_look(self) -> int | None:
        """The number of samples until the interval is looked at again; None where no tolerance is given."""
        return None if self.options.rtol is None else max(1, self._look - len(self))

    def is_enough(self, price: int) -> bool:
        """Whether the tolerance is reached, or another sample at `price` products would exceed the budget.

        Looking at the interval after every sample would stop where it happens to be short. It is looked at after 32
        samples, and then after as many as the last look says will be needed, with a tenth more: sizes that are fixed
        before the samples are seen (Stein's two stages, repeated).
        """
        if not self._estimates:
            return False
        budget, rtol = self.options.budget, self.options.rtol
        if budget is not None and self.products + price > budget:
            return True
        if rtol is None or len(self) < self._look:
            return False
        width, drifts = self.half_width, self._drifts()
        if width <= rtol and not drifts:
            return True
        needed = _MARGIN * len(self) * (width / rtol) ** 2 if width > rtol else 2 * len(self)
        self._look = max(len(self) + 1, math.ceil(min(needed, 2.0**40)))
        if drifts:
            self.note(f"no end at {len(self)} samples: the later half of the stream differs from the first")
        return False

    def _drifts(self) -> bool:
        """Whether the two halves of a stream differ by more than chance, at 3 standard errors."""
        if not self.is_stream:
            return False
        means = self.sample_means
        first, second = means[: len(means) // 2], means[len(means) // 2 :]
        error = math.sqrt(float(first.var()) / len(first) + float(second.var()) / len(second))
        return abs(float(first.mean() - second.mean())) > 3 * error

    @property
    def half_width(self) -> float:
        """Half-width of the interval as a share of the mean; 0 where the mean is 0."""
        estimate = self.estimate
        low, high = estimate.interval
        return (high - low) / 2 / abs(estimate.value) if estimate.value else 0.0

    def note_ending(self, enough: bool, interrupted: bool = False) -> None:
        """Note why sampling ended, `enough`, `interrupted` or because the inputs ran out, and what to think of the numbers."""
        self._note_doubts()
        self._note_calibration()
        rtol, budget = self.options.rtol, self.options.budget
        if enough and self.is_stream:
            self.note("the inputs came as a stream, whose order is taken to be random; shuffle it if it is sorted")
        samples = "1 sample" if len(self) == 1 else f"{len(self)} samples"
        if rtol is None:
            if budget is not None and enough:
                self.note(f"budget of {budget} products spent after {samples}")
            return
        reached = f"{samples}, half-width {self.half_width:.2%}"
        if len(self) == 1:
            self._note_one_sample(rtol)
        elif self.half_width <= rtol:
            self.note(f"rtol={rtol:g} reached after {reached}")
        else:
            why = "the budget was spent" if enough else "the inputs ran out"
            why = "it was interrupted" if interrupted else why
            self.note(f"rtol={rtol:g} NOT reached: {why} after {reached}")

    def _note_one_sample(self, rtol: float) -> None:
        """Note how well the only sample's own mean is known."""
        brackets, mean = self.brackets, float(self.sample_means.mean())
        error = 0.0 if brackets is None or not mean else brackets.error / mean
        why = "that takes more products than all values" if self.options.budget is None else "the budget was spent"
        reached = "reached" if error <= rtol else f"NOT reached, as {why}"
        self.note(
            f"rtol={rtol:g} {reached}: the one sample's own mean is known to {100 * error:.4g} %; it gives no interval for other inputs"
        )

    def _note_doubts(self) -> None:
        """Note small skewed samples, singular samples and underflow."""
        means = self.sample_means
        if 2 < len(means) < _FEW and abs(skewness(means)) > _SKEWED:
            self.note(f"{len(means)} samples that are skewed: the interval may be too short; pass more")
        spectrum = self._spectrum()
        if not float(spectrum.max) > 0:
            self.note(
                "every JSV is 0: the network is constant, or its derivatives underflow; dtype=torch.float64 tells"
            )
        elif singular := spectrum.singular_samples:
            self.note(
                f"{singular} of {len(self)} samples have JSVs below {spectrum.resolution:.2g} of their largest, which count as "
                "0; dtype=torch.float64 resolves smaller ones"
            )

    def _note_calibration(self) -> None:
        """Note how many samples had short runs, and what these were calibrated by."""
        brackets = self.brackets
        if brackets is None or not bool((brackets.shared > 0).any()):
            return
        short, exact = brackets.shared > 0, brackets.probes == 0
        least, most = (int(end) for end in brackets.steps[short].aminmax())
        steps = f"{least}" if least == most else f"{least} to {most}"
        kinds = ((exact, "exact"), (~(exact | short), "by long runs"))
        others = " and ".join(f"{int(which.sum())} {kind}" for which, kind in kinds if bool(which.any()))
        self.note(f"{int(short.sum())} samples by runs of {steps} steps, calibrated by the others ({others})")

    def _spectrum(self) -> Spectrum:
        return Spectrum.pool(estimated.spectrum for estimated in self._estimates)

    def report(self, subject: Subject, method: str, description: str, seconds: float) -> Report:
        """Return the report of what was found, at inputs so described."""
        return Report(
            self._spectrum(),
            method,
            Cost(self.forwards, self.products, seconds),
            f"{len(self)} {description}",
            self._layers(subject),
            tuple(self.notes),
            self.brackets,
            subject.rows,
            {name: Spectrum.pool(parts).sample_means for name, parts in self._layer_spectra().items()},
        )

    def _layer_spectra(self) -> dict[str, list[Spectrum]]:
        spectra: dict[str, list[Spectrum]] = {}
        for estimated in self._estimates:
            for name, spectrum in estimated.layers.items():
                spectra.setdefault(name, []).append(spectrum)
        return spectra

    def _layers(self, subject: Subject) -> pd.DataFrame | None:
        if subject.layers is None:
            return None
        return layer_table(subject.function.model, subject.layers, self._layer_spectra())
