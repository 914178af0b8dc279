"""Runs that end in time: the most valuable trials first, nothing lost, what remains said."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import isometry
from isometry import Recipe
from isometry.training import loop
from isometry.trials import describe_origin, run, runner, script
from isometry.trials.manner import Manner
from isometry.trials.runner import run_tables
from tests.trials.examples import trial


def manner(folder: Path, **changes: object) -> Manner:
    return Manner(folder, 1, progress=False)._replace(**changes)


def test_no_stage_begins_after_the_deadline(tmp_path: Path) -> None:
    (table,) = run_tables([trial()], manner(tmp_path, deadline=time.time() - 1), "run")
    assert not len(table)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("pruner", [isometry.L1(), isometry.TPP(delta=0.02, interval=1, stabilize=60, zero_out=5)])
def test_a_stage_under_way_ends_with_its_epoch_and_goes_on_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: isometry.pruners.Pruner
) -> None:
    wanted = trial(finetune=Recipe(0.01, 5, 32), pruner=pruner)
    whole = run([wanted], tmp_path / "whole", jobs=1, progress=False)
    asked: list[int] = []

    def over() -> bool:
        asked.append(1)
        return len(asked) % 3 == 0

    monkeypatch.setattr(loop, "is_over", over)
    tables = []
    for _ in range(12):
        tables += run_tables([wanted], manner(tmp_path / "parts", deadline=time.time() + 1000), "run")
        assert not list((tmp_path / "parts").rglob(".running"))
        assert not list((tmp_path / "parts").rglob("error.txt"))
        if len(tables[-1]):
            break
        spent = sum(float(path.read_text()) for path in (tmp_path / "parts").rglob(".spent"))
    assert len(tables) > 2
    assert [len(table) for table in tables[:-1]] == [0] * (len(tables) - 1)
    pd.testing.assert_frame_equal(tables[-1], whole)
    assert not list((tmp_path / "parts").rglob(".spent"))
    assert describe_origin([wanted], tmp_path / "parts")["computing_seconds"] >= round(spent, 1)


def test_trials_of_a_lower_rank_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, order = [trial(), trial(ratio=0.25), trial(seed=1)], []
    execute = runner.execute
    monkeypatch.setattr(runner, "execute", lambda job: order.append(job.stage) or execute(job))
    run_tables(wanted, manner(tmp_path, ranks=[2, 0, 1]), "run")
    assert [(stage.trial.seed, stage.trial.ratio) for stage in order if stage.phase == "finetune"] == [
        (0, 0.25), (1, 0.5), (0, 0.5)
    ]  # fmt: skip
    assert [stage.phase for stage in order[:3]] == ["dense", "pruned", "finetune"]
    assert len({stage.folder for stage in order}) == len(order) == 8


def output(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> script.Output:
    monkeypatch.setattr(sys, "argv", ["analysis", "--runs", str(folder), "--jobs", "1", *arguments])
    options = script.parse(script.build_parser("Is it so?", seeds=1, device=True, seconds=True))
    return script.Output.of("name", options)


def test_a_script_shows_what_is_finished_and_says_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [trial(), replace(trial(), ratio=0.25)]
    labels = [{"method": "first"}, {"method": "second"}]
    output(monkeypatch, tmp_path, "--seconds", "1000").run_trials(wanted[1:])
    ended = output(monkeypatch, tmp_path, "--seconds", "1")
    ended.options.deadline = time.time() - 1
    table, origin = ended.run_trials(wanted, labels, ranks=[0, 1])
    assert set(table["method"]) == {"second"}
    assert origin["trials"] == 1
    said = capsys.readouterr().out
    assert f"1 of 2 trials are finished. The same command goes on with {wanted[0].key}." in said


def test_a_script_without_a_finished_trial_ends_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = output(monkeypatch, tmp_path, "--seconds", "1")
    ended.options.deadline = time.time() - 1
    ended.write_network(*ended.run_trials([trial()]))
    with pytest.raises(SystemExit, match=r"no trial is finished, so that there is no .*name\.csv yet"):
        ended.publish(lambda table, path: None, lambda table: "")


def test_time_and_a_cluster_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("isometry.trials.arguments.is_installed", lambda: True)
    monkeypatch.setattr(sys, "argv", ["analysis", "--seconds", "5", "--cluster", "tcp://nowhere:1"])
    with pytest.raises(SystemExit):
        script.parse(script.build_parser("Is it so?", seeds=1, seconds=True))
    assert "--seconds: it ends trials on this machine, not those of --cluster" in capsys.readouterr().err
