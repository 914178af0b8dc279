"""What a restart came to."""

from pathlib import Path

from isometry.trials.faults.restarts import REFUSED, SAME, WRONG, Sweep


def test_a_restart_is_the_same_wrong_or_refused(tmp_path: Path) -> None:
    sweep = Sweep(1, {"input_shape": (1, 8, 8), "widths": (20, 20)}, tmp_path)
    with sweep.folder() as folder:
        assert sweep.restart(folder) == SAME
        sweep.table.loc[0, "accuracy"] = 0.5
        assert sweep.restart(folder) == WRONG
    with sweep.folder() as folder:
        folder.write_text("a file")
        assert sweep.restart(folder) == REFUSED
        folder.unlink()
