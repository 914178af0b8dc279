"""Repairs by name."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import isometry
from isometry import networks, orthogonalize, recalibrate, recover, repairs
from tests.models import batch_norm_net, digits_mlp, flat_weights


def state(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def test_the_oracle_by_name_is_recover() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8))
    assert same(repairs.repair_by_name("oracle")(net), recover(net))


def test_orthp_by_name_has_the_gain_for_relu() -> None:
    net = digits_mlp()
    assert same(repairs.repair_by_name("orthp")(net), orthogonalize(net, gain=math.sqrt(2)))


def test_recalibration_by_name_takes_data_and_a_seed() -> None:
    net, x = batch_norm_net(), torch.randn(40, 3, 8, 8)
    repair = repairs.repair_by_name("recalibrate")
    assert same(repair(net, data=x, seed=4), recalibrate(net, x, seed=4))
    with pytest.raises(ValueError, match=r"recalibrate\(\) got no data.*data=isometry\.data\.load"):
        repair(net)


def test_repairs_leave_their_argument_alone() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8))
    before = flat_weights(net)
    for name in ("oracle", "orthp"):
        repairs.repair_by_name(name)(net)
    assert torch.equal(before, flat_weights(net))


def test_unknown_repairs_are_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'magic'; it knows 'oracle', 'orthp', 'recalibrate'.*e\.g\."):
        repairs.repair_by_name("magic")


def test_every_repair_stands_under_its_own_name() -> None:
    assert [repair.name for repair in repairs.REPAIRS.values()] == list(repairs.REPAIRS)


@dataclass(frozen=True)
class Undone:
    """A repair of the user's: the network before pruning."""

    name: ClassVar[str] = "undone"

    def __call__(
        self, model: nn.Module, *, data: Any = None, reference: nn.Module | None = None, seed: int = 0
    ) -> nn.Module:
        assert reference is not None
        return reference


def test_further_repairs_are_found_once_they_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(repairs.REPAIRS, "undone", Undone())
    dense, pruned = digits_mlp(), digits_mlp()
    assert repairs.repair_by_name("undone")(pruned, reference=dense) is dense


def test_the_best_repair_of_a_linear_mlp_is_the_oracle() -> None:
    net = networks.build("mlp-7-linear", seed=0, input_shape=(1, 8, 8))
    label, repaired = repairs.best_repair(net)
    assert label == "oracle"
    assert same(repaired, recover(net))


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU, math.sqrt(2)), (nn.Tanh, 1.0)])
def test_the_best_repair_of_other_networks_is_orthp_with_the_gain_of_their_activation(
    activation: type[nn.Module], gain: float
) -> None:
    net = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 3))
    label, repaired = repairs.best_repair(net)
    assert label == "OrthP"
    assert same(repaired, orthogonalize(net, gain=gain))


def test_activations_that_are_no_modules_count_as_relu() -> None:
    net = networks.build("resnet-20", seed=0)
    assert same(repairs.best_repair(net)[1], isometry.orthogonalize(net, gain=math.sqrt(2)))
