"""The stages of a trial."""

from pathlib import Path

import pytest

from isometry.trials import run
from tests.trials.examples import trial


def test_a_repaired_trial_has_every_stage_and_the_repair_is_exact(tmp_path: Path) -> None:
    wanted = trial(repair="oracle")
    table = run([wanted], tmp_path, jobs=1)
    assert list(table[table["trial"] == wanted.key]["phase"]) == ["dense", "pruned", "repaired", *["finetune"] * 2]
    repaired = table[(table["phase"] == "repaired") & (table["repair"] == "oracle")]
    assert repaired["mean_jsv"].iloc[0] == pytest.approx(1, abs=1e-5)
