"""What predicts an outcome, on data whose answer is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isometry.trials.pooling import pool
from isometry.trials.prediction import Cells, assess, choices, method_ranks, rank_correlations, resample, study_means


def draw(correlations: list[float], methods: int, seed: int, *, seeds: int = 3) -> pd.DataFrame:
    """Return trials in which `good` and the outcome are normal with a study's correlation, and `noise` is independent."""
    generator = np.random.default_rng(seed)
    rows = []
    for (study, rho), number in itertools.product(enumerate(correlations), range(seeds)):
        good, noise, rest = generator.standard_normal((3, methods))
        outcome = rho * good + np.sqrt(1 - rho**2) * rest
        for index, numbers in enumerate(zip(good, noise, outcome, strict=True)):
            cell = {"network": f"study {study}", "seed": number, "method": f"m{index}"}
            rows.append(cell | dict(zip(("good", "noise", "outcome"), numbers, strict=True)))
    return pd.DataFrame(rows)


def every_method(cells: Cells) -> np.ndarray:
    return np.ones((1, len(cells.methods)))


def test_rank_correlations_are_scipys_with_ties_and_with_methods_counted_twice() -> None:
    generator = np.random.default_rng(0)
    table = draw([0.5, 0.0], 7, 0, seeds=2).round(0)
    table.loc[generator.integers(0, len(table), 3), "outcome"] = np.nan  # cells that lack a method
    cells = Cells.of(table, ["good", "noise"], "outcome")
    counts = np.array([[1, 2, 1, 3, 0, 1, 1]], dtype=float)
    for weights in (every_method(cells), counts):
        found = rank_correlations(cells, weights)[0]
        for cell, candidate in itertools.product(range(len(cells.studies)), range(2)):
            x = np.repeat(cells.values[cell, candidate], weights[0].astype(int))
            y = np.repeat(cells.outcomes[cell], weights[0].astype(int))
            known = ~np.isnan(y)
            assert found[cell, candidate] == pytest.approx(stats.spearmanr(x[known], y[known]).statistic)


def test_a_partial_correlation_is_that_of_the_inverse_correlation_matrix() -> None:
    table = draw([0.7], 60, 1, seeds=1)
    table["good"] += table["noise"]
    cells = Cells.of(table, ["good", "noise"], "outcome")
    precision = np.linalg.inv(stats.spearmanr(table[["good", "noise", "outcome"]]).statistic)
    expected = -precision[0, 2] / np.sqrt(precision[0, 0] * precision[2, 2])
    assert rank_correlations(cells, every_method(cells), given="noise")[0, 0, 0] == pytest.approx(expected)


def test_what_only_follows_from_another_candidate_has_no_partial_correlation() -> None:
    generator = np.random.default_rng(2)
    cause = generator.standard_normal(600)
    symptom, outcome = cause + generator.standard_normal((2, 600))
    table = pd.DataFrame({"network": "net", "seed": 0, "cause": cause, "symptom": symptom, "outcome": outcome})
    cells = Cells.of(table.assign(method=table.index.astype(str)), ["symptom", "cause"], "outcome")
    plain = rank_correlations(cells, every_method(cells))[0, 0]
    partial = rank_correlations(cells, every_method(cells), given="cause")[0, 0]
    assert plain[0] > 0.4
    assert abs(partial[0]) < 0.12


def test_a_candidate_that_does_not_vary_has_no_correlation_and_chooses_by_chance() -> None:
    cells = Cells.of(draw([0.5, 0.5], 6, 3).assign(constant=1.0), ["constant", "good"], "outcome")
    assert np.isnan(rank_correlations(cells, every_method(cells))[0, :, 0]).all()
    assert (choices(cells, every_method(cells))[0, :, 0] == 0.5).all()


def test_a_choice_follows_the_sign_that_the_other_studies_teach() -> None:
    table = draw([0.0, 0.0, 0.0], 8, 4)
    table["gap"] = -table["outcome"]
    table["fickle"] = table["outcome"].where(table["network"] != "study 0", -table["outcome"])
    cells = Cells.of(table, ["gap", "fickle"], "outcome")
    right = study_means(cells, choices(cells, every_method(cells)), np.ones((1, len(cells.studies))))[0]
    assert (right[:, 0] == 1).all()
    assert right[0, 1] == 0
    far = choices(cells, every_method(cells), margin=100.0)
    assert np.isnan(far).all()


def test_pooling_gives_the_published_values_of_the_trials_of_bcg() -> None:
    # Log risk ratios and variances of 13 trials; Viechtbauer, Journal of Statistical Software 2010, method "HE".
    effects = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694, -1.3713, -0.3394, 0.4459,
               -0.0173]  # fmt: skip
    variances = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730, 0.0124, 0.5325, 0.0714]
    pooled = pool(np.array([*effects, np.nan]), np.array([*variances, 1.0]))
    assert (pooled.mean, pooled.tau**2, pooled.studies) == (
        pytest.approx(sum(effects) / 13),
        pytest.approx(0.3286, abs=1e-3),
        13,
    )
    assert pooled.low < pooled.mean - 0.3 < pooled.mean + 0.3 < pooled.high


def test_pooling_favors_no_study() -> None:
    shares = np.array([0.99, 0.98, 0.6, 0.7])
    assert pool(shares, shares * (1 - shares) / 50).mean == pytest.approx(shares.mean())


def test_pooled_intervals_hold_the_known_correlation_about_as_often_as_they_say() -> None:
    population, spread, count = 0.6, 0.15, 10
    rho = np.linspace(population - spread, population + spread, 1001)
    # The expectation of Spearman's correlation of a normal sample (Moran, Biometrika 1948), over the studies.
    expected = (6 / np.pi / (count + 1) * (np.arcsin(rho) + (count - 2) * np.arcsin(rho / 2))).mean()
    held = 0
    generator = np.random.default_rng(5)
    for repeat in range(40):
        correlations = (population + spread * generator.uniform(-1, 1, 6)).tolist()
        cells = Cells.of(draw(correlations, count, repeat, seeds=4), ["good", "noise"], "outcome")
        methods, seeds = resample(cells, 60, repeat)
        once = study_means(cells, rank_correlations(cells, every_method(cells)), np.ones((1, len(cells.studies))))[0]
        variances = study_means(cells, rank_correlations(cells, methods), seeds).var(axis=0)
        good, noise = (pool(once[:, i], variances[:, i]) for i in range(2))
        held += int(good.low < expected < good.high) + int(noise.low < 0 < noise.high)
    assert held / 80 > 0.85


def test_an_assessment_tells_the_good_candidate_from_noise_and_from_what_only_follows_from_it() -> None:
    table = draw([0.8, 0.8, 0.8], 12, 8, seeds=5)
    table["echo"] = table["good"] + 0.7 * np.random.default_rng(1).standard_normal(len(table))
    table["backwards"] = -table["good"]
    cells = Cells.of(table, ["good", "noise", "echo", "backwards"], "outcome")
    good, noise, echo, backwards = assess(cells, given="good")
    assert good.correlation.low > 0.5
    assert noise.correlation.low < 0 < noise.correlation.high
    assert echo.correlation.low > 0.2
    assert echo.partial.low < 0 < echo.partial.high
    assert np.isnan(good.partial.mean)
    assert backwards.choices == good.choices
    assert good.choices.low > 0.65 > noise.choices.mean
    assert set(good.correlations) == set(good.shares) == set(cells.names)


def test_a_methods_rank_is_that_of_the_other_studies() -> None:
    rows = [
        ("a", "weak", 1.0), ("a", "strong", 2.0), ("b", "weak", 5.0), ("b", "strong", 9.0), ("c", "weak", 3.0), ("c", "odd", 1.0),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["network", "method", "outcome"]).assign(seed=0)
    found = method_ranks(table, "outcome").to_list()
    assert found == [0.75, 1.0, 0.75, 1.0, 0.5, 0.5]


def test_a_pooled_effect_reads_as_a_mean_with_its_interval_within_limits() -> None:
    pooled = pool(np.array([0.8, 0.9]), np.array([0.01, 0.01]))
    assert pooled.text(2) == "0.85 [0.21, 1.00]"
    assert pooled.text(0, scale=100, limits=(0.5, 1)) == "85 [50, 100]"
    assert pool(np.array([0.5]), np.array([0.01])).text(2) == "0.50"
    assert pool(np.array([np.nan]), np.array([1.0])).text(2) == ""


def test_resampling_draws_methods_alike_for_all_cells_and_seeds_within_studies() -> None:
    cells = Cells.of(draw([0.5, 0.5], 5, 6), ["good"], "outcome")
    methods, weights = resample(cells, 50)
    assert (methods.sum(1) == 5).all()
    for study in cells.names:
        assert (weights[:, cells.studies == study].sum(1) == 3).all()
    assert len({tuple(row) for row in weights}) > 10


def test_cells_refuse_rows_that_they_cannot_tell_apart_and_tables_without_a_comparison() -> None:
    table = draw([0.5], 5, 7, seeds=1)
    with pytest.raises(ValueError, match="two rows of m0 in one cell"):
        Cells.of(pd.concat([table, table]), ["good"], "outcome")
    with pytest.raises(ValueError, match="no cell has three methods"):
        Cells.of(table.head(2), ["good"], "outcome")
