"""On another device the numbers are the same, and nothing mixes devices; a fake CUDA where there is none."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import isometry
from isometry import Recipe, Report, measure, surgery
from isometry.data import CropFlip, Data
from isometry.pruners import Pruner
from isometry.training.capture import capture_steps
from isometry.trials import Trial, describe_origin, run
from isometry.trials.manner import Manner
from isometry.trials.runner import run_tables
from tests.architectures import WORKS
from tests.fake_cuda import fake_cuda


def residual() -> nn.Module:
    return isometry.networks.build("resnet-20", seed=0, input_shape=(1, 8, 8))


def images() -> Tensor:
    return torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real device refuses by itself")
def test_the_fake_device_refuses_what_the_real_one_refuses() -> None:
    with fake_cuda():
        there = torch.ones(3, device="cuda")
        assert there.is_cuda
        assert (2 * there + torch.tensor(1.0))[torch.tensor([0])].device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            nn.Linear(3, 2)(there)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[there.long()]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        layer = nn.Linear(3, 2).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.is_cuda
        assert not layer.cpu().weight.is_cuda


DENSE = {
    "wide": nn.Sequential(nn.Flatten(), nn.Linear(64, 150), nn.ReLU(), nn.Linear(150, 140)),
    "cut": nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 60)),
}


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (residual, {}),
        (residual, {"layers": True}),
        (residual, {"method": "krylov"}),
        (residual, {"rtol": 0.5}),
        (residual, {"budget": 60}),
        (residual, {"at": "layer2.0"}),
        (residual, {"dtype": torch.float64}),
        (lambda: DENSE["wide"], {"budget": 3000}),
        (lambda: DENSE["wide"], {"method": "krylov"}),
        (lambda: DENSE["cut"], {}),
    ],
    ids=[
        "plain",
        "layers",
        "krylov",
        "rtol",
        "budget",
        "at",
        "float64",
        "wide-budget",
        "wide-krylov",
        "narrow-cut",
    ],
)
def test_a_measurement_is_the_same_there(
    cuda: torch.device, net: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model = net()
    here = isometry.measure(model, images(), progress=False, **options)
    there = isometry.measure(copy.deepcopy(model).to(cuda), images(), progress=False, **options)
    assert there.mean_jsv == pytest.approx(here.mean_jsv, rel=1e-3)
    assert there.spectrum.values.device.type == "cpu"
    assert Report.from_dict(there.to_dict()).mean_jsv == there.mean_jsv
    isometry.plots.spectrum(there)


@pytest.mark.parametrize("name", WORKS)
def test_models_on_cuda_agree_with_the_cpu(cuda: torch.device, name: str) -> None:
    build, shape = WORKS[name]
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(4, *shape)
    expected = measure(net, x).mean_jsv
    report = measure(copy.deepcopy(net).to(cuda), x)
    assert report.mean_jsv == pytest.approx(expected, rel=1e-3)


def test_networks_compare_the_same_there(cuda: torch.device) -> None:
    net = residual()
    pruned = isometry.prune(net, isometry.L1(), 0.5, inputs=images()).model
    here = isometry.compare({"dense": net, "L1": pruned}, images(), oracle=True, progress=False)
    moved = {"dense": copy.deepcopy(net).to(cuda), "L1": copy.deepcopy(pruned).to(cuda)}
    there = isometry.compare(moved, images(), oracle=True, progress=False)
    assert there["mean_jsv"].to_numpy() == pytest.approx(here["mean_jsv"].to_numpy(), rel=1e-3)


SHORT: dict[str, Any] = {"batch_size": 16}


GROWTH: dict[str, Any] = {"delta": 0.5, "interval": 1, "ceiling": 1.0, "stabilize": 2, **SHORT}


SPARSE: dict[str, Any] = {"epochs": 1, "epoch_steps": 2, **SHORT}


@pytest.mark.parametrize(
    "pruner",
    [
        isometry.Random(),
        isometry.L1(),
        isometry.L1(scope="global"),
        isometry.GReg(**GROWTH),
        isometry.GReg2(**GROWTH, pick_delta=2e-3),
        isometry.TPP(**{**GROWTH, "stabilize": 20, "zero_out": 1}),
        isometry.Slimming(**SPARSE),
        isometry.Polarization(**SPARSE),
        isometry.RecedingBN(**SPARSE),
    ],
    ids=lambda pruner: f"{type(pruner).__name__}-{pruner.scope}",
)
def test_pruners_choose_the_same_there(cuda: torch.device, digits: Data, pruner: Pruner, tmp_path: Path) -> None:
    net = residual()
    net = isometry.convert(net) if isinstance(pruner, isometry.RecedingBN) else net
    here = isometry.prune(net, pruner, 0.5, data=digits, progress=False)
    there = isometry.prune(copy.deepcopy(net).to(cuda), pruner, 0.5, data=digits, progress=False)
    assert all(p.is_cuda for p in there.model.parameters())
    if not (torch.cuda.is_available() and pruner.trains):  # another processor trains to other weights
        assert there.plan.removed == here.plan.removed
    isometry.save(there, tmp_path / "pruned.safetensors")
    loaded = isometry.load(tmp_path / "pruned.safetensors", copy.deepcopy(net).to(cuda)).model
    saved = there.model.state_dict()
    assert all(t.is_cuda and torch.equal(t, saved[name]) for name, t in loaded.state_dict().items())


def test_training_resumes_there_bit_for_bit(cuda: torch.device, digits: Data, tmp_path: Path) -> None:
    data = dataclasses.replace(digits, augment=CropFlip(padding=1))
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2, "epoch_steps": 3, "regularizer": isometry.KernOrth()}
    whole, interrupted = residual().to(cuda), residual().to(cuda)
    list(isometry.train(whole, data, **options))
    path = tmp_path / "training.safetensors"
    for epoch in isometry.train(interrupted, data, **options, checkpoint=path):
        if epoch.number == 2:  # the first one is written, this one is not
            break
    resumed = residual().to(cuda)
    assert [epoch.number for epoch in isometry.train(resumed, data, **options, checkpoint=path)] == [2]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert one.is_cuda
        assert torch.equal(one, other)


def test_repairs_and_conversions_stay_there(cuda: torch.device, digits: Data) -> None:
    net = residual().to(cuda)
    bounded = isometry.convert(net)
    repaired = [bounded, isometry.fold(bounded), isometry.recalibrate(net, digits), isometry.orthogonalize(net)]
    for model in repaired:
        assert all(t.is_cuda for t in (*model.parameters(), *model.buffers()))
        assert torch.isfinite(model.eval()(images().to(cuda)).cpu()).all()
    isometry.plots.importances(bounded)


def test_reconstruction_is_the_same_there(cuda: torch.device, digits: Data) -> None:
    here = residual()
    pruned = isometry.prune(here, isometry.L1(), 0.5, layers="layer*.conv1", inputs=images()).model
    masked = copy.deepcopy(here)
    with torch.no_grad():
        masked.conv1.weight *= masked.conv1.weight.abs() > 0.1
    trained = copy.deepcopy(pruned)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.01)
    for net in (pruned, masked, trained):
        expected = isometry.repair(net, reference=here, data=digits, samples=64)
        found = isometry.repair(copy.deepcopy(net).to(cuda), reference=here, data=digits, samples=64)
        assert all(parameter.is_cuda for parameter in found.parameters())
        torch.testing.assert_close(found.cpu()(images()), expected(images()), rtol=1e-3, atol=1e-4)


def test_the_oracle_recovers_there(cuda: torch.device, digits: Data) -> None:
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0).to(cuda)
    pruned = isometry.prune(net, isometry.L1(), 0.5)
    report = isometry.measure(isometry.recover(pruned.model), digits.test, progress=False)
    assert report.mean_jsv == pytest.approx(1, abs=1e-5)


def test_an_optimizer_is_carried_there(cuda: torch.device, digits: Data) -> None:
    net = residual().to(cuda)
    optimizer = torch.optim.Adam(net.parameters())
    list(isometry.train(net, digits, lr=0.01, epochs=1, epoch_steps=2, optimizer=optimizer))
    pruned = isometry.prune(net, isometry.L1(), 0.5)
    carried = surgery.transfer_optimizer_state(optimizer, net, pruned)
    list(isometry.train(pruned.model, digits, lr=0.01, epochs=1, epoch_steps=2, optimizer=carried))
    assert all(state["exp_avg"].is_cuda for state in carried.state.values())


def test_trials_run_there(cuda: torch.device, tmp_path: Path) -> None:
    tune = Recipe(0.01, 1, epoch_steps=2)
    trial = Trial("digits", "mlp-7-linear", tune, tune, isometry.L1(), 0.5, options={"input_shape": (1, 8, 8)})
    table = run([trial], tmp_path, jobs=1, device="cuda", progress=False)
    assert table["accuracy"].notna().all()
    assert len(describe_origin([trial], tmp_path)["devices"]) == 1
    here = run([trial], tmp_path / "here", jobs=1, progress=False)
    assert table["mean_jsv"].to_numpy() == pytest.approx(here["mean_jsv"].to_numpy(), rel=0.05)


def test_trials_there_are_the_same_with_captured_steps(cuda: torch.device, tmp_path: Path) -> None:
    tune = Recipe(0.01, 2, 32, epoch_steps=4)
    grown = isometry.TPP(delta=0.25, interval=1, stabilize=8, zero_out=1, batch_size=32)
    trials = [Trial("digits", "conv-4", tune, tune, grown, 0.5, options={"input_shape": (1, 8, 8)})]
    tables = []
    for capture in (False, True):
        how = Manner(tmp_path / str(capture), 1, "cuda", False, capture=capture)
        tables.append(pd.concat(run_tables(trials, how, "run"), ignore_index=True))
    if torch.cuda.is_available():  # sums come in any order
        assert tables[1]["loss"].to_numpy() == pytest.approx(tables[0]["loss"].to_numpy(), rel=0.1)
    else:
        pd.testing.assert_frame_equal(*tables)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_processes_share_the_device_and_captured_steps_take_less_time(tmp_path: Path) -> None:
    tune = Recipe(0.01, 2, 128, epoch_steps=100, autocast=True)
    trials = [
        Trial("digits", "resnet-56", None, tune, isometry.L1(), 0.5, options={"input_shape": (1, 8, 8)}, seed=seed)
        for seed in (0, 1)
    ]
    tables = [
        pd.concat(run_tables(trials, Manner(tmp_path / str(jobs), jobs, "cuda", False, capture=True), "run"))
        for jobs in (1, 2)
    ]
    assert tables[0]["loss"].to_numpy() == pytest.approx(tables[1]["loss"].to_numpy(), rel=0.1)
    net = isometry.networks.build("resnet-56", seed=0, input_shape=(3, 8, 8)).cuda()
    x, y = torch.randn(12_800, 3, 8, 8), torch.arange(12_800) % 10
    seconds = []
    for captured in (False, True):
        with capture_steps(captured):
            epochs = list(isometry.train(copy.deepcopy(net), (x, y), lr=0.01, epochs=3, batch_size=128, autocast=True))
        seconds.append(epochs[-1].seconds)
    assert seconds[1] < seconds[0]


def test_states_are_adopted_to_the_models_device(cuda: torch.device) -> None:
    net = isometry.networks.build("resnet-20", seed=0, input_shape=(1, 8, 8))
    state = isometry.prune(net, isometry.L1(), 0.5).model.state_dict()
    adopted = surgery.adopt(copy.deepcopy(net).to(cuda), state)
    assert all(t.is_cuda for t in adopted.state_dict().values())


def test_inputs_of_other_precision_and_device_are_moved(cuda: torch.device, digits: Data) -> None:
    net = isometry.networks.build("resnet-20", seed=0, input_shape=(1, 8, 8)).double().to(cuda)
    x = torch.randn(2, 1, 8, 8)
    pruned = isometry.prune(net, isometry.L1(), 0.5, inputs=x)
    assert isometry.networks.size(pruned.model, x).flops
    assert isometry.evaluate(pruned.model, digits).samples == len(digits.test.inputs)
    assert isometry.recalibrate(pruned.model, digits, samples=64)
    surgery.transfer_optimizer_state(torch.optim.SGD(net.parameters(), lr=0.1), net, pruned, inputs=x)
