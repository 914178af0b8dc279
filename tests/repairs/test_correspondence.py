"""Which units a pruned layer kept."""

import pytest
import torch
from torch import nn

import isometry
from isometry.repairs.correspondence import match_outputs, match_weights
from tests.models import ShortcutResidual, batch_norm_net, lively


@pytest.mark.parametrize(("build", "shape"), [(batch_norm_net, (3, 8, 8)), (ShortcutResidual, (3, 8, 8))])
def test_kept_units_are_those_of_the_plan(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    net = lively(build())
    result = isometry.prune(net, isometry.L1(), 0.5, inputs=torch.randn(2, *shape, dtype=torch.float64))
    for name in result.plan.removed:
        kept = match_weights(result.model.get_submodule(name), net.get_submodule(name))
        assert kept is not None
        assert kept.tolist() == list(result.plan.kept(name))


def test_negated_units_are_found_and_trained_ones_are_not() -> None:
    layer, other = nn.Linear(4, 6), nn.Linear(3, 2)
    with torch.no_grad():
        other.weight.copy_(-layer.weight[[1, 4]][:, [0, 2, 3]])
        assert match_weights(other, layer).tolist() == [1, 4]
        other.weight.add_(0.01)
    assert match_weights(other, layer) is None


def test_outputs_are_matched_in_their_order() -> None:
    torch.manual_seed(0)
    full = torch.randn(200, 7)
    assert match_outputs(3 * full[:, [0, 2, 3, 6]] + 0.3 * torch.randn(200, 4) + 5, full).tolist() == [0, 2, 3, 6]
