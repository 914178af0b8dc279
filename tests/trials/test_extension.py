"""Tables that grow: nothing that they have is run again, nothing of it is lost."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from isometry import Recipe
from isometry.files import read_table
from isometry.trials import run, runner, script, stages
from isometry.trials.extension import join_origins, read_written
from tests.trials.examples import trial


def output(monkeypatch: pytest.MonkeyPatch, folder: Path, runs: str, *arguments: str) -> script.Output:
    words = ["analysis", "--out", str(folder), "--runs", str(folder / runs), "--jobs", "1", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    return script.Output.of("name", script.parse(script.build_parser("Is it so?", seeds=1, extend=True)))


def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that will hold the folders of the stages that are executed."""
    executed, execute = [], runner.execute
    monkeypatch.setattr(runner, "execute", lambda job: executed.append(job.stage.folder) or execute(job))
    return executed


def test_only_what_the_table_lacks_is_run_and_the_whole_is_as_if_run_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [trial(), trial(seed=1), trial(ratio=0.25)]
    first = output(monkeypatch, tmp_path, "first")
    first.write(*first.run_trials(wanted[:2]))
    capsys.readouterr()
    executed = watch(monkeypatch)
    second = output(monkeypatch, tmp_path, "second", "--extend")
    second.write(*second.run_trials(wanted))
    assert "2 of 3 trials are in " in capsys.readouterr().out
    assert not [folder for folder in executed if "l1-0.5" in folder or "/s1-" in folder]
    table, origin = second.read()
    whole = output(monkeypatch, tmp_path / "whole", "third")
    whole.write(*whole.run_trials(wanted))
    pd.testing.assert_frame_equal(table, whole.read()[0])
    assert {name: origin[name] for name in ("seeds", "trials", "settings")} == {
        name: whole.read()[1][name] for name in ("seeds", "trials", "settings")
    }
    executed.clear()
    again = output(monkeypatch, tmp_path, "second", "--extend")
    again.write(*again.run_trials(wanted))
    assert not executed
    pd.testing.assert_frame_equal(again.read()[0], table)
    assert again.read()[1] == origin


def test_a_trial_under_another_label_is_run_and_one_of_other_settings_is_not_mixed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    brief, longer = trial(), replace(trial(), finetune=Recipe(0.01, 2, 32, epoch_steps=3))
    assert brief.key == longer.key
    first = output(monkeypatch, tmp_path, "runs")
    first.write(*first.run_trials([brief], [{"budget": 2}]))
    second = output(monkeypatch, tmp_path, "runs", "--extend")
    second.write(*second.run_trials([brief, longer], [{"budget": 2}, {"budget": 3}]))
    table = second.read()[0]
    assert table.groupby("budget")["trial"].nunique().to_dict() == {2: 1, 3: 1}
    assert table["trial"].nunique() == 2  # though their keys are the same
    pd.testing.assert_frame_equal(
        table[table["budget"] == 3].drop(columns=["trial", "budget"]).reset_index(drop=True),
        run([longer], tmp_path / "runs", progress=False).drop(columns="trial"),
        check_exact=False,
        rtol=1e-5,
        check_dtype=False,
    )
    third = output(monkeypatch, tmp_path, "runs", "--extend")
    assert len(third.run_trials([longer], [{"budget": 3}])[0]) == len(table)
    with pytest.raises(
        SystemExit, match=r"--extend got .*name\.csv: its trial mlp-7.* was run with other set.* \(finetune\)"
    ):
        third.run_trials([longer], [{"budget": 2}])


def test_tables_of_several_networks_grow_network_by_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlp, other = trial(finetune=None), trial(network="mlp-7-relu", finetune=None)
    for arguments, wanted in ([], [mlp]), (["--extend"], [other]), (["--extend"], [replace(mlp, seed=1)]):
        each = output(monkeypatch, tmp_path, "runs", *arguments)
        each.write_network(*each.run_trials(wanted))
    table, origin = each.read()
    assert table.groupby("network")["seed"].unique().map(list).to_dict() == {"mlp-7-linear": [0, 1], "mlp-7-relu": [0]}
    assert {name: each["trials"] for name, each in origin["networks"].items()} == {"mlp-7-linear": 2, "mlp-7-relu": 1}
    assert read_written(tmp_path / "name.csv", "vgg-16") is None


def test_a_table_without_provenance_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "name.csv").write_text("trial\na\n")
    with pytest.raises(SystemExit, match=r"name\.json, which tells its trials' settings, is not beside it"):
        output(monkeypatch, tmp_path, "runs", "--extend").run_trials([trial()])
    assert read_table(tmp_path / "name.csv")["trial"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("option", "message"), [("--quick", "--quick runs trials of its own"), ("--redraw", "--redraw runs no trials")]
)
def test_what_runs_none_of_the_trials_does_not_extend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        output(monkeypatch, tmp_path, "runs", "--extend", option)
    assert f"--extend: {message}; leave out one or the other" in capsys.readouterr().err


def test_provenances_add_up() -> None:
    first = {
        "software": [{"a": 1}],
        "seeds": [1],
        "trials": 2,
        "computing_seconds": 0.1,
        "machine": "x",
        "settings": {"k": 1},
    }
    second = {
        "software": [{"a": 1}, {"a": 2}], "seeds": [0, 1], "trials": 1, "computing_seconds": 0.2, "machine": "y",
        "settings": {"l": 2}, "devices": ["gpu"],
    }  # fmt: skip
    assert join_origins(first, second) == {
        "software": [{"a": 1}, {"a": 2}], "seeds": [0, 1], "trials": 3, "computing_seconds": 0.3, "machine": "x; y",
        "settings": {"k": 1, "l": 2}, "devices": ["gpu"],
    }  # fmt: skip
    assert join_origins(first, first)["machine"] == "x"
    assert join_origins(join_origins(first, second), first)["machine"] == "x; y"
    json.dumps(join_origins(first, second))


@pytest.mark.parametrize(
    ("other", "fixed", "message"),
    [
        ({"dataset": "mnist"}, ("dataset",), "its rows have the dataset digits, this command mnist"),
        ({"ratio": 0.25}, ("dataset", "ratio"), r"its rows have the ratio 0\.5, this command 0\.25"),
    ],
)
def test_trials_of_another_data_set_or_of_what_else_is_fixed_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: dict, fixed: tuple[str, ...], message: str
) -> None:
    first = output(monkeypatch, tmp_path, "runs")
    first.write(*first.run_trials([trial()]))
    with pytest.raises(SystemExit, match=message):
        output(monkeypatch, tmp_path, "runs", "--extend").run_trials([trial(**other)], fixed=fixed)


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted, fine_tune = [trial(finetune=None), trial()], stages.FineTuning.execute

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory today")

    monkeypatch.setattr(stages.FineTuning, "execute", fail)
    first = output(monkeypatch, tmp_path, "runs")
    with pytest.warns(UserWarning, match="no memory today"):
        first.write(*first.run_trials(wanted))
    assert first.read()[0]["error"].notna().any()
    monkeypatch.setattr(stages.FineTuning, "execute", fine_tune)
    second = output(monkeypatch, tmp_path, "runs", "--extend")
    second.write(*second.run_trials(wanted))
    whole = output(monkeypatch, tmp_path / "whole", "runs")
    whole.write(*whole.run_trials(wanted))
    table, origin = second.read()
    pd.testing.assert_frame_equal(table, whole.read()[0])
    assert (origin["trials"], origin.get("failed")) == (2, None)
    assert set(origin["settings"]) == set(whole.read()[1]["settings"])


def test_a_folder_without_the_table_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output(monkeypatch, tmp_path, "runs", "--extend").run_trials([trial(finetune=None)])
    assert (
        f"--extend found no trials of mlp-7-linear in {tmp_path / 'name.csv'}; all 1 are run" in capsys.readouterr().out
    )
