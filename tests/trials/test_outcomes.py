"""Tables of trials, read for a summary."""

import pandas as pd

from isometry.trials.outcomes import (
    before_finetuning,
    gains,
    last_epoch,
    name_methods,
    percent,
    shortfall_by_jsv,
    shortfall_by_network,
)

TABLE = pd.DataFrame(
    {"phase": ["dense", "pruned", "finetune", "pruned", "repaired", "finetune", "finetune"],
     "pruner": ["l1"] * 7, "repair": ["none"] * 3 + ["oracle"] * 4, "epoch": [4, 0, 1, 0, 0, 1, 2],
     "accuracy": [0.9, 0.1, 0.7, 0.1, 0.2, 0.8, 0.85]}
)  # fmt: skip


def test_methods_are_named_and_start_from_one_row() -> None:
    rows = name_methods(TABLE, {"l1": "L1"}, {"oracle": " + oracle"})
    assert list(rows["method"]) == ["L1"] * 2 + ["L1 + oracle"] * 3
    assert list(before_finetuning(rows)["accuracy"]) == [0.1, 0.2]


def test_the_last_epoch_is_that_of_fine_tuning() -> None:
    assert list(last_epoch(TABLE)["accuracy"]) == [0.85]
    assert percent(last_epoch(TABLE)) == "85.00"


def test_a_shortfall_is_the_distance_to_the_best_of_the_cell_and_a_diverged_trial_ends_at_zero() -> None:
    rows = [
        ("a", 0.9, 1.0, False),
        ("a", 0.6, 0.005, False),
        ("a", 0.8, 3.0, True),
        ("b", 0.5, 0.7, False),
        ("b", 0.4, 0.002, False),
    ]
    table = pd.DataFrame(rows, columns=["network", "accuracy", "jsv_ratio", "diverged"]).assign(
        ratio=0.5, lr=0.01, seed=0
    )
    found = shortfall_by_jsv(table)
    assert found["mean JSV / dense"].to_list() == ["0.001 to 0.01", "0.5 to 2", "2 to inf"]
    assert found["trials"].to_list() == [2, 2, 1]
    assert found["points behind, lr 0.01"].to_list() == [
        "20.0 (15.0 to 25.0)",
        "0.0 (0.0 to 0.0)",
        "90.0 (90.0 to 90.0)",
    ]


def test_a_gain_is_counted_in_the_cells_that_have_both_methods() -> None:
    rows = [
        ("a", "L1", 0.5),
        ("a", "TPP", 0.7),
        ("b", "L1", 0.9),
        ("b", "TPP", 0.8),
        ("c", "L1", 0.1),
        ("d", "L1", 0.2),
        ("d", "TPP", 0.3),
    ]
    table = pd.DataFrame(rows, columns=["network", "method", "accuracy"]).assign(
        ratio=0.5, lr=0.01, seed=0, diverged=False
    )
    found = gains(table, [("TPP", "L1")])
    assert found.to_dict("list") == {"points ahead": ["TPP over L1"], "lr 0.01": ["10.0, in 2 of 3"]}
    apart = gains(table, [("TPP", "L1")], by_network=True)
    assert apart["network"].to_list() == ["a", "b", "d"]
    assert apart["lr 0.01"].to_list() == ["20.0, in 1 of 1", "-10.0, in 0 of 1", "10.0, in 1 of 1"]


def test_shortfalls_by_network_are_those_of_far_and_near_jsvs_at_one_rate() -> None:
    rows = [
        ("a", 0.9, 1.0, 0.01),
        ("a", 0.6, 0.005, 0.01),
        ("a", 0.1, 0.005, 0.1),
        ("b", 0.5, 0.7, 0.01),
        ("b", 0.4, 0.1, 0.01),
    ]
    table = pd.DataFrame(rows, columns=["network", "accuracy", "jsv_ratio", "lr"]).assign(
        ratio=0.5, seed=0, diverged=False
    )
    found = shortfall_by_network(table, 0.01)
    assert found["below 0.01: trials"].to_list() == ["1", "0"]
    assert found["below 0.01: points behind"].to_list() == ["30.0", ""]
    assert found["0.5 to 2: ends at, %"].to_list() == ["90.0", "50.0"]
