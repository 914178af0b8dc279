"""Sweeps on the workers of a Dask cluster that share no files: the same table, whatever happens to workers and client."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import L1, TPP, Recipe
from isometry.trials import run, script
from isometry.trials.execution import acquire_lock
from isometry.trials.manner import Manner
from isometry.trials.runner import run_tables
from isometry.trials.stages import plan_stages
from tests.trials import interrupted
from tests.trials.clusters import ROOT, Cluster, distributed, wait_until
from tests.trials.examples import four_trials, trial


@dataclass(frozen=True)
class Marked(L1):
    """Does something once, where the file `marker` is absent, and makes it; with `always` every time."""

    marker: str = ""
    always: bool = False

    def importance(self, context: object, group: Any) -> Tensor:
        if not Path(self.marker).exists() or self.always:
            Path(self.marker).touch()
            self.act()
        return super().importance(context, group)  # type: ignore[arg-type]

    def act(self) -> None:
        raise RuntimeError("no importance today")


class Suicidal(Marked):
    def act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Marked):
    def act(self) -> None:
        time.sleep(5)


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_gives_the_table_of_one_process_and_leaves_nothing_on_its_workers(
    tmp_path: Path, cluster: Cluster
) -> None:
    cluster.supply(2)
    table = run(four_trials(), tmp_path / "cluster", client=cluster.client, keep="weights", progress=False)
    local = run(four_trials(), tmp_path / "local", jobs=1, keep="weights", progress=False)
    pd.testing.assert_frame_equal(table, local, check_exact=True)
    stamps = files_of(tmp_path / "cluster")
    pd.testing.assert_frame_equal(run(four_trials(), tmp_path / "cluster", jobs=1, keep="weights"), local)
    assert files_of(tmp_path / "cluster") == stamps
    names = {path.relative_to(tmp_path / "local") for path in files_of(tmp_path / "local")}
    assert {path.relative_to(tmp_path / "cluster") for path in stamps} == names
    assert not list(cluster.folder.rglob("worker-*/**/*.safetensors"))


def test_a_stage_whose_worker_was_killed_runs_on_another(tmp_path: Path, cluster: Cluster) -> None:
    cluster.supply(2)
    wanted = [trial(pruner=Suicidal(marker=str(tmp_path / "marker"))), trial()]
    table = run(wanted, tmp_path / "cluster", client=cluster.client, progress=False)
    assert sum(worker.poll() is None for worker in cluster.workers) == 1
    pd.testing.assert_frame_equal(table, run(wanted, tmp_path / "local", jobs=1, progress=False), check_exact=True)


def test_trials_of_a_lower_rank_come_first_on_a_cluster_too(tmp_path: Path, cluster: Cluster) -> None:
    for worker in [worker for worker in cluster.workers if worker.poll() is None][1:]:
        worker.kill()
    wait_until(lambda: len(cluster.client.scheduler_info()["workers"]) == 1)
    grown = TPP(delta=0.1, interval=1, stabilize=30, zero_out=5)
    wanted = [trial(pruner=grown, finetune=None), *(trial(ratio=each / 10, finetune=None) for each in range(1, 7))]
    manner = Manner(tmp_path, progress=False, client=cluster.client, ranks=[1, 0, 0, 0, 0, 0, 0])
    run_tables(wanted, manner, "run")
    last = max(tmp_path.rglob("done.json"), key=lambda path: path.stat().st_mtime_ns)
    assert "tpp" in str(last)


def test_a_sweep_of_ones_own_network_and_tensors_gives_the_same_table(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(300, 6)
    arguments = ({"L1": L1(), "L1 + repair": L1()}, [0.5], (x, (x.sum(1) > 0).long()))
    settings = {"finetune": Recipe(0.01, 1, 32), "seeds": [3], "progress": False}
    factory = lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))  # noqa: E731
    for network in (factory, factory()):
        local = isometry.sweep(network, *arguments, **settings)
        table = isometry.sweep(network, *arguments, **settings, client=cluster.client)
        pd.testing.assert_frame_equal(table, local, check_exact=True)


@pytest.mark.slow
def test_a_stage_that_kills_every_worker_fails_and_the_others_go_on(tmp_path: Path, cluster: Cluster) -> None:
    wanted = [trial(pruner=Suicidal(marker=str(tmp_path / "marker"), always=True)), trial(seed=1)]
    done = threading.Event()
    restarter = threading.Thread(target=lambda: [cluster.restart(2) for _ in iter(lambda: done.wait(0.5), True)])
    restarter.start()
    try:
        with pytest.warns(UserWarning, match=r"finished 1 of 2.*suicidal-0\.5.*its workers were killed.*error\.txt"):
            table = run(wanted, tmp_path, client=cluster.client, progress=False)
    finally:
        done.set()
        restarter.join()
    assert list(table["error"].notna()) == [False, True, False, False, False, False]


def test_a_killed_client_loses_nothing_that_was_finished(tmp_path: Path, cluster: Cluster) -> None:
    command = [sys.executable, "-m", "tests.trials.interrupted", str(tmp_path / "killed"), cluster.address]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        wait_until(lambda: list(tmp_path.rglob("done.json")))
        process.kill()
    stamps = {path: stamp for path, stamp in files_of(tmp_path / "killed").items() if path.name == "done.json"}
    table = run(interrupted.TRIALS, tmp_path / "killed", client=cluster.client, progress=False)
    assert stamps.items() <= files_of(tmp_path / "killed").items()
    local = run(interrupted.TRIALS, tmp_path / "local", jobs=1, progress=False)
    pd.testing.assert_frame_equal(table, local, check_exact=True)


def test_an_interrupt_cancels_what_is_under_way_and_keeps_what_is_finished(tmp_path: Path, cluster: Cluster) -> None:
    def interrupt() -> None:
        wait_until(lambda: list(tmp_path.rglob("dense/*/done.json")))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    wanted = [trial(pruner=Slow(marker=str(tmp_path / "marker"), always=True))]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let jobs in the background ignore it
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path, client=cluster.client, progress=False)
    signal.signal(signal.SIGINT, handler)
    wait_until(lambda: not cluster.client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))
    assert len(list(tmp_path.rglob("done.json"))) == 1
    for stage in plan_stages(wanted[0]):
        acquire_lock(tmp_path / stage.folder, timeout=0).release()


def test_stages_that_dask_cancels_run_again(tmp_path: Path, cluster: Cluster) -> None:
    def cancel() -> None:
        wait_until(lambda: (tmp_path / "marker").exists())
        cluster.client.cancel([key for key in cluster.client.futures if "pruned" in str(key)], force=True)

    wanted = [trial(pruner=Slow(marker=str(tmp_path / "marker")))]
    other = threading.Thread(target=cancel)
    other.start()
    table = run(wanted, tmp_path / "cluster", client=cluster.client, progress=False)
    other.join()
    pd.testing.assert_frame_equal(table, run(wanted, tmp_path / "local", jobs=1, progress=False), check_exact=True)


def test_a_failing_stage_is_recorded_here_and_tried_again_by_the_next_call(tmp_path: Path, cluster: Cluster) -> None:
    wanted = [trial(pruner=Marked(marker=str(tmp_path / "marker"))), trial()]
    with pytest.warns(UserWarning, match=r"finished 1 of 2 trials.*marked-0\.5.*no importance today"):
        table = run(wanted, tmp_path / "runs", client=cluster.client, progress=False)
    (file,) = (tmp_path / "runs").rglob("error.txt")
    assert f"RuntimeError: no importance today (see {file})" in table["error"].iloc[1]
    assert "Traceback" in file.read_text()
    assert "in process " in file.read_text()
    table = run(wanted, tmp_path / "runs", client=cluster.client, progress=False)
    assert "error" not in table
    assert not file.exists()


def test_a_module_that_workers_lack_is_named(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pruners.py").write_text("import isometry\nclass Mine(isometry.L1):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_pruners

    with pytest.warns(
        UserWarning, match=r"No module named 'my_pruners', which .* client.upload_file\('my_pruners.py'\)"
    ):
        run([trial(pruner=my_pruners.Mine())], tmp_path / "runs", client=cluster.client, progress=False)
    cluster.client.upload_file(str(tmp_path / "my_pruners.py"))
    assert len(run([trial(pruner=my_pruners.Mine())], tmp_path / "runs", client=cluster.client, progress=False)) == 4


def test_a_run_on_a_cluster_waits_for_what_another_run_computes(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = trial(finetune=None, pruner=None)
    lock = acquire_lock(tmp_path / plan_stages(wanted)[0].folder)
    tables: list[pd.DataFrame] = []
    other = threading.Thread(
        target=lambda: tables.append(run([wanted], tmp_path, client=cluster.client, progress=False))
    )
    other.start()
    time.sleep(0.5)
    assert not tables
    lock.release()
    tables.append(run([wanted], tmp_path, jobs=1, progress=False))
    other.join()
    pd.testing.assert_frame_equal(*tables)
    assert "waiting for another run that computes" in capsys.readouterr().err


def test_an_analysis_runs_on_a_cluster(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", "--cluster", cluster.address, "--runs", str(tmp_path / "a")])
    output = script.Output.of("name", script.parse(script.build_parser("Is it so?", seeds=1)))
    table, origin = output.run_trials([trial()])
    pd.testing.assert_frame_equal(table, run([trial()], tmp_path / "b", jobs=1, progress=False), check_exact=True)
    assert origin["trials"] == 1


def test_threads_of_one_worker_take_turns_and_that_is_said(tmp_path: Path) -> None:
    settings = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
    wanted = [trial(finetune=None, seed=seed) for seed in range(2)]
    local = run(wanted, tmp_path / "local", jobs=1, progress=False)
    with (
        distributed.LocalCluster(**settings) as threads,
        distributed.Client(threads) as client,
        pytest.warns(UserWarning, match=r"workers of several threads, .*--nthreads 1"),
    ):
        table = run(wanted, tmp_path / "cluster", client=client, progress=False)
    pd.testing.assert_frame_equal(table, local, check_exact=True)
