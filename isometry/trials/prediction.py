"""Which number predicts an outcome: rank correlations within cells, their pooling over studies, choices between two.

A *cell* is a setting in which methods are compared, one network, ratio, rate and seed for instance; a *study* is a
part of the cells that is independent of the others, a network with its data for instance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isometry.trials.pooling import Pooled, pool

__all__ = [
    "Assessment",
    "Cells",
    "assess",
    "choices",
    "method_ranks",
    "rank_correlations",
    "resample",
    "study_means",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cells:
    """Candidates and outcomes of the methods that each cell compares.

    Attributes:
        candidates: their names.
        methods: their names.
        values: [S, C, M], nan where a cell lacks a method.
        outcomes: [S, M], likewise; larger is better.
        studies, seeds: [S], the study and the seed of every cell.
    """

    candidates: tuple[str, ...]
    methods: tuple[str, ...]
    values: Array
    outcomes: Array
    studies: NDArray[np.object_]
    seeds: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        candidates: Sequence[str],
        outcome: str,
        *,
        study: str = "network",
        within: Sequence[str] = (),
    ) -> Cells:
        """Return the cells of a table with one row per trial and the columns `method` and `seed`.

        Rows that lack a number are left out, and cells with fewer than three methods.

        Args:
            table: the trials.
            candidates: columns that may predict.
            outcome: the column to predict.
            study: the column that names the study.
            within: columns that set cells apart, beside study and seed.

        Raises:
            ValueError: two rows are one method in one cell; or no cell has three methods.
        """
        columns = [study, *within, "seed"]
        rows = table.dropna(subset=[outcome, *candidates])
        if (twice := rows.duplicated([*columns, "method"])).any():
            raise ValueError(
                f"Cells.of() got two rows of {rows.loc[twice, 'method'].iloc[0]} in one cell. Name what sets them apart, e.g. "
                "Cells.of(table, candidates, 'accuracy', within=['ratio', 'lr'])."
            )
        rows = rows[rows.groupby(columns)["method"].transform("size") >= 3]
        if rows.empty:
            raise ValueError(
                f"Cells.of() got a table of {len(table)} rows in which no cell has three methods with all numbers. Pass the "
                "columns that a cell shares only, e.g. Cells.of(table, candidates, 'accuracy', within=['ratio', 'lr'])."
            )
        methods = tuple(rows["method"].unique())
        keys, values, outcomes = [], [], []
        for key, cell in rows.groupby(columns, sort=False):
            filled = cell.set_index("method").reindex(methods)
            keys.append(key)
            values.append(filled[list(candidates)].to_numpy(float).T)
            outcomes.append(filled[outcome].to_numpy(float))
        studies = np.array([key[0] for key in keys], dtype=object)
        seeds = np.array([key[-1] for key in keys])
        return cls(tuple(candidates), methods, np.stack(values), np.stack(outcomes), studies, seeds)

    @property
    def names(self) -> list[str]:
        """The studies, in the order of the table."""
        return list(dict.fromkeys(self.studies))


def rank_correlations(cells: Cells, weights: Array, given: str | None = None) -> Array:
    """Return Spearman's correlation of every candidate with the outcome within every cell: [B, S, C].

    Ranks are average ranks, of methods that count as often as their weights say. nan where either does not vary.

    Args:
        cells: see there.
        weights: [B, M], how often each method counts.
        given: the partial correlation given this candidate: (r_xy - r_xz r_yz) / sqrt((1 - r_xz²) (1 - r_yz²)).
    """
    present = ~np.isnan(cells.outcomes)
    variables = np.concatenate([cells.values, cells.outcomes[:, None]], axis=1)  # [S, C + 1, M]
    below = (variables[..., None, :] < variables[..., None]) + 0.5 * (variables[..., None, :] == variables[..., None])
    own = weights[:, None] * present  # [B, S, M]
    total = own.sum(-1)[..., None, None]
    result = []
    for count, size in zip(own, total, strict=True):
        ranks = np.einsum("scij,sj->sci", below, count)
        ranks = ranks - (ranks * count[:, None]).sum(-1, keepdims=True) / np.maximum(size, 1)
        products = (ranks * count[:, None]) @ ranks.swapaxes(1, 2)  # [S, C + 1, C + 1]
        scale = np.sqrt(np.einsum("scc->sc", products))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = products / (scale[..., None] * scale[:, None])
            r = np.where(np.minimum(scale[..., None], scale[:, None]) > 1e-9, r, np.nan).clip(-1, 1)
            correlation = r[:, :-1, -1]
            if given is not None:
                z = cells.candidates.index(given)
                rest = (1 - r[:, :-1, z] ** 2) * (1 - r[:, [-1], z] ** 2)
                correlation = (correlation - r[:, :-1, z] * r[:, [-1], z]) / np.sqrt(rest)
                correlation = np.where(rest > 1e-9, correlation.clip(-1, 1), np.nan)
        result.append(correlation)
    return np.stack(result)


def choices(cells: Cells, weights: Array, *, margin: float = 0.0) -> Array:
    """Return how often the better of two methods is chosen by a candidate whose sign was learned on the other studies: [B, S, C].

    A candidate's sign is that of its mean rank correlation over the cells of the other studies, all methods counted once. The
    share is over the pairs of methods of a cell whose outcomes differ by more than `margin`; a tie counts half. nan where
    there is no such pair.

    Args:
        cells: see there.
        weights: [B, M], how often each method counts.
        margin: outcomes closer than this are no choice.
    """
    signs = _learned_signs(cells)
    first, second = np.triu_indices(len(cells.methods), 1)
    better = cells.outcomes[:, first] - cells.outcomes[:, second]  # [S, P]
    with np.errstate(invalid="ignore"):  # inf - inf
        chosen = np.sign(cells.values[..., first] - cells.values[..., second]) * signs[..., None]
    chosen = np.where(np.isnan(chosen), 0.0, chosen)
    right = (1 + chosen * np.sign(better)[:, None]) / 2  # [S, C, P]
    pairs = (weights[:, first] * weights[:, second])[:, None] * (np.abs(better) > margin)  # [B, S, P]
    right = np.where(np.isnan(right), 0.0, right)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("bsp,scp->bsc", pairs, right) / pairs.sum(-1)[..., None]


def _learned_signs(cells: Cells) -> Array:
    """Return the sign of every candidate's mean correlation on the studies other than the cell's: [S, C]."""
    correlations = np.nan_to_num(rank_correlations(cells, np.ones((1, len(cells.methods))))[0])
    signs = np.zeros_like(correlations)
    for name in cells.names:
        inside = cells.studies == name
        others = correlations[~inside] if not inside.all() else correlations
        signs[inside] = np.sign(others.mean(0))
    return signs


def resample(cells: Cells, count: int, seed: int = 0) -> tuple[Array, Array]:
    """Return how often each method [B, M] and each cell [B, S] counts in bootstrap samples.

    Methods are drawn with replacement, alike for all cells; so are, within every study, its seeds.

    Args:
        cells: see there.
        count: number of bootstrap samples B.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    size = len(cells.methods)
    methods = generator.multinomial(size, np.full(size, 1 / size), count).astype(float)
    weights = np.zeros((count, len(cells.studies)))
    for name in cells.names:
        inside = np.flatnonzero(cells.studies == name)
        seeds, index = np.unique(cells.seeds[inside], return_inverse=True)
        drawn = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), count)
        weights[:, inside] = drawn[:, index]
    return methods, weights


def study_means(cells: Cells, values: Array, weights: Array) -> Array:
    """Return the weighted means over the cells of every study: [B, K, C], nan where no cell has a value.

    Args:
        cells: see there.
        values: [B, S, C], nan where there is none.
        weights: [B, S].
    """
    known = ~np.isnan(values) * weights[..., None]
    filled = np.nan_to_num(values)
    means = []
    for name in cells.names:
        inside = cells.studies == name
        total = known[:, inside].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((filled[:, inside] * known[:, inside]).sum(1) / total)
    return np.stack(means, 1)


@dataclass(frozen=True)
class Assessment:
    """How well a candidate predicts the outcome, over studies and by study.

    Attributes:
        candidate: its name.
        correlation, partial: its rank correlation with the outcome within cells, and that given another candidate.
        choices: the share of right choices between two methods.
        correlations, shares: {study: its mean correlation}, and its share of right choices; nan where there is none.
    """

    candidate: str
    correlation: Pooled
    partial: Pooled
    choices: Pooled
    correlations: dict[str, float]
    shares: dict[str, float]


def assess(cells: Cells, *, given: str, margin: float = 0.0, count: int = 200, seed: int = 0) -> list[Assessment]:
    """Assess every candidate; sampling variances of studies are those of bootstrap samples of methods and seeds.

    Args:
        cells: see there.
        given: the candidate that partial correlations are taken given.
        margin: see `choices`.
        count: see `resample`.
        seed: see `resample`.
    """
    drawn = resample(cells, count, seed)
    once = np.ones((1, len(cells.methods))), np.ones((1, len(cells.studies)))

    def pooled(statistic: Callable[[Cells, Array], Array]) -> tuple[list[Pooled], Array]:
        effects = study_means(cells, statistic(cells, once[0]), once[1])[0]
        samples = study_means(cells, statistic(cells, drawn[0]), drawn[1])
        known = np.isfinite(samples)
        number = known.sum(0)
        deviations = np.where(known, samples - np.nan_to_num(samples).sum(0) / np.maximum(number, 1), 0.0)
        variances = np.where(number > 1, (deviations**2).sum(0) / np.maximum(number - 1, 1), np.nan)
        return [pool(*pair) for pair in zip(effects.T, variances.T, strict=True)], effects

    correlation, correlations = pooled(rank_correlations)
    partial, _ = pooled(functools.partial(rank_correlations, given=given))
    right, shares = pooled(functools.partial(choices, margin=margin))
    return [
        Assessment(
            name, correlation[i], partial[i], right[i],
            dict(zip(cells.names, correlations[:, i].tolist(), strict=True)),
            dict(zip(cells.names, shares[:, i].tolist(), strict=True)),
        )
        for i, name in enumerate(cells.candidates)
    ]  # fmt: skip


def method_ranks(table: pd.DataFrame, outcome: str, *, study: str = "network", within: Sequence[str] = ()) -> pd.Series:
    """Return for every row the mean rank, from 0 to 1, that its method has in the cells of the other studies.

    That is what can be said of a network from the method that pruned it alone. 0.5 where no other study has the method.

    Args:
        table: see `Cells.of`.
        outcome: see `Cells.of`.
        study: see `Cells.of`.
        within: see `Cells.of`.
    """
    ranks = table.groupby([study, *within, "seed"])[outcome].rank(pct=True)
    own = ranks.groupby([table["method"], table[study]])
    every = ranks.groupby(table["method"])
    others = every.transform("count") - own.transform("count")
    return ((every.transform("sum") - own.transform("sum")) / others).where(others > 0, 0.5)
