"""Measuring in the processes of a torch.distributed group."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import isometry

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()) or os.name != "posix", reason="needs gloo"
)


def network(outputs: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, outputs))


def inputs(samples: int = 37) -> torch.Tensor:
    return torch.randn(samples, 20, generator=torch.Generator().manual_seed(1))


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


class MemoryForFour(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4 and (not distributed.is_initialized() or distributed.get_rank() == 1):
            raise torch.OutOfMemoryError("out of memory: more than 4 samples")
        return x


def negative_at_the_end() -> torch.Tensor:
    x = inputs().abs() + 1
    x[-1] = -1  # in the last rank's share only
    return x


def few(samples: int, *, apart: bool = False, **options: Any) -> isometry.measurement.Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 250), nn.ReLU(), nn.Linear(250, 250), nn.ReLU(), nn.Linear(250, 200))
    x = torch.randn(samples, 200)
    return isometry.measure(model, iter(x.split(1)) if apart else x, method="krylov", **options)


def sharded() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch 2.5
        from torch.distributed._composable.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


class Gated(nn.Module):
    """x -> W g(x), g closing all but two units where the first input is negative: Jacobians of rank 150 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(150, 150, bias=False), nn.Linear(150, 150, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = (torch.arange(150) < 2).to(x)
        return self.last(torch.where(x[:, :1] > 0, torch.ones_like(few), few) * self.first(x))


def of_different_rank() -> isometry.measurement.Report:
    torch.manual_seed(0)
    x = torch.randn(2, 150)
    x[:, 0] = torch.tensor([1.0, -1.0])
    return isometry.measure(Gated(), x, method="krylov", budget=301)


MEASUREMENTS: dict[str, Callable[[], isometry.measurement.Report]] = {
    "exact": lambda: isometry.measure(network(), inputs()),
    "layers": lambda: isometry.measure(network(), inputs(), layers=True),
    "loader": lambda: isometry.measure(network(), DataLoader(TensorDataset(inputs()), batch_size=5)),
    "one sample": lambda: isometry.measure(network(), inputs(1)),
    "krylov": lambda: isometry.measure(network(60), inputs(), method="krylov"),
    "krylov, three samples": lambda: few(3),
    "krylov, one sample": lambda: few(1),
    "krylov, three samples, budget": lambda: few(3, budget=250),
    "krylov, three samples one by one": lambda: few(3, apart=True),
    "krylov, samples of different rank": of_different_rank,
    "rtol": lambda: isometry.measure(network(), inputs(2000), rtol=0.02),
    "krylov to rtol": lambda: isometry.measure(network(200), inputs(500), method="krylov", rtol=0.02),
    "budget": lambda: isometry.measure(network(200), inputs(500), budget=2000),
    "little memory": lambda: isometry.measure(nn.Sequential(network(), MemoryForFour()), inputs()),
}


def measured() -> dict[str, Any]:
    return {name: measure().to_dict() for name, measure in MEASUREMENTS.items()}


def refused(measure: Callable[[], Any]) -> str:
    try:
        measure()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def refusals() -> dict[str, str]:
    rank = distributed.get_rank()
    dataset = TensorDataset(inputs())
    own = DataLoader(dataset, batch_size=5, sampler=DistributedSampler(dataset, shuffle=False))
    return {
        "inputs": refused(lambda: isometry.measure(network(), own)),
        "weights": refused(lambda: isometry.measure(network(seed=rank), inputs())),
        "options": refused(lambda: isometry.measure(network(), inputs(), rtol=0.1 + 0.1 * rank)),
        "numbers": refused(lambda: isometry.measure(nn.Sequential(Root(), network()), negative_at_the_end())),
        "sharded": refused(lambda: isometry.measure(sharded(), inputs())),
        "a rank": refused(lambda: isometry.measure(network(), inputs() if rank else inputs()[:, :19])),
    }


def alone() -> float | None:
    return isometry.measure(network(), inputs(), distributed=False).mean_jsv if distributed.get_rank() == 0 else None


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    content = {
        "measured": measured(),
        "refused": refusals(),
        "alone": alone(),
        "after": refused(lambda: MEASUREMENTS["exact"]()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(content))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        __file__,
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@needs_gloo
def test_every_rank_returns_the_same_report_and_that_of_one_process(ranks: list[dict[str, Any]]) -> None:
    first, second = (content["measured"] for content in ranks)
    assert first == second
    for name, report in measured().items():
        shared = isometry.measurement.Report.from_dict(first[name])
        single = isometry.measurement.Report.from_dict(report)
        assert len(shared.spectrum) == len(single.spectrum), name
        torch.testing.assert_close(shared.sample_means, single.sample_means, rtol=1e-5, atol=0)
        assert shared.interval == pytest.approx(single.interval, rel=1e-5, nan_ok=True), name
        assert shared.estimation_error == pytest.approx(single.estimation_error, rel=1e-5, abs=1e-9), name
        assert shared.cost.products == single.cost.products, name
        assert "samples split over 2 ranks" in shared.notes
        assert not any("ranks" in note for note in single.notes)
        if single.layers is not None:
            assert shared.layers is not None
            assert shared.layers["mean_jsv"].tolist() == pytest.approx(single.layers["mean_jsv"].tolist(), rel=1e-5)


@needs_gloo
def test_what_one_rank_refuses_all_refuse_by_its_reason(ranks: list[dict[str, Any]]) -> None:
    first, second = (content["refused"] for content in ranks)
    assert first == second
    assert "without a DistributedSampler" in first["inputs"]
    assert "networks of different weights" in first["weights"]
    assert "got different options" in first["options"]
    assert "NaN or infinite" in first["numbers"]
    assert "got different inputs" in first["a rank"]
    assert "parameters are sharded over processes (0.weight, 0.bias and 4 more)" in first["sharded"]


@needs_gloo
def test_one_rank_measures_alone_where_it_is_told_to(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["alone"] == pytest.approx(isometry.measure(network(), inputs()).mean_jsv, rel=1e-6)
    assert ranks[1]["alone"] is None
    assert all(content["after"] == "nothing was refused" for content in ranks)


def test_one_process_meets_nobody() -> None:
    alone = isometry.measurement.ranks.Ranks.present()
    assert (alone.size, alone.rank) == (1, 0)
    assert alone.gather(lambda: 3, samples=5) == [3]
    assert alone.all_agree(True)
    assert math.isclose(alone.largest(2.5), 2.5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
