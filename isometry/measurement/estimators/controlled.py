"""The mean at few samples: runs of Golub-Kahan, and many more probes of one product each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.jacobian import CHECK, Jacobian
from isometry.measurement.preparation import Subject
from isometry.measurement.ranks import Ranks
from isometry.spectra import Bidiagonal, Controlled, bidiagonalize, bracketed_half_width, probes

__all__ = ["ControlledKrylov"]

_AT_ONCE = 16
_STEPS, _FEWEST_STEPS = 96, 4
_RUNS, _MOST_RUNS = 2, 12
_PART = 8  # further probes at a time

# Of a sample's products, what is kept from the first runs for further probes: over √n for n samples, as errors of probes average
# out and brackets do not. Where all values may be taken instead, a trial must leave half.
_KEPT, _KEPT_BY_TRIAL = 0.25, 0.5

_SHARE_OF_RUNS = 0.7  # of the variance: a run costs much more than a further probe
_ABOUT = 1.1  # times the accuracy is reached, too
_NEGLIGIBLE = 0.1  # of the brackets: the errors of probes that need no more of them


@dataclass(frozen=True, eq=False)
class ControlledKrylov(Estimator):
    """Brackets of every sample's mean from two runs or more, and from probes of one product each; see `Controlled`.

    Runs go on until their narrowed brackets are as short as `tolerance`; runs and further probes are added until the error of
    the probes fits into what the brackets leave of `accuracy`. With an accuracy of 0 they are added until that error is small
    against the brackets. `most` ends both.

    Attributes:
        subject: what is measured.
        generator: of the probes.
        tolerance: half-width of the bracket, as a share of the mean, at which a run stops.
        accuracy: half-width wanted of the 95 % interval of the samples' mean, likewise; 0 for as good as `most` allows.
        samples: how many there are; the errors of their probes average out.
        most: products per sample beyond which none are added; four steps of two runs are done in any case.
        otherwise: what measures the samples where that does not reach the accuracy; None keeps what was found.
        ranks: the processes that estimate shares of the same batch; they go on together.
    """

    subject: Subject
    generator: torch.Generator
    tolerance: float
    accuracy: float
    samples: int
    most: int
    otherwise: Estimator | None = None
    ranks: Ranks = field(default_factory=Ranks)
    method = "krylov"

    @property
    def price(self) -> int:
        """What two runs of 12 steps, 24 further probes and the check of J against Jᵀ take, or `most`."""
        return max(2 * _RUNS * _FEWEST_STEPS + CHECK, min(self.most, 2 * _RUNS * 12 + 24 + CHECK))

    @property
    def at_once(self) -> int:
        """Few: the slowest of them sets the products of all."""
        return _AT_ONCE

    @property
    def entries(self) -> int:
        """The two bases of every run."""
        own = _RUNS * 2 * 24 * self.subject.columns
        return own if self.otherwise is None else max(own, self.otherwise.entries)

    def within(self, products: float) -> ControlledKrylov:
        """Return the estimator with at most `products` per sample."""
        return replace(self, most=min(self.most, int(products)))

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Estimate the mean of every sample's singular values."""
        x = self.subject.fast_input(batch)
        jacobian = jacobian_of(self.subject, batch, x)
        kept = _KEPT_BY_TRIAL if self.otherwise is not None else _KEPT / self.samples**0.5
        run = bidiagonalize(
            jacobian,
            self._probes(batch, _RUNS, jacobian),
            steps=max(_FEWEST_STEPS, min(_STEPS, int((1 - kept) * (self.most - CHECK)) // (2 * _RUNS))),
            rtol=self.tolerance,
            keep_basis=True,
            agree=self.ranks.all_agree,
        )
        control = Controlled.of(run)
        promising = self.otherwise is None or self.ranks.all_agree(self._may_reach(control, run))
        while promising and not self.ranks.all_agree(self._has_runs(control, run)):
            start, steps = self._probes(batch, _RUNS, jacobian), run.alpha.shape[-1]
            more = bidiagonalize(jacobian, start, steps=steps, keep_basis=True, agree=self.ranks.all_agree)
            run = run.joined(more)
            control = Controlled.of(run)
        levels = control.level[:, :0]
        while promising and (count := min(_PART, self._left(run, levels.shape[1]))) > 0:
            if self.ranks.all_agree(self._fits(control.ends(levels), control.variance(levels.shape[1]))):
                break
            further = self._probes(batch, count, jacobian)
            levels = torch.cat([levels, control.levels(further, _squares(jacobian, further))], 1)
        found = self._found(batch, jacobian, run, control, levels)
        if self.otherwise is None or (
            promising and self.ranks.all_agree(self._reaches(control.ends(levels), control.variance(levels.shape[1])))
        ):
            return found
        exact = self.otherwise.estimate(batch)
        return replace(exact, forwards=exact.forwards + found.forwards, products=exact.products + found.products)

    def _probes(self, batch: Batch, count: int, jacobian: Jacobian) -> Tensor:
        whole = probes(batch.whole or jacobian.batch, count, jacobian.rank, self.generator, jacobian.inputs.detach())
        return whole[batch.first : batch.first + jacobian.batch]

    def _left(self, run: Bidiagonal, further: int = 0) -> int:
        """Return how many products per sample are left, the same on all ranks."""
        return self.most - CHECK - run.alpha.shape[1] * run.products - further

    def _has_runs(self, control: Controlled, run: Bidiagonal) -> bool:
        """Whether there are enough runs: their variance fits, or the products left are worth more as further probes."""
        count, price, left = run.alpha.shape[1], _RUNS * run.products, self._left(run)
        if count >= _MOST_RUNS or price > left:
            return True
        runs, levels = control.variances
        with_more = runs / (count + _RUNS) + levels / (count + _RUNS + left - price)
        pays = bool((with_more < runs / count + levels / (count + left)).any())
        return not pays or self._fits(control.ends(control.level[:, :0]), runs / count, _SHARE_OF_RUNS)

    def _fits(self, ends: tuple[Tensor, Tensor], variance: Tensor, share: float = 1.0) -> bool:
        """Whether a variance [B] of probes, a share of what there may be, leaves the mean between `ends` within the accuracy.

        Where brackets leave nothing, probes may err as much as the brackets are long, or a tenth of that with an accuracy of 0.
        """
        lower, upper = ends
        least = (2 if self.accuracy else 1 + _NEGLIGIBLE) * (upper - lower) / 2
        wanted = torch.maximum(self.accuracy * (lower + upper) / 2, least)
        return bool((self._error(ends, variance / share) <= wanted).all())

    def _may_reach(self, control: Controlled, run: Bidiagonal) -> bool:
        """Whether the accuracy is reached if the products left go into runs and into further probes, both at once."""
        count, left = run.alpha.shape[1], self._left(run)
        runs, levels = control.variances
        variance = runs / (count + left // run.products) + levels / (count + left)
        return self._reaches(control.ends(control.level[:, :0]), variance)

    def _reaches(self, ends: tuple[Tensor, Tensor], variance: Tensor) -> bool:
        """Whether brackets and probes, of this variance [B], are together about as accurate as wanted."""
        return bool((self._error(ends, variance) <= _ABOUT * self.accuracy * (ends[0] + ends[1]) / 2).all())

    def _error(self, ends: tuple[Tensor, Tensor], variance: Tensor) -> Tensor:
        """Return how far the samples' mean may be off [B], if all were like each: probes of this variance, and brackets."""
        return bracketed_half_width((variance / self.samples).sqrt(), (ends[1] - ends[0]) / 2)

    def _found(
        self, batch: Batch, jacobian: Jacobian, run: Bidiagonal, control: Controlled, levels: Tensor
    ) -> EstimatedBatch:
        lower, upper = control.ends(levels)
        none = torch.zeros_like(lower).cpu()
        brackets = Brackets(
            lower.cpu(),
            upper.cpu(),
            control.variance(levels.shape[1]).cpu(),
            float(run.largest()[1].max()),
            none,
            none + run.alpha.shape[1],
            none + run.alpha.shape[-1],
        )
        return replace(estimated(run.spectrum(), len(batch), jacobian), brackets=brackets)


def _squares(jacobian: Jacobian, vectors: Tensor) -> Tensor:
    """Return the squared norms [B, S] of products with vectors [B, S, r] of the smaller side."""
    wide = jacobian.rows <= jacobian.columns
    products = jacobian.rmatvec(vectors) if wide else jacobian.matvec(vectors)
    return torch.linalg.vector_norm(products.double(), dim=-1).square()
