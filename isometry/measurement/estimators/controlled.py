"""The mean at few samples: runs of Golub-Kahan, and many more probes of one product each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isometry.measurement.batch import Batch
from isometry.measurement.brackets import Brackets
from isometry.measurement.estimators.estimator import EstimatedBatch, Estimator, estimated, jacobian_of
from isometry.measurement.jacobian import Jacobian
from isometry.measurement.preparation import Subject
from isometry.measurement.ranks import Ranks
from isometry.spectra import Bidiagonal, Controlled, bidiagonalize, probes

__all__ = ["ControlledKrylov"]

_AT_ONCE = 16
_STEPS, _FEWEST_STEPS = 96, 4
_RUNS = 2
_SHARE_OF_FURTHER = (
    0.25  # of one sample's products, at least, where they are few; errors of probes average out, brackets do not
)
_NEGLIGIBLE = 0.1
_MOST_RUNS, _MOST_FURTHER = 12, 128
_PART = 8  # further probes at a time
_SHARE_OF_RUNS = 0.7  # of the variance: a run costs much more than a further probe
_NORMAL = 1.96
_CHECK = 2  # products, of J against Jᵀ


@dataclass(frozen=True, eq=False)
class ControlledKrylov(Estimator):
    """Brackets of every sample's mean from two runs or more, and from probes of one product each; see `Controlled`.

    Runs go on until their narrowed brackets are as short as `tolerance`; runs and further probes are added until the error of
    the probes fits into what is left of `accuracy`, or, where that is 0, is small against the brackets, within limits.

    Attributes:
        subject: what is measured.
        generator: of the probes.
        tolerance: half-width of the bracket, as a share of the mean, at which a run stops.
        accuracy: half-width wanted of the 95 % interval of the samples' mean, likewise.
        samples: how many there are; the errors of their probes average out.
        most: products per sample beyond which none are added.
        ranks: the processes that estimate shares of the same batch; they go on together.
    """

    subject: Subject
    generator: torch.Generator
    tolerance: float
    accuracy: float
    samples: int
    most: int
    ranks: Ranks = field(default_factory=Ranks)
    method = "krylov"

    @property
    def price(self) -> int:
        """What two runs of 12 steps, 24 further probes and the check of J against Jᵀ take, or fewer."""
        return max(2 * _RUNS * _FEWEST_STEPS + _CHECK, min(self.most, 2 * _RUNS * 12 + 24 + _CHECK))

    @property
    def at_once(self) -> int:
        """Few: the slowest of them sets the products of all."""
        return _AT_ONCE

    @property
    def entries(self) -> int:
        """The two bases of every run."""
        return _RUNS * 2 * 24 * self.subject.columns

    def within(self, products: float) -> ControlledKrylov:
        """Return the estimator with at most `products` per sample; four steps of two runs are done in any case."""
        return replace(self, most=min(self.most, int(products)))

    def estimate(self, batch: Batch) -> EstimatedBatch:
        """Estimate the mean of every sample's singular values."""
        x = self.subject.fast_input(batch)
        jacobian = jacobian_of(self.subject, batch, x)
        first = (1 - _SHARE_OF_FURTHER / self.samples**0.5) * (self.most - _CHECK)
        run = bidiagonalize(
            jacobian,
            self._probes(batch, _RUNS, jacobian),
            steps=max(_FEWEST_STEPS, min(_STEPS, int(first) // (2 * _RUNS))),
            rtol=self.tolerance,
            keep_basis=True,
            agree=self.ranks.all_agree,
        )
        control = Controlled.of(run)
        while not self.ranks.all_agree(self._has_runs(control, run, self.most - jacobian.products)):
            start = self._probes(batch, _RUNS, jacobian)
            run = run.joined(bidiagonalize(jacobian, start, steps=run.alpha.shape[-1], keep_basis=True))
            control = Controlled.of(run)
        levels = control.level[:, :0]
        while (count := int(min(_PART, self.most - jacobian.products, _MOST_FURTHER - levels.shape[1]))) > 0:
            if self.ranks.all_agree(self._fits(control, control.variance(levels.shape[1]))):
                break
            further = self._probes(batch, count, jacobian)
            levels = torch.cat([levels, control.levels(further, _squares(jacobian, further))], 1)
        return self._found(batch, jacobian, run, control, levels)

    def _probes(self, batch: Batch, count: int, jacobian: Jacobian) -> Tensor:
        whole = probes(batch.whole or jacobian.batch, count, jacobian.rank, self.generator, jacobian.inputs.detach())
        return whole[batch.first : batch.first + jacobian.batch]

    def _has_runs(self, control: Controlled, run: Bidiagonal, left: float) -> bool:
        """Whether there are enough runs: their variance fits, or what is `left` of the products is worth more as further probes."""
        count, price = run.alpha.shape[1], _RUNS * run.products
        if count >= _MOST_RUNS or price > left:
            return True
        runs, levels = control.variances
        with_more = runs / (count + _RUNS) + levels / (count + _RUNS + min(left - price, _MOST_FURTHER))
        pays = bool((with_more < runs / count + levels / (count + min(left, _MOST_FURTHER))).any())
        return not pays or self._fits(control, runs / count, _SHARE_OF_RUNS)

    def _fits(self, control: Controlled, variance: Tensor, share: float = 1.0) -> bool:
        """Whether the variance [B] is at most a share of what the accuracy leaves to probes.

        Where brackets leave nothing, probes may err as much as the brackets are long, or a tenth of that if products are what counts.
        """
        lower, upper = control.ends(control.level[:, :0])
        half = (upper - lower) / 2
        left = (
            torch.maximum(self.accuracy * (lower + upper) / 2 - half, half * (1.0 if self.accuracy else _NEGLIGIBLE))
            * self.samples**0.5
        )
        return bool((variance <= share * (left / _NORMAL).square()).all())

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
