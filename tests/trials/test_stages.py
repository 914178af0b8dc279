"""The stages of a trial, and which of them trials share."""

from pathlib import Path

import pytest

from isometry import L1, Magnitude, RecedingBN, Slimming
from isometry.trials import Trial, run
from isometry.trials.stages import DenseTraining, FineTuning, Pruning, SparseTraining, plan_stages
from tests.trials.examples import trial


def test_a_repaired_trial_has_every_stage_and_the_repair_is_exact(tmp_path: Path) -> None:
    wanted = trial(repair="oracle")
    table = run([wanted], tmp_path, jobs=1)
    assert list(table[table["trial"] == wanted.key]["phase"]) == ["dense", "pruned", "repaired", *["finetune"] * 2]
    repaired = table[(table["phase"] == "repaired") & (table["repair"] == "oracle")]
    assert repaired["mean_jsv"].iloc[0] == pytest.approx(1, abs=1e-5)


def kinds(wanted: Trial) -> list[type]:
    return [type(stage) for stage in plan_stages(wanted)]


def test_a_trial_has_the_stages_that_its_pruner_needs() -> None:
    assert kinds(trial()) == [DenseTraining, Pruning, FineTuning]
    assert kinds(trial(finetune=None)) == [DenseTraining, Pruning]
    assert kinds(trial(finetune=None, pruner=None)) == [DenseTraining]
    assert kinds(trial(pruner=Slimming(epochs=2))) == [DenseTraining, SparseTraining, Pruning, FineTuning]
    assert kinds(trial(pruner=Slimming(epochs=0))) == [DenseTraining, Pruning, FineTuning]


def test_ratios_share_the_training_before_selection_and_repairs_the_pruning() -> None:
    sparse = [plan_stages(trial(pruner=RecedingBN(epochs=2), ratio=ratio)) for ratio in (0.3, 0.5)]
    assert [a.folder == b.folder for a, b in zip(*sparse, strict=True)] == [True, True, False, False]
    repaired = [plan_stages(trial(repair=repair)) for repair in (None, "oracle")]
    assert [a.folder == b.folder for a, b in zip(*repaired, strict=True)] == [True, True, False]


def test_every_setting_that_changes_a_dense_row_is_in_its_folder() -> None:
    plain, low = plan_stages(trial())[0], plan_stages(trial(autocast=True))[0]
    assert plain.folder != low.folder  # evaluation runs in bfloat16
    assert plain.folder == plan_stages(trial(pruner=L1(scope="global"), ratio=0.9))[0].folder


def test_a_reconstructed_trial_is_compared_with_its_dense_network(tmp_path: Path) -> None:
    loss = run([trial(repair="reconstruct", finetune=None)], tmp_path, jobs=1).set_index("phase")["loss"]
    assert loss["dense"] < loss["repaired"] < loss["pruned"]


def test_unstructured_pruning_is_a_trial_like_any_other(tmp_path: Path) -> None:
    table = run([trial(pruner=Magnitude(), ratio=0.8, repair=repair) for repair in (None, "oracle")], tmp_path, jobs=1)
    pruned, repaired = (table[table["phase"] == phase].iloc[0] for phase in ("pruned", "repaired"))
    assert pruned["realised_ratio"] == pytest.approx(0.8, abs=2e-3)
    assert repaired["mean_jsv"] == pytest.approx(1, abs=1e-4) != pytest.approx(pruned["mean_jsv"], rel=0.5)
    assert len(table[table["phase"] == "finetune"]) == 4
