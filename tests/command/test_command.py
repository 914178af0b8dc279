"""The command line: what it prints and writes, and what it refuses with 2 and one line."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import isometry
from isometry.command import sources
from tests.command.workplace import SHAPE, build, ends


def test_measure_prints_writes_and_draws_what_the_library_measures(folder: Path, capsys: Any) -> None:
    words = (
        "measure mine:build --weights dense.safetensors --data x.safetensors --layers --plot jsv.png --json out.json"
    )
    status, out, err = ends(words, capsys)
    assert (status, err) == (0, "")
    written = json.loads((folder / "out.json").read_text())
    report = isometry.Report.from_dict(written["report"])
    x = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = isometry.measure(build(), sources.read_weights("x.safetensors")[0]["inputs"][x])
    assert report.mean_jsv == pytest.approx(expected.mean_jsv, rel=1e-6)
    assert f"{expected.mean_jsv:.4g}" in out
    assert "12 of the 12 test inputs of x.safetensors, drawn with seed 0" in out
    assert "features.0" in out
    assert written["software"]["torch"] == torch.__version__
    assert (folder / "jsv.png").stat().st_size > 10_000


def test_published_weights_get_their_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("isometry.data.load", lambda name, normalization=None: seen.append((name, normalization)))
    for network, weights, data in (
        ("resnet-20", "cifar10", "cifar10"),
        ("resnet-20", "mine.pt", "cifar10"),
        ("mine:build", None, "mnist"),
    ):
        sources.read_data(data, network, weights)
    assert seen == [("cifar10", isometry.data.IMAGENET), ("cifar10", None), ("mnist", None)]


def test_inputs_get_the_precision_of_the_network_and_may_be_as_many_as_it_takes(folder: Path, capsys: Any) -> None:
    save_file({"inputs": torch.randn(40, *SHAPE, dtype=torch.float64)}, "double.safetensors")
    status, out, _ = ends("measure mine:build --data double.safetensors --rtol 0.5", capsys)
    assert status == 0
    assert "up to 40 of the 40 test inputs" in out
    assert "32 inputs of shape" in out  # the first look at the interval


def test_a_reference_gives_a_verdict(folder: Path, capsys: Any) -> None:
    words = (
        "measure mine:build --weights l1.safetensors --reference dense.safetensors --data x.safetensors --json r.json"
    )
    status, out, _ = ends(words, capsys)
    assert status == 0
    report = isometry.Report.from_dict(json.loads((folder / "r.json").read_text())["report"])
    assert report.reference is not None
    assert report.verdict is not None
    assert report.ratio == pytest.approx(report.mean_jsv / report.reference.mean_jsv, rel=1e-6)
    assert "of the dense network's" in " ".join(out.split())


def test_compare_takes_files_with_a_plan_narrower_weights_and_wrapped_ones(folder: Path, capsys: Any) -> None:
    words = "compare dense=dense.safetensors l1=l1.safetensors ddp=ddp.pt --network mine:build --data x.safetensors --plot --json c.json"
    status, out, _ = ends(words, capsys)
    assert status == 0
    rows = json.loads((folder / "c.json").read_text())["networks"]
    assert [row["network"] for row in rows] == ["dense", "l1", "ddp"]
    assert rows[1]["mean_jsv"] == pytest.approx(rows[2]["mean_jsv"], rel=1e-5) != rows[0]["mean_jsv"]
    assert (folder / "compare.png").stat().st_size > 5_000
    assert "wrote compare.png" in out
    assert "the reference" in out


def test_drawn_inputs_are_as_many_as_requested_and_said_to_be_drawn(folder: Path, capsys: Any) -> None:
    status, out, _ = ends("measure mine:build --input-shape 1 8 8 --samples 1100", capsys)
    assert status == 0
    assert "1100 inputs of shape (1, 8, 8)" in out
    status, out, _ = ends("compare dense=dense.safetensors l1=l1.safetensors --network mine:build", capsys)
    assert status == 0
    assert "inputs             64 standard normal inputs of shape (1, 8, 8), as none were given" in out


def test_compare_tells_where_the_jsvs_of_weights_part(folder: Path, capsys: Any) -> None:
    words = "compare dense=dense.safetensors l1=l1.safetensors --network mine:build --data x.safetensors --layers --json c.json"
    status, out, _ = ends(words, capsys)
    assert status == 0
    found = out.split("ratio to dense from each layer on\n")[1]
    _, l1 = json.loads((folder / "c.json").read_text())["networks"]
    told = {name.removeprefix("ratio at "): value for name, value in l1.items() if name.startswith("ratio at ")}
    assert told
    for layer, value in told.items():
        assert next(line.split() for line in found.splitlines() if line.startswith(f"{layer} ")) == [
            layer,
            "1",
            f"{value:.4g}",
        ]


def test_a_folder_of_images_is_measured_and_pruned_on(folder: Path, capsys: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, name, index in itertools.product(("train", "val"), ("cat", "dog"), range(3)):
        path = folder / "images" / part / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (240, 240), (80 * index, 100, 50)).save(path)
    (folder / "pooled.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.AvgPool2d(56), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))\n"
    )
    status, out, _ = ends("measure pooled:build --data images --samples 4", capsys)
    assert status == 0
    assert "4 of the 6 test inputs of images" in out
    assert ends("prune pooled:build --data images --pruner l1 --ratio 0.5 --out a.safetensors", capsys)[0] == 0


def test_prune_writes_what_the_library_prunes_and_info_reads_it(folder: Path, capsys: Any) -> None:
    words = (
        "prune mine:build --weights dense.safetensors --input-shape 1 8 8 --pruner l1 --ratio 0.5 --out out.safetensors"
    )
    assert ends(words, capsys)[0] == 0
    found, expected = (isometry.load(name, build()) for name in ("out.safetensors", "l1.safetensors"))
    assert found.plan == expected.plan
    assert all(torch.equal(found.model.state_dict()[n], v) for n, v in expected.model.state_dict().items())
    status, out, _ = ends("info out.safetensors", capsys)
    assert status == 0
    assert "a pruned network of class ConvNet with its plan" in out
    assert "features.0: 4 of 8 units removed" in out
    assert "classifier.weight: (10, 4) float32" in out


def test_pruners_take_settings_data_and_may_be_the_users(folder: Path, capsys: Any) -> None:
    quick = "--set delta=0.5 interval=1 stabilize=12 zero_out=1 gram=10"
    status, out, err = ends(
        f"prune mine:build --data digits --pruner tpp {quick} --ratio 0.5 --layers features.0 --out a.safetensors",
        capsys,
    )
    assert (status, err) == (0, "")
    assert "features.0: 4 of 8 units removed" in out
    assert "features.3" not in out.split("left alone")[0]
    assert ends("prune mine:build --pruner mine:Last --flops 0.5 --out b.safetensors", capsys)[0] == 0


def test_info_needs_neither_matplotlib_nor_pandas(folder: Path) -> None:
    code = (
        "import sys; from isometry.command import main; main(['info']); main(['info', 'l1.safetensors']); "
        "assert not {'matplotlib', 'pandas', 'scipy', 'sklearn', 'joblib'} & set(sys.modules), sorted(sys.modules)"
    )
    root = Path(isometry.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "ISOMETRY_DATA": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"torch {torch.__version__}" in done.stdout
    assert "cpu (" in done.stdout
    assert "weights resnet-56  cifar10, not found" in done.stdout
    entry = subprocess.run(
        [sys.executable, "-m", "isometry", "frobnicate"], capture_output=True, text=True, env=environment
    )
    assert entry.returncode == 2
    assert len(entry.stderr.splitlines()) == 1


def test_help_shows_defaults_and_warnings_are_one_line(folder: Path, capsys: Any) -> None:
    status, out, _ = ends("measure --help", capsys)
    assert status == 0
    assert "of everything random (default: 0)" in " ".join(out.split())
    assert "(default: 64; with --rtol" in " ".join(out.split())
    status, _, err = ends("measure mine:warns --input-shape 1 8 8 --samples 2", capsys)
    assert (status, err) == (0, "note: two lines\n")


def test_the_analysis_is_the_command(folder: Path) -> None:
    root = Path(isometry.__file__).parents[1]
    analysis = Path(__file__).parents[2] / "analyses" / "score.py"
    words = [sys.executable, str(analysis), "a=l1.safetensors", "--network", "mine:build"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 2
    assert done.stderr.startswith("isometry compare: got a alone")
