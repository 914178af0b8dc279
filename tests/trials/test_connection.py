"""Clusters that cannot be used, in whole or in part, are named."""

import asyncio
import contextlib
import socket
import sys
import threading
from pathlib import Path

import pytest
import torch

import isometry
from isometry import L1
from isometry.trials import arguments, connection, run, script
from tests.trials.clusters import Cluster, distributed
from tests.trials.examples import trial


def test_a_lost_scheduler_is_said_and_so_are_missing_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(Cluster(tmp_path / "cluster")) as lost:
        threading.Timer(1, lost.scheduler.kill).start()
        with pytest.raises(ConnectionError, match=r"(?s)scheduler was lost.*kept: call again"):
            run([trial()], tmp_path / "runs", client=lost.client, progress=False)
    assert f"no workers at {lost.address} yet; waiting for them" in capsys.readouterr().err


def fail_to_import() -> None:
    raise ModuleNotFoundError("No module named 'isometry'")


def test_workers_of_other_versions_are_named_and_those_without_isometry_refused(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = connection.software()
    monkeypatch.setattr(connection, "software", lambda: here | {"torch": "1.0"})
    with pytest.warns(
        UserWarning,
        match=rf"run\(\) got workers of another version: torch {torch.__version__[:3]}.* instead of 1\.0 at tcp",
    ):
        run([trial(finetune=None, pruner=None)], tmp_path, client=cluster.client, progress=False)
    monkeypatch.setattr(connection, "describe_worker", fail_to_import)
    with pytest.raises(
        ValueError, match=r"run\(\) got a cluster whose worker tcp.* cannot import what it needs.*install"
    ):
        run([trial()], tmp_path, client=cluster.client, progress=False)


def test_clients_that_cannot_be_used_are_refused(tmp_path: Path, cluster: Cluster) -> None:
    arguments = ([trial()], tmp_path)
    with pytest.raises(TypeError, match=r"run\(\) got client='tcp://a:1'; it takes a distributed.Client, e.g."):
        run(*arguments, client="tcp://a:1")
    with pytest.raises(ValueError, match=r"run\(\) got jobs=2 and a client"):
        run(*arguments, jobs=2, client=cluster.client)
    with pytest.raises(ValueError, match=r"sweep\(\) got jobs=2 and a client"):
        isometry.sweep("mlp-7-linear", {"L1": L1()}, [0.5], "digits", jobs=2, client=cluster.client)
    with distributed.Client(cluster.address, set_as_default=False) as closed:
        pass
    with pytest.raises(ValueError, match=r"run\(\) got a client that is closed; it takes one that is connected"):
        run(*arguments, client=closed)

    async def refuse() -> None:
        async with distributed.Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(TypeError, match=r"run\(\) got a client that is asynchronous"):
                run(*arguments, client=client)

    asyncio.run(refuse())


def test_without_dask_clients_and_addresses_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (connection, arguments):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    with pytest.raises(
        TypeError, match=r"run\(\) got client=1, but Dask is not installed.*pip install 'isometry\[cluster\]'"
    ):
        run([trial()], tmp_path, client=1)
    monkeypatch.setattr(sys, "argv", ["analysis", "--cluster", "tcp://a:1"])
    with pytest.raises(SystemExit):
        script.parse(script.build_parser("Is it so?", seeds=1))
    assert "--cluster: got tcp://a:1, but Dask is not installed; pip install" in capsys.readouterr().err


def test_an_analysis_takes_jobs_or_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", "--cluster", "tcp://a:1", "--jobs", "2"])
    with pytest.raises(SystemExit):
        script.parse(script.build_parser("Is it so?", seeds=1))
    assert "argument --jobs: not allowed with argument --cluster" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["analysis", "--cluster", "tcp://a:1", "--device", "cuda"])
    assert script.parse(script.build_parser("Is it so?", seeds=1, device=True)).device == "cuda"  # of the workers


def test_an_address_where_nobody_answers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(connection, "_TIMEOUT", 0.5)
    for address in (f"tcp://127.0.0.1:{port}", "nonsense"):
        monkeypatch.setattr(sys, "argv", ["analysis", "--cluster", address, "--runs", str(tmp_path / "a")])
        output = script.Output.of("name", script.parse(script.build_parser("Is it so?", seeds=1)))
        with pytest.raises(SystemExit, match=rf"no Dask scheduler answered at {address} within 0\.5 s.*dask scheduler"):
            output.run_trials([trial()])
