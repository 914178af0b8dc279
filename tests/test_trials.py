import json
import os
from pathlib import Path

import pandas as pd
import pytest

from isometry import L1, TPP, Recipe, trials
from isometry.tables import markdown, write_table
from isometry.trials import Trial, provenance, run

OPTIONS = {"input_shape": (1, 8, 8), "widths": (20, 20, 20)}


def trial(**changes: object) -> Trial:
    settings = {
        "dataset": "digits", "network": "mlp-7-linear", "pretrain": Recipe(0.01, 4, 32), "finetune": Recipe(0.01, 2, 32),
        "pruner": L1(), "ratio": 0.5, "options": OPTIONS,
    }  # fmt: skip
    return Trial(**{**settings, **changes})  # type: ignore[arg-type]


def test_the_same_trials_give_the_same_table_and_are_never_run_twice(tmp_path: Path) -> None:
    grown = TPP(delta=0.1, interval=1, stabilise=30, zero_out=5)
    wanted = [trial(), trial(repair="oracle"), trial(repair="scratch", seed=1), trial(pruner=grown)]
    table = run(wanted, tmp_path / "a", jobs=2)
    assert list(table[table["trial"] == wanted[1].key]["phase"]) == ["dense", "pruned", "repaired", *["finetune"] * 2]
    assert wanted[1].key == "mlp-7-linear/digits/l1-0.5/oracle/lr0.01x2/s0"
    repaired = table[(table["phase"] == "repaired") & (table["repair"] == "oracle")]
    assert repaired["mean_jsv"].iloc[0] == pytest.approx(1, abs=1e-5)
    pd.testing.assert_frame_equal(run(wanted, tmp_path / "b", jobs=1), table)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    pd.testing.assert_frame_equal(run(wanted, tmp_path / "a", jobs=1), table)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(list((tmp_path / "a").rglob("dense/*/done.json"))) == 2  # shared by the trials of one seed
    origin = provenance(wanted, tmp_path / "a")
    assert origin["seeds"] == [0, 1]
    assert origin["computing_seconds"] > 0
    assert any(found["pruner"].get("gram") == 1000 for found in origin["settings"].values())
    write_table(table, origin, tmp_path / "out" / "result")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trials"] == 4
    assert len(pd.read_csv(tmp_path / "out" / "result.csv")) == len(table)


def test_a_killed_run_loses_at_most_the_epoch_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [trial(finetune=Recipe(0.01, 5, 32))]
    table = run(wanted, tmp_path / "whole", jobs=1)
    original, calls = trials.evaluate, []

    def dies(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # dense, pruned, two epochs, and killed in the third
            raise KeyboardInterrupt
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trials, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "killed", jobs=1)
    monkeypatch.setattr(trials, "evaluate", original)
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


def test_bad_folders_and_repairs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match=r"cannot write to the output folder .*file.* Name another one"):
        run([trial()], file / "below")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OSError, match="cannot write"):
            run([trial()], tmp_path / "below")
    with pytest.raises(ValueError, match="repair='magic'"):
        trial(repair="magic")
    with pytest.raises(ValueError, match="nothing before it"):
        trial(pruner=None)


def test_markdown_is_a_table() -> None:
    assert markdown(pd.DataFrame({"a": [1], "b": ["x"]})) == "| a | b |\n| --- | --- |\n| 1 | x |"
