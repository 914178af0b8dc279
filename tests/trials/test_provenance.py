"""Where results come from."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from isometry.files import write_table
from isometry.trials import describe_origin, run
from isometry.trials.provenance import is_finished
from tests.trials.examples import four_trials


def test_provenance_names_seeds_settings_and_seconds_and_is_written_with_the_table(tmp_path: Path) -> None:
    wanted = four_trials()
    table = run(wanted, tmp_path / "a", jobs=2)
    origin = describe_origin(wanted, tmp_path / "a")
    assert [is_finished(trial, tmp_path / "a") for trial in wanted] == [True] * 4
    assert not is_finished(replace(wanted[0], ratio=0.75), tmp_path / "a")
    assert origin["seeds"] == [0, 1]
    assert origin["computing_seconds"] > 0
    assert any(found["pruner"].get("gram") == 1000 for found in origin["settings"].values())
    write_table(table, origin, tmp_path / "out" / "result")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trials"] == 4
    assert len(pd.read_csv(tmp_path / "out" / "result.csv")) == len(table)
