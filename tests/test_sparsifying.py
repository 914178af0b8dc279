import math

import pytest
import torch
from torch import nn

import isometry
from isometry import Polarization, RecedingBN, Slimming, convert, networks, plots, prune, train
from isometry.networks import importances
from isometry.pruners import receding_penalty
from isometry.pruners.polarization import Polarizing
from isometry.pruners.receding import Receding
from isometry.pruners.slimming import ScaleL1
from isometry.surgery import mask, trace
from isometry.training import parameter_groups


def net(norm: str = "bounded", seed: int = 0) -> nn.Module:
    return networks.build("conv-4", seed=seed, input_shape=(1, 8, 8), widths=(10, 8, 8, 6), norm=norm)


def test_the_receding_penalty_and_its_gradient_match_the_formula() -> None:
    gamma = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    for shift in (0.0, 3.0):
        p = torch.sigmoid(gamma.detach() + shift)
        value = receding_penalty(gamma, shift)
        assert value.item() == pytest.approx(float((p * (1 - p.log())).sum()), rel=1e-12)
        (found,) = torch.autograd.grad(value, gamma)
        u = gamma.detach() + shift
        expected = nn.functional.softplus(-u) * torch.sigmoid(u) * torch.sigmoid(-u)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    window = torch.linspace(-4, 2, 6001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(receding_penalty(window, 0.0), window)
    assert float(slope.max()) == pytest.approx(0.2603, abs=1e-4)
    assert window[slope.argmax()].item() == pytest.approx(-1.177, abs=2e-3)


def test_the_penalty_is_finite_and_rises_from_zero_to_one_a_unit() -> None:
    gamma = torch.tensor([-1e4, -117.0, -104.0, -97.0, -88.0, 0.0, 50.0, 1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(receding_penalty(gamma, 0.0), gamma)
    assert bool(torch.isfinite(gradient).all())
    values = [float(receding_penalty(g[None], 0.0)) for g in gamma.detach()]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == pytest.approx(1)
    half = receding_penalty(gamma.detach().bfloat16(), 0.0)
    assert half.dtype == torch.float32


def test_receding_has_the_published_dynamics() -> None:
    """The penalty alone, 400 Nesterov steps at rate 1: strong units stay, weak ones fall."""
    expected = {
        (0.0, 1e-2): (0.72, 0.008, 0.007, 0.006),
        (3.0, 1e-2): (0.881, 0.477, 0.115, 6e-4),
        (3.0, 3e-2): (0.880, 0.414, 2e-4, 1e-4),
        (3.0, 1e-1): (0.879, 1e-4, 0.0, 0.0),
    }
    for (shift, strength), ends in expected.items():
        gamma = torch.tensor([2.0, 0.0, -1.0, -2.0], requires_grad=True)
        optimizer = torch.optim.SGD([gamma], lr=1.0, momentum=0.9, nesterov=True)
        for _ in range(400):
            optimizer.zero_grad()
            (strength * receding_penalty(gamma, shift)).backward()
            optimizer.step()
        assert gamma.detach().sigmoid().tolist() == pytest.approx(ends, rel=0.2, abs=2e-4)
    assert (RecedingBN.vgg().strength, RecedingBN.vgg().shift) == (1e-3, 3)
    assert (RecedingBN.resnet().strength, RecedingBN.resnet().shift) == (1e-4, 0)


def test_regularisers_sum_over_every_scale_of_their_kind() -> None:
    model = net()
    every = torch.cat([m.weight for m in model.modules() if isinstance(m, networks.BoundedBatchNorm2d)])
    assert Receding(0.5, 1.0).loss(model).item() == pytest.approx(0.5 * receding_penalty(every, 1.0).item())
    plain = net("batch")
    scales = [m.weight for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for scale in scales:
            scale.normal_()
    ScaleL1(0.25).loss(plain).backward()
    for scale in scales:
        torch.testing.assert_close(scale.grad, 0.25 * scale.detach().sign())
    joined = torch.cat([s.detach() for s in scales])
    expected = 2e-3 * (1.4 * joined.abs().sum() - (joined - joined.mean()).abs().sum())
    assert Polarizing(2e-3, 1.4, 1.0).loss(plain).item() == pytest.approx(float(expected), rel=1e-5)
    Polarizing(2e-3, 1.4, 0.5).project(plain)
    assert all(0 <= s.min().item() <= s.max().item() <= 0.5 for s in scales)


def test_bounded_scales_train_ten_times_faster_without_decay() -> None:
    model = net()
    rest, scales = parameter_groups(model, lr=0.1, weight_decay=1e-3)
    assert (rest["lr"], rest["weight_decay"], scales["lr"], scales["weight_decay"]) == (0.1, 1e-3, 1.0, 0.0)
    assert len(scales["params"]) == 4
    held = [id(p) for group in (rest, scales) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(parameter_groups(net("batch"), lr=0.1, weight_decay=0)) == 1


def test_training_makes_importances_bimodal_and_a_third_of_the_units_free(digits: isometry.data.Data) -> None:
    accuracies = {}
    for strength in (0.0, 1e-1):
        pruner = RecedingBN(strength=strength, epochs=25)
        result = prune(net(), pruner, 0.3, data=digits, progress=False)
        accuracies[strength] = isometry.evaluate(result.model, digits.validation).accuracy
        assert list(result.history["stage"].unique()) == ["condition"]
        assert len(result.history) == 25
        assert result.plan.ratio == pytest.approx(0.3, abs=0.04)
    assert accuracies[1e-1] > accuracies[0.0] + 0.1
    assert accuracies[1e-1] > 0.85


def test_pruned_equals_masked_by_sinking_the_importances() -> None:
    model = net().eval()
    x = torch.randn(5, 1, 8, 8)
    result = prune(model, RecedingBN(epochs=0), 0.5, data=(x, torch.arange(5)))
    with torch.no_grad():
        sunk = convert_free_copy(model, result.plan)
    torch.testing.assert_close(result.model(x), sunk(x), rtol=1e-5, atol=1e-7)


def convert_free_copy(model: nn.Module, plan: isometry.Plan) -> nn.Module:
    """Sink gamma of every filter that left to -1e4."""
    import copy

    sunk = copy.deepcopy(model)
    for layer, units in plan.removed.items():
        index = int(layer.split(".")[1]) + 1
        sunk.features[index].weight[list(units)] = -1e4
    return sunk


def test_global_ranking_keeps_a_floor_and_reports_what_left() -> None:
    model = net()
    with torch.no_grad():
        for index, module in enumerate(m for m in model.modules() if isinstance(m, networks.BoundedBatchNorm2d)):
            module.weight.copy_(torch.arange(len(module.weight)) + (-100.0 if index == 0 else 100.0 * index))
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    result = prune(model, RecedingBN(epochs=0), 0.5, data=data)
    left = {layer: len(units) for layer, units in result.plan.removed.items()}
    assert left == {"features.0": 7, "features.3": 5, "features.7": 0, "features.10": 0}  # 16 of 32 asked for
    assert result.ratio == 12 / 32
    assert "37.5% of the units left" in str(result)
    uniform = prune(net("batch"), Slimming(strength=0, epochs=0, scope="layer"), 0.5, data=data)
    assert {layer: len(units) for layer, units in uniform.plan.removed.items()} == {
        "features.0": 5, "features.3": 4, "features.7": 4, "features.10": 3,
    }  # fmt: skip
    with torch.no_grad():  # ties: the first units leave, in every run
        for module in model.modules():
            if isinstance(module, networks.BoundedBatchNorm2d):
                module.weight.fill_(-1e4)
    tied = prune(model, RecedingBN(epochs=0), 0.25, data=data)
    assert tied.plan.removed["features.0"] == tuple(range(7))


def test_scales_are_what_sparsifying_pruners_score() -> None:
    x = torch.randn(4, 1, 8, 8)
    data = (x, torch.arange(4))
    with pytest.raises(ValueError, match=r"RecedingBN scores units .* bounded BatchNorm\. The network has none"):
        prune(net("batch"), RecedingBN(epochs=0), 0.5, data=data)
    with pytest.raises(ValueError, match="Slimming scores units by the scales of their BatchNorm"):
        prune(net(), Slimming(epochs=0), 0.5, data=data)
    with pytest.raises(ValueError, match="scope='everywhere'"):
        Slimming(scope="everywhere")
    converted = convert(net("batch"))
    assert prune(converted, RecedingBN(epochs=0), 0.5, data=data).ratio > 0
    polarized = prune(net("batch"), Polarization(epochs=2, lr=0.01), 0.5, data=data)
    scales = torch.cat([m.weight for m in polarized.model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= scales.min().item() <= scales.max().item() <= 1
    half = prune(net("batch"), Slimming(epochs=0), 0.5, data=data)
    graph = trace(net("batch"), x)
    chosen = [(f, tuple(half.plan.removed[f.root])) for f in graph.families]
    torch.testing.assert_close(half.model(x), mask(net("batch"), chosen).eval()(x))


def test_the_histogram_of_importances_marks_the_threshold() -> None:
    model = net()
    for logarithmic in (False, True):
        ax = plots.importances(model, threshold=0.5, logarithmic=logarithmic)
        share = float((torch.cat(list(importances(model).values())) < 0.5).double().mean())
        assert ax.get_legend().get_texts()[0].get_text() in ("32 units", f"threshold, {share:.0%} below")
        assert sum(patch.get_height() for patch in ax.patches) == 32
        assert ax.get_xscale() == ("log" if logarithmic else "linear")


def test_conditioning_resumes_bit_for_bit(digits: isometry.data.Data, tmp_path) -> None:
    pruner = Slimming(strength=1e-3, epochs=3, lr=0.05)
    whole = prune(net("batch"), pruner, 0.5, data=digits, progress=False)
    file = tmp_path / "training.safetensors"
    half = net("batch")
    for epoch in train(half, digits, **pruner.recipe().arguments(), seed=0, checkpoint=f"{file}.condition"):
        if epoch.number == 2:
            break
    resumed = prune(net("batch"), pruner, 0.5, data=digits, progress=False, checkpoint=file)
    assert resumed.history["number"].tolist() == [2, 3]  # the second epoch was not written, it is done again
    assert math.isclose(whole.history["loss"].iloc[-1], resumed.history["loss"].iloc[-1], rel_tol=1e-6)
    assert whole.plan == resumed.plan
