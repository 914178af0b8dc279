"""What a trial is, and what its key tells."""

import importlib
from pathlib import Path
from typing import Any

import pytest

import isometry
from isometry import Recipe
from isometry.trials import Trial, run
from isometry.trials.digests import source_digest
from isometry.trials.stages import plan_stages
from tests.trials.examples import trial


def test_the_key_names_the_trial() -> None:
    assert trial(repair="oracle").key == "mlp-7-linear/digits/l1-0.5/oracle/lr0.01x2/s0"


def test_trials_that_differ_in_a_setting_are_told_apart(tmp_path: Path) -> None:
    tune = Recipe(0.01, 1, epoch_steps=1)
    slow: dict[str, Any] = {"delta": 0.5, "interval": 1, "ceiling": 1.0, "stabilize": 20, "zero_out": 1}
    options: dict[str, Any] = {"options": {"input_shape": (1, 8, 8)}}
    pruners = [isometry.TPP(gram=gram, batch_size=64, **slow) for gram in (0.0, 1000.0)]
    trials = [Trial("digits", "mlp-7-linear", tune, tune, pruner, 0.5, **options) for pruner in pruners]
    table = run([*trials, trials[0]], tmp_path, jobs=1, progress=False)
    assert table["trial"].nunique() == 2


def test_unknown_repairs_are_refused() -> None:
    with pytest.raises(ValueError, match="repair='magic'"):
        trial(repair="magic")


def test_a_repair_without_pruning_is_refused() -> None:
    with pytest.raises(ValueError, match="without a pruner"):
        trial(pruner=None)


def test_a_repair_of_other_networks_than_it_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conv-4.*MLPs only.*e.g."):
        Trial("digits", "conv-4", None, pruner=isometry.L1(), repair="scratch")


_MINE = """
import isometry
class Mine(isometry.L1):
    {doc}
    def importance(self, context, group):
        return {sign}super().importance(context, group)
"""


def test_an_edited_pruner_of_the_users_is_another_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folders = []
    for index, (sign, doc) in enumerate(
        [("", "x = 1"), ("", "x = 1  # a comment"), ("-", "x = 1"), ("", "y: int = 1")]
    ):
        (tmp_path / f"mine{index}.py").write_text(_MINE.format(sign=sign, doc=doc))
        pruner = importlib.import_module(f"mine{index}").Mine()
        folders.append([stage.folder for stage in plan_stages(trial(pruner=pruner))])
    dense, pruned, _ = zip(*folders, strict=True)
    assert len(set(dense)) == 1
    assert pruned[0] == pruned[1]
    assert len(set(pruned)) == 3


def test_the_source_of_a_pruner_that_was_typed_in_counts_too() -> None:
    digests = []
    for sign in ("", "-"):
        scope: dict[str, Any] = {"__name__": "typed"}
        exec(_MINE.format(sign=sign, doc="x = 1"), scope)
        digests.append(source_digest(scope["Mine"]))
    assert digests[0] != digests[1]
    assert source_digest(isometry.L1) is None
