"""Where results come from."""

import json
from pathlib import Path

import pandas as pd

from isometry.files import write_table
from isometry.trials import describe_origin, run
from tests.trials.examples import four_trials


def test_provenance_names_seeds_settings_and_seconds_and_is_written_with_the_table(tmp_path: Path) -> None:
    wanted = four_trials()
    table = run(wanted, tmp_path / "a", jobs=2)
    origin = describe_origin(wanted, tmp_path / "a")
    assert origin["seeds"] == [0, 1]
    assert origin["computing_seconds"] > 0
    assert any(found["pruner"].get("gram") == 1000 for found in origin["settings"].values())
    write_table(table, origin, tmp_path / "out" / "result")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trials"] == 4
    assert len(pd.read_csv(tmp_path / "out" / "result.csv")) == len(table)
