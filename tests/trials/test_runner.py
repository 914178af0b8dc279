"""Trials in processes: the same table every time, whatever interrupts them."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

import isometry
from isometry import Recipe
from isometry.trials import Trial, rows, run
from tests.trials.examples import four_trials, trial


def test_the_same_trials_give_the_same_table(tmp_path: Path) -> None:
    table = run(four_trials(), tmp_path / "a", jobs=2)
    pd.testing.assert_frame_equal(run(four_trials(), tmp_path / "b", jobs=1), table)


def test_trials_are_never_run_twice(tmp_path: Path) -> None:
    table = run(four_trials(), tmp_path / "a", jobs=2)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    pd.testing.assert_frame_equal(run(four_trials(), tmp_path / "a", jobs=1), table)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(list((tmp_path / "a").rglob("dense/*/done.json"))) == 2  # shared by the trials of one seed


def test_a_killed_run_loses_at_most_the_epoch_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [trial(finetune=Recipe(0.01, 5, 32))]
    table = run(wanted, tmp_path / "whole", jobs=1)
    original, calls = rows.evaluate, []

    def dies(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # dense, pruned, two epochs, and killed in the third
            raise KeyboardInterrupt
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        run(wanted, tmp_path / "killed", jobs=1)
    if sys.version_info >= (3, 11):  # where tracebacks end with notes
        assert interrupt.value.__notes__[-1].endswith("killed keeps what is finished: call it again to go on.")
    monkeypatch.setattr(rows, "evaluate", original)
    (log,) = (tmp_path / "killed").rglob("rows.jsonl")
    assert len(log.read_text().splitlines()) == 2
    assert (log.parent / "training.safetensors").exists()
    pd.testing.assert_frame_equal(run(wanted, tmp_path / "killed", jobs=1), table)
    assert not log.exists()


def test_a_diverged_trial_is_recorded_and_does_not_stop_the_others(tmp_path: Path) -> None:
    wanted = [trial(finetune=Recipe(1e5, 3, 32)), trial(), trial(pretrain=Recipe(1e5, 3, 32))]
    table = run(wanted, tmp_path, jobs=1)
    assert table["diverged"].sum() >= 3  # the fine-tuning; the dense training and both of its successors
    good = table[(table["lr"] == 0.01) & ~table["diverged"] & (table["phase"] == "finetune")]
    assert len(good) == 2
    assert table[table["diverged"]]["accuracy"].isna().all()


def test_changed_settings_are_another_trial(tmp_path: Path) -> None:
    one, other = run([trial()], tmp_path, jobs=1), run([trial(pretrain=Recipe(0.02, 4, 32))], tmp_path, jobs=1)
    assert one["accuracy"].iloc[0] != other["accuracy"].iloc[0]


def test_a_trial_whose_weights_are_finite_but_too_large_has_diverged(tmp_path: Path) -> None:
    wild = Recipe(1e20, 1, epoch_steps=1)
    trial = Trial("digits", "mlp-7-linear", wild, wild, isometry.L1(), 0.5, options={"input_shape": (1, 8, 8)})
    table = run([trial], tmp_path, jobs=1, progress=False)
    assert table["diverged"].all()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        OSError, match=r"cannot write to the output folder .*file.* Name another one, e\.g\. folder='runs'"
    ):
        run([trial()], file / "below")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OSError, match="cannot write"):
            run([trial()], tmp_path / "below")
