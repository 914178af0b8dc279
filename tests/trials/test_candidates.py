"""Numbers of a just-pruned network."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import isometry
from isometry.trials import run
from isometry.trials.candidates import CANDIDATES, Yardstick, describe_starts, linear_similarity
from tests.trials.examples import trial


@pytest.fixture(scope="module")
def data() -> isometry.data.Data:
    return isometry.data.load("digits")


def conv_net(seed: int = 0) -> nn.Module:
    return isometry.networks.build("conv-4", input_shape=(1, 8, 8), widths=(8, 8, 8, 8), seed=seed)


def test_the_dense_network_is_at_no_distance_from_itself(data: isometry.data.Data) -> None:
    dense = conv_net()
    numbers = Yardstick.of(dense, data, images=100, samples=8).describe(dense)
    assert list(numbers) == list(CANDIDATES)
    assert numbers["jsv_ratio"] == numbers["weakest_layer"] == 1
    assert numbers["gap_to_dense"] == numbers["log_jsv_ratio"] == numbers["output_error"] == 0
    assert numbers["feature_similarity"] == pytest.approx(1)


def test_every_number_is_its_formula(data: isometry.data.Data) -> None:
    dense = conv_net()
    pruned = isometry.prune(dense, isometry.L1(), 0.5).model
    found = Yardstick.of(dense, data, images=100, samples=8).describe(pruned)
    x, y = data.train.inputs[:100], data.train.targets[:100]
    spectra = []
    for net in (pruned, dense):
        net.eval()
        jacobians = torch.stack([torch.func.jacrev(lambda s, net=net: net(s[None])[0])(sample) for sample in x[:8]])
        spectra.append(torch.linalg.svdvals(jacobians.flatten(2)).double())
    s, d = spectra
    logits, yardstick = pruned(x), dense(x)
    loss = F.cross_entropy(logits, y)
    gradients = torch.autograd.grad(loss, list(pruned.parameters()))
    p = s / s.sum(1, keepdim=True)
    expected = {
        "mean_jsv": s.mean(), "log_mean_jsv": s.mean().log10().abs(), "jsv_ratio": s.mean() / d.mean(),
        "log_jsv_ratio": (s.mean() / d.mean()).log10().abs(), "isometry_gap": (s - 1).square().mean(),
        "gap_to_dense": (s - d).square().mean().sqrt() / d.mean(), "spread": s.std(unbiased=False) / s.mean(),
        "effective_rank": (-(p * p.log()).sum(1)).exp().mean(), "train_loss": loss,
        "train_accuracy": (logits.argmax(1) == y).float().mean(),
        "gradient_norm": torch.cat([g.flatten() for g in gradients]).norm(),
        "output_error": (logits - yardstick).square().sum() / (yardstick - yardstick.mean(0)).square().sum(),
        "recalibrated_loss": F.cross_entropy(isometry.recalibrate(pruned, x)(x), y),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value.detach()), rel=1e-4), name
    assert found["parameters"] == sum(parameter.numel() for parameter in pruned.parameters())


def test_a_layer_that_passes_nothing_on_is_the_weakest(data: isometry.data.Data) -> None:
    dense = isometry.networks.build("mlp-7-linear", input_shape=(1, 8, 8), widths=(20, 20), seed=0)
    ruler = Yardstick.of(dense, data, images=50, samples=4)
    with torch.no_grad():
        dense.get_parameter("net.2.weight").zero_()
    numbers = ruler.describe(dense)
    assert numbers["weakest_layer"] == numbers["mean_jsv"] == 0
    assert numbers["log_mean_jsv"] == numbers["spread"] == math.inf
    assert numbers["recalibrated_loss"] == numbers["train_loss"]


def test_similarity_ignores_rotation_and_scale_but_not_content() -> None:
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 500, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    assert linear_similarity(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_similarity(x, other) < 0.1
    assert linear_similarity(x, torch.ones_like(x)) == 0


def test_nothing_about_the_pruned_network_changes(data: isometry.data.Data) -> None:
    dense = conv_net()
    pruned = isometry.prune(dense, isometry.L1(), 0.5).model.train()
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    Yardstick.of(dense, data, images=50, samples=4).describe(pruned)
    assert pruned.training
    assert all(torch.equal(before[name], tensor) for name, tensor in pruned.state_dict().items())
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_starts_are_those_that_trials_fine_tune_and_are_read_again(tmp_path: Path) -> None:
    trials = [trial(finetune=replace(trial().finetune, epochs=1)), trial(repair="oracle"), trial(repair="reconstruct")]
    table = run(trials, tmp_path, jobs=1, progress=False)
    found = describe_starts(trials, tmp_path, images=100, samples=64)
    starts = table[table["epoch"] == 0].groupby("trial", sort=False).last()
    assert [numbers["mean_jsv"] for numbers in found] == pytest.approx(starts["mean_jsv"].to_list(), rel=1e-5)
    assert found[1]["mean_jsv"] == pytest.approx(1, rel=1e-4)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("candidates/**/*.json")}
    assert len(files) == 3
    again = describe_starts(trials, tmp_path, images=100, samples=64)
    np.testing.assert_equal(again, found)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("candidates/**/*.json")}
