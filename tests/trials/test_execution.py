"""Stages in processes that die, wait for each other and fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import isometry
from isometry import L1, Recipe
from isometry.surgery import UnitGroup
from isometry.trials import Trial, describe_origin, run
from tests.trials import interrupted
from tests.trials.examples import trial

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Broken(L1):
    def importance(self, context: object, group: UnitGroup) -> Tensor:
        raise RuntimeError("no importance today")


class Suicidal(L1):
    """Takes its process along: once where `path` is absent, else every time."""

    def importance(self, context: object, group: UnitGroup) -> Tensor:
        marker = os.environ["ISOMETRY_TEST_MARKER"]
        if not Path(marker).exists() or marker.endswith("always"):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().importance(context, group)  # type: ignore[arg-type]


def start(folder: Path, jobs: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.trials.interrupted", str(folder), str(jobs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 120
    while not any(folder.rglob(pattern)):
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@linux
def test_workers_end_with_their_parent_and_a_restart_gives_the_same_table(tmp_path: Path) -> None:
    process = start(tmp_path / "killed")
    wait_for(tmp_path / "killed", "training.safetensors")
    workers = children(process.pid)
    process.kill()
    process.communicate()
    again = start(tmp_path / "killed")  # at once
    time.sleep(2)
    assert not any(alive(pid) for pid in workers)
    _, errors = again.communicate(timeout=240)
    whole = run(interrupted.TRIALS, tmp_path / "whole", jobs=1, progress=False)
    pd.testing.assert_frame_equal(run(interrupted.TRIALS, tmp_path / "killed", jobs=1, progress=False), whole)
    assert again.returncode == 0, errors
    assert not list((tmp_path / "killed").rglob("*.partial"))


def test_two_runs_on_one_folder_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isometry.trials import stages

    original, calls = stages.DenseTraining.execute, []

    def slow(self: stages.DenseTraining, *arguments: object, **options: object) -> object:
        calls.append(self.folder)
        time.sleep(0.5)
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stages.DenseTraining, "execute", slow)
    wanted = trial(finetune=None, pruner=None)
    tables: list[pd.DataFrame] = []
    other = threading.Thread(target=lambda: tables.append(run([wanted], tmp_path, jobs=1, progress=False)))
    other.start()
    tables.append(run([wanted], tmp_path, jobs=1, progress=False))
    other.join()
    assert len(calls) == 1
    pd.testing.assert_frame_equal(*tables)


def test_a_failing_trial_is_recorded_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    wanted = [trial(pruner=Broken()), trial()]
    with pytest.warns(
        UserWarning, match=r"finished 1 of 2 trials. Failed: .*broken-0\.5.*no importance today.*error\.txt"
    ):
        table = run(wanted, tmp_path, jobs=1, progress=False)
    failed = table[table["trial"] == wanted[0].key]
    assert list(failed["phase"]) == ["dense", "pruned"]
    assert "RuntimeError: no importance today" in failed["error"].iloc[1]
    assert table["error"].notna().sum() == 1
    (file,) = tmp_path.rglob("error.txt")
    assert "Traceback" in file.read_text()
    assert wanted[0].key in file.read_text()
    alone = run(wanted[1:], tmp_path, jobs=1, progress=False)
    assert "error" not in alone
    assert len(alone) == len(table) - 2
    assert len(describe_origin(wanted, tmp_path)["failed"]) == 2


def test_a_failure_is_tried_again_and_its_file_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L1, "importance", Broken.importance)
    with pytest.warns(UserWarning, match="finished 0 of 1"):
        run([trial()], tmp_path, jobs=1, progress=False)
    monkeypatch.undo()
    assert len(run([trial()], tmp_path, jobs=1, progress=False)) == 4
    assert not list(tmp_path.rglob("error.txt"))


@linux
@pytest.mark.parametrize("name", ["once", "always"])
def test_a_stage_whose_worker_was_killed_is_run_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)  # workers of earlier tests do not see the variable
    monkeypatch.setenv("ISOMETRY_TEST_MARKER", str(tmp_path / name))
    wanted = [trial(pruner=Suicidal(), finetune=None), trial(finetune=None)]
    if name == "once":
        table = run(wanted, tmp_path / "runs", jobs=2, progress=False)
        assert "error" not in table
        assert len(table) == 4
    else:
        with pytest.warns(UserWarning, match=r"finished 1 of 2 trials.*suicidal-0\.5.*killed twice"):
            table = run(wanted, tmp_path / "runs", jobs=2, progress=False)
        assert len(table) == 4
        assert table["error"].notna().sum() == 1


def test_the_number_of_threads_is_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run([trial(finetune=None, pruner=None)], tmp_path, jobs=1, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_fine_tuned_weights_are_kept_where_asked(tmp_path: Path) -> None:
    table = run([trial()], tmp_path, jobs=1, progress=False)
    assert not list(tmp_path.rglob("plain/*/*/model.safetensors"))
    again = run([trial()], tmp_path, jobs=1, progress=False, keep="weights")
    pd.testing.assert_frame_equal(again, table)
    (file,) = tmp_path.rglob("plain/*/*/model.safetensors")
    model = isometry.load(file, isometry.networks.build("mlp-7-linear", **trial().options)).model
    accuracy = isometry.evaluate(model, isometry.data.load("digits", validation=0).test).accuracy
    assert accuracy == table["accuracy"].iloc[-1]
    with pytest.raises(ValueError, match=r"got keep='all'; it takes None or 'weights'"):
        run([trial()], tmp_path, keep="all")


def test_partial_files_of_dead_processes_are_cleaned_up(tmp_path: Path) -> None:
    run([trial(finetune=None, pruner=None)], tmp_path, jobs=1, progress=False)
    (record,) = tmp_path.rglob("done.json")
    from isometry import files

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    partial = files._partial(record.parent / "training.safetensors")
    partial = partial.with_name(partial.name.replace(f"-{os.getpid()}-", f"-{process.pid}-"))
    partial.write_text("")
    record.unlink()
    run([trial(finetune=None, pruner=None)], tmp_path, jobs=1, progress=False)
    assert not partial.exists()


@pytest.mark.parametrize("damage", ["log lost", "log edited", "checkpoint flipped"])
def test_a_fine_tuning_whose_log_or_checkpoint_is_damaged_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from isometry.trials import rows

    wanted = Trial(**{**vars(trial()), "finetune": Recipe(0.01, 4, 64)})
    whole = run([wanted], tmp_path / "whole", jobs=1, progress=False)
    original, calls = rows.evaluate, []

    def dies(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 5:  # dense, pruned, two epochs, and killed in the third
            raise KeyboardInterrupt
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "evaluate", dies)
    with pytest.raises(KeyboardInterrupt):
        run([wanted], tmp_path / "a", jobs=1, progress=False)
    monkeypatch.setattr(rows, "evaluate", original)
    (log,) = (tmp_path / "a").rglob("rows.jsonl")
    checkpoint = log.parent / "training.safetensors"
    if damage == "log lost":
        log.unlink()
    elif damage == "log edited":
        log.write_text(log.read_text().replace('"accuracy": 0.', '"accuracy": 0.1', 1))
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match=r"(rows\.jsonl|training\.safetensors).* It is deleted"):
        table = run([wanted], tmp_path / "a", jobs=1, progress=False)
    pd.testing.assert_frame_equal(table, whole)
