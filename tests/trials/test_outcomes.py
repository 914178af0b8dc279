"""Tables of trials, read for a summary."""

import pandas as pd

from isometry.trials.outcomes import before_finetuning, last_epoch, name_methods, percent

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
