"""Steps replayed from a CUDA graph give what ordinary steps give, and what cannot be captured is trained without."""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import isometry
from isometry.data import CropFlip, Data
from isometry.training.capture import capture_steps
from tests.fake_cuda import fake_cuda
from tests.fake_graphs import FakeGraph
from tests.models import Wired

real = torch.cuda.is_available()
OPTIONS: dict[str, Any] = {"lr": 0.02, "epochs": 3, "batch_size": 50}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module")
def few(digits: Data) -> Data:
    """Four batches of 50 and a ragged one."""
    return dataclasses.replace(digits, train=isometry.data.Split(*(part[:230] for part in digits.train)))


def residual() -> nn.Module:
    return isometry.networks.build("resnet-20", seed=0, input_shape=(1, 8, 8))


def convolutional() -> nn.Module:
    return isometry.networks.build("conv-4", seed=0, input_shape=(1, 8, 8))


def dropping() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 10)
    return nn.Sequential(*layers)


def masked() -> nn.Module:
    net = dropping()
    masks.l1_unstructured(net[5], "weight", 0.5)
    return net


def train(net: nn.Module, data: Any, *, captured: bool, **options: Any) -> list[float]:
    with capture_steps(captured):
        epochs = isometry.train(net, data, **{**OPTIONS, **options})
    return [epoch.loss for epoch in epochs]


def check_agreement(one: nn.Module, other: nn.Module) -> None:
    for name, expected in one.state_dict().items():
        found = other.state_dict()[name]
        if real:  # other kernels may be chosen, and sums come in any order
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
        else:
            assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (residual, {}),
        (convolutional, {"regularizer": isometry.KernOrth(), "schedule": isometry.Cosine()}),
        (dropping, {"weight_decay": 0.1}),
        (masked, {}),
        (lambda: isometry.convert(convolutional()), {"regularizer": isometry.RecedingBN().regularizer()}),
    ],
    ids=["residual", "regularizer", "dropout", "masks", "bounded"],
)
def test_captured_steps_give_the_same_network(
    cuda: torch.device, few: Data, build: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    data = dataclasses.replace(few, augment=CropFlip(padding=1))
    expected, found = build().to(cuda), build().to(cuda)
    losses = train(expected, data, captured=False, **options)
    assert train(found, data, captured=True, **options) == pytest.approx(losses, rel=2e-2 if real else 0)
    check_agreement(expected, found)
    if not real:
        assert [graph.replays for graph in FakeGraph.made] == [9]  # but for the first three and the ragged ones


@pytest.mark.parametrize(
    "pruner",
    [
        isometry.TPP(delta=0.25, interval=2, stabilize=8, zero_out=1, batch_size=50),
        isometry.GReg(delta=0.25, interval=2, stabilize=4, batch_size=50),
        isometry.Slimming(epochs=2, batch_size=50, strength=1e-2),
        isometry.Polarization(epochs=2, batch_size=50, strength=1e-2),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_pruners_that_train_do_so_in_captured_steps(
    cuda: torch.device, few: Data, pruner: isometry.pruners.Pruner
) -> None:
    net = convolutional().to(cuda)
    results = []
    for captured in (False, True):
        with capture_steps(captured):
            results.append(isometry.prune(net, pruner, 0.5, data=few, progress=False))
    if not real:
        assert results[1].plan.removed == results[0].plan.removed
        check_agreement(results[0].model, results[1].model)
        assert sum(graph.replays for graph in FakeGraph.made) >= 5


def test_weights_that_move_between_epochs_are_captured_anew(cuda: torch.device, few: Data) -> None:
    nets = [dropping().to(cuda) for _ in range(2)]
    for net, captured in zip(nets, (False, True), strict=True):
        with capture_steps(captured):
            epochs = isometry.train(net, few, **OPTIONS)
        for _ in epochs:
            net[1].weight.data = 0.5 * net[1].weight.data
    check_agreement(*nets)
    assert real or len(FakeGraph.made) == 3


def test_a_network_that_waits_for_the_device_is_trained_without_a_graph(cuda: torch.device, few: Data) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return m.a(flat if float(flat.mean()) > 0 else -flat)

    nets = [Wired(forward, a=nn.Linear(64, 10)).to(cuda) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    train(nets[0], few, captured=False)
    with pytest.warns(UserWarning, match="goes on without a CUDA graph: a step waits for the device"):
        train(nets[1], few, captured=True)
    check_agreement(*nets)


def test_a_network_that_counts_its_calls_is_found_out(cuda: torch.device, few: Data) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        return m.a(x.flatten(1)) * m.calls

    net = Wired(forward, a=nn.Linear(64, 10)).to(cuda)
    net.calls = 0
    with pytest.warns(UserWarning, match="without a CUDA graph: its gradients differ .* by a relative"):
        train(net, few, captured=True, lr=1e-3)


class Pull:
    """A penalty whose loss grows with the steps."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def loss(self, step: int) -> Tensor:
        return 1e-3 * step * self.weight.square().sum()

    def gradients(self, step: int) -> None: ...

    def project(self, step: int) -> None: ...

    def finished(self, step: int) -> bool:
        return False


def test_a_penalty_with_a_loss_is_trained_without_a_graph(cuda: torch.device, few: Data) -> None:
    nets = [dropping().to(cuda) for _ in range(2)]
    train(nets[0], few, captured=False, penalty=Pull(nets[0][0].weight))
    with pytest.warns(UserWarning, match="without a CUDA graph: the penalty has a loss"):
        train(nets[1], few, captured=True, penalty=Pull(nets[1][0].weight))
    check_agreement(*nets)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.skipif(real, reason="only the fake device counts")
def test_no_step_waits_for_the_device(few: Data, captured: bool) -> None:
    data, counts = dataclasses.replace(few, augment=CropFlip(padding=1)), []
    with fake_cuda() as device:
        for steps in (5, 9):
            net, before = convolutional().to("cuda"), device.waits
            train(net, data, captured=captured, batch_size=20, epochs=1, epoch_steps=steps)
            counts.append(device.waits - before)
    assert counts[0] == counts[1]


@pytest.mark.skipif(real, reason="only the fake device counts")
def test_a_growing_penalty_waits_for_the_device_once_per_interval(few: Data) -> None:
    counts = []
    with fake_cuda() as device:
        for steps in (4, 8):
            pruner = isometry.GReg(delta=1 / steps, interval=1, stabilize=2, batch_size=20, magnitude_ratio=1e9)
            net, before = convolutional().to("cuda"), device.waits
            isometry.prune(net, pruner, 0.5, data=few, progress=False)
            counts.append(device.waits - before)
    assert counts[1] - counts[0] == 4


def test_the_cpu_is_left_alone(few: Data) -> None:
    nets = [dropping() for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [train(net, few, captured=captured) for net, captured in zip(nets, (False, True), strict=True)]
    assert losses[0] == losses[1]
    check_agreement(*nets)


@pytest.mark.skipif(real, reason="of the fake device")
def test_a_capture_computes_nothing_and_a_replay_works_on_its_memory(cuda: torch.device) -> None:
    total, step = torch.zeros(2, device=cuda), torch.ones(2, device=cuda)
    graph, calls = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        calls.append(1)
        total += step
        result = 2 * total + torch.rand(2, device=cuda)
    drawn = torch.get_rng_state()
    assert total.tolist() == [0, 0]
    assert result.isnan().all()
    step.mul_(3)
    for expected in (3, 6):
        graph.replay()
        assert total.tolist() == [expected] * 2
        assert (2 * expected <= result.cpu()).all()
        assert (result.cpu() < 2 * expected + 1).all()
    assert len(calls) == 1
    assert not torch.equal(drawn, torch.get_rng_state())
    with pytest.raises(RuntimeError, match="synchronizing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        copy.copy(float(total.sum()))
