"""Networks and files on which pruning could be wrong without a word, or crash after its training."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_traps import Wired
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry import surgery
from isometry.data import CropFlip, Data, Split
from isometry.pruners import Run
from isometry.pruners.growing import GrowingPenalty
from isometry.recipe import Recipe
from isometry.surgery import trace
from isometry.trials import Trial, run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


def spatial_gate() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.c(x).relu()
        return m.fc(F.relu(m.d(h * torch.sigmoid(m.gate(h)))).mean((2, 3)))

    return Wired(forward, c=conv(3, 8), gate=nn.Conv2d(8, 1, 1), d=conv(8, 6), fc=nn.Linear(6, 5))


def broadcast_sum() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(F.relu(m.d((m.bn(m.c(x)) + m.one(x)).relu())).mean((2, 3)))

    return Wired(forward, c=conv(3, 8), bn=nn.BatchNorm2d(8), one=conv(3, 1), d=conv(8, 6), fc=nn.Linear(6, 5))


def pooled_twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.d(m.c(x).relu()).relu()
        return m.fc(torch.cat([F.adaptive_avg_pool2d(h, 2).flatten(1), h.mean((2, 3))], 1))

    return Wired(forward, c=conv(3, 8), d=conv(8, 8), fc=nn.Linear(40, 5))


@pytest.mark.parametrize("build", [spatial_gate, broadcast_sum, pooled_twice])
@pytest.mark.parametrize("pruner", [isometry.L1(), isometry.Random()], ids=["L1", "Random"])
@pytest.mark.filterwarnings("ignore:prune.. leaves alone")
def test_what_cannot_be_cut_is_left_alone_and_the_rest_is_cut(
    build: Callable[[], nn.Module], pruner: isometry.Pruner
) -> None:
    result = isometry.prune(build(), pruner, 0.5, inputs=torch.randn(2, 3, 12, 12))
    assert any(result.plan.removed.values())
    assert result.model(torch.randn(2, 3, 12, 12)).shape == (2, 5)


def mixed_precision() -> nn.Module:
    net = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 5), nn.Flatten(), nn.Linear(5 * 64, 4))
    net[1].running_mean.normal_()
    net[3].double()
    return net


def test_a_file_keeps_the_precision_of_every_tensor(tmp_path: Path) -> None:
    net = isometry.networks.build("resnet-20", seed=0, input_shape=(1, 8, 8))
    pruned = isometry.prune(net, isometry.L1(), 0.5)
    for name, module in pruned.model.named_modules():
        if isinstance(module, nn.Conv2d) and name != "conv1":
            module.to(torch.bfloat16)
    isometry.save(pruned, tmp_path / "net.safetensors")
    loaded = isometry.load(tmp_path / "net.safetensors", net).model.state_dict()
    adopted = surgery.adopt(net, pruned.model.state_dict()).state_dict()
    for name, tensor in pruned.model.state_dict().items():
        for found in (loaded[name], adopted[name]):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
            assert found.data_ptr() != tensor.data_ptr()


def test_adopted_networks_keep_their_ties_and_convert_what_no_file_holds() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    adopted = surgery.adopt(net, net.state_dict())
    assert adopted[0].weight is adopted[1].weight
    shifted = Wired(lambda m, x: m.a(x + m.shift), a=nn.Linear(6, 3))
    shifted.register_buffer("shift", torch.ones(6), persistent=False)
    half = {name: tensor.bfloat16() for name, tensor in shifted.state_dict().items()}
    assert surgery.adopt(shifted, half)(torch.ones(2, 6).bfloat16()).dtype == torch.bfloat16


def test_frozen_masks_of_infinity_are_no_divergence(digits: Data) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x.flatten(1)) + m.mask.exp()

    net = Wired(forward, a=nn.Linear(64, 10))
    net.mask = nn.Parameter(torch.full((10,), -torch.inf), requires_grad=False)
    assert [epoch.diverged for epoch in isometry.train(net, digits, lr=0.01, epochs=2, epoch_steps=2)] == [False, False]


def test_models_of_several_precisions_are_given_what_they_have(digits: Data) -> None:
    net = Wired(lambda m, x: m.a(x.flatten(1)) * m.scale.float(), a=nn.Linear(64, 10))
    net.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    net = Wired(lambda m, x: m.inner(x), inner=net)
    assert isometry.evaluation.evaluate(net, digits).samples == len(digits.test.inputs)


def test_a_model_without_parameters_has_nothing_to_prune() -> None:
    with pytest.raises(ValueError, match=r"no layer"):
        isometry.prune(nn.Sequential(nn.Flatten()), isometry.L1(), 0.5, inputs=torch.randn(2, 6))


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
    assert isometry.evaluation.evaluate(pruned.model, digits).samples == len(digits.test.inputs)
    assert isometry.recalibrate(pruned.model, digits, samples=64)
    surgery.carry(torch.optim.SGD(net.parameters(), lr=0.1), net, pruned, inputs=x)


def test_the_bn_term_goes_with_the_layer_it_normalises() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(F.relu(m.bn1(m.conv1(x)) + m.bn2(m.conv2(x))).mean((2, 3)))

    # Registered apart from what feeds them.
    parts = {"conv1": conv(3, 8), "conv2": conv(3, 8), "bn1": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)}
    net = Wired(forward, **parts, fc=nn.Linear(8, 5))
    data = Split(torch.randn(8, 3, 6, 6), torch.arange(8) % 5)
    families = [f for f in trace(net, data.inputs[:2]).families if f.root.startswith("conv")]
    chosen = [(family, tuple(range(family.units // 2))) for family in families]
    penalty = GrowingPenalty(isometry.TPP(), Run(net, families, data, 0, False, None), chosen)
    for layer, norm in zip(penalty.layers, (net.bn1, net.bn2), strict=True):
        assert [id(t) for t, _ in layer.zeroed[2:]] == [id(norm.weight), id(norm.bias)]


def test_greg_2_may_zero_out(digits: Data) -> None:
    pruner = isometry.GReg2(delta=0.5, interval=1, ceiling=1.0, stabilise=40, zero_out=1, batch_size=32)
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    assert any(isometry.prune(net, pruner, 0.5, data=digits, progress=False).plan.removed.values())


def test_conversion_keeps_shared_norms_shared() -> None:
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(conv(3, 4), norm, conv(4, 4), norm)
    bounded = isometry.convert(net, inputs=torch.randn(2, 3, 4, 4))
    folded = isometry.fold(bounded)
    assert bounded[1] is bounded[3]
    assert folded[1] is folded[3]
    assert isinstance(bounded[1], isometry.networks.BoundedBatchNorm2d)
    assert type(folded[1]) is nn.BatchNorm2d


def test_carrying_leaves_the_optimiser_alone_and_takes_any_class() -> None:
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    pruned = isometry.prune(net, isometry.L1(), 0.5)

    class Demanding(torch.optim.SGD):
        def __init__(self, params: Any, lr: float, **options: Any) -> None:
            super().__init__(params, lr=lr, **options)

    optimizer = Demanding(net.parameters(), 0.1)
    assert surgery.carry(optimizer, net, pruned).param_groups[0]["lr"] == 0.1
    assert not optimizer.state


def test_divergence_in_the_very_last_step_is_seen(digits: Data) -> None:
    net = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)
    (epoch,) = isometry.train(net, digits, lr=1e39, epochs=1, epoch_steps=1)
    assert epoch.diverged


def test_a_checkpoint_knows_the_augmentation_and_all_of_the_data(digits: Data, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    options: dict[str, Any] = {"lr": 0.01, "epochs": 2, "epoch_steps": 1, "checkpoint": path}

    def net() -> nn.Module:
        return isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), seed=0)

    first = dataclasses.replace(digits, augment=CropFlip(1))
    list(isometry.train(net(), first, **options))
    with pytest.raises(ValueError, match="augment"):
        list(isometry.train(net(), digits, **options))
    with pytest.raises(ValueError, match="augment"):
        list(isometry.train(net(), dataclasses.replace(digits, augment=CropFlip(2)), **options))
    zeroed = digits.train.inputs.clone()
    zeroed[100:-100] = 0
    with pytest.raises(ValueError, match="data"):
        list(isometry.train(net(), dataclasses.replace(first, train=Split(zeroed, digits.train.targets)), **options))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"no whole safetensors file.*checkpoint='other"):
        list(isometry.train(net(), first, **options))


def test_trials_that_differ_in_a_setting_are_told_apart(tmp_path: Path) -> None:
    tune = Recipe(0.01, 1, epoch_steps=1)
    slow: dict[str, Any] = {"delta": 0.5, "interval": 1, "ceiling": 1.0, "stabilise": 20, "zero_out": 1}
    options: dict[str, Any] = {"options": {"input_shape": (1, 8, 8)}}
    pruners = [isometry.TPP(gram=gram, batch_size=64, **slow) for gram in (0.0, 1000.0)]
    trials = [Trial("digits", "mlp-7-linear", tune, tune, pruner, 0.5, **options) for pruner in pruners]
    table = run([*trials, trials[0]], tmp_path, jobs=1, progress=False)
    assert table["trial"].nunique() == 2


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: isometry.recalibrate(mixed_precision(), torch.randn(9, 3, 8, 8), batch_size=1), "batch_size=1.*e.g."),
    (lambda: isometry.recalibrate(mixed_precision(), torch.randn(9, 3, 8, 8), samples=0), "0 samples.*e.g."),
    (
        lambda: isometry.prune(spatial_gate(), isometry.L1(), 0.5, inputs=torch.randn(2, 4, 8, 8)),
        r"\(2, 4, 8, 8\).*e.g.",
    ),
    (
        lambda: isometry.prune(spatial_gate(), isometry.L1(), 0.5, inputs=torch.empty(0, 3, 8, 8)),
        r"\(0, 3, 8, 8\).*e.g.",
    ),
    (lambda: isometry.prune(nn.utils.spectral_norm(nn.Linear(3, 4)), isometry.L1(), 0.5), "remove_spectral_norm"),
    (lambda: Trial("digits", "conv-4", None, pruner=isometry.L1(), repair="scratch"), "conv-4.*MLPs only.*e.g."),
]


def test_a_trial_whose_weights_are_finite_but_too_large_has_diverged(tmp_path: Path) -> None:
    wild = Recipe(1e20, 1, epoch_steps=1)
    trial = Trial("digits", "mlp-7-linear", wild, wild, isometry.L1(), 0.5, options={"input_shape": (1, 8, 8)})
    table = run([trial], tmp_path, jobs=1, progress=False)
    assert table["diverged"].all()


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_makes_no_sense_is_refused(case: int) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for plan in ("{}", "not json", '{"removed": 3, "widths": {}}'):
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"plan": plan})
        with pytest.raises(ValueError, match=r"plan that cannot be read.*isometry.save"):
            isometry.load(tmp_path / "bad.safetensors", nn.Linear(3, 2))
