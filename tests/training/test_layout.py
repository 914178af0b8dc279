"""Training leaves the memory layout of weights and of the optimizer's state as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, prune

from isometry import networks, train

X, Y = torch.randn(8, 3, 8, 8), torch.arange(8) % 4


def conv() -> nn.Module:
    return networks.build("conv-4", 4, seed=0, input_shape=(3, 8, 8), widths=(6, 6, 4, 4))


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [p.stride() for p in (*model.parameters(), *model.buffers())]


def test_what_torch_does_with_weights_works_between_and_after_epochs() -> None:
    model = conv()
    before = strides(model)
    for _ in train(model, (X, Y), lr=0.1, epochs=2):
        assert strides(model) == before
        parameters_to_vector(model.parameters())
    assert strides(model) == before
    prune.global_unstructured(
        [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d)], prune.L1Unstructured, amount=0.5
    )


def test_the_layout_comes_back_after_an_interruption() -> None:
    model = conv()
    before = strides(model)

    def stop(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert not model.features[3].weight.is_contiguous()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train(model, (X, Y), lr=0.1, epochs=2, loss=stop))
    assert strides(model) == before
    assert not model.training


def test_a_network_in_channels_last_stays_so() -> None:
    model = conv().to(memory_format=torch.channels_last)
    before = strides(model)
    list(train(model, (X, Y), lr=0.1, epochs=1))
    assert strides(model) == before


def test_a_weight_with_gaps_in_memory_becomes_contiguous_with_the_same_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    wide = torch.randn(4, 3, 3, 6)
    model[0].weight.data = wide[..., ::2]
    list(train(model, (X, Y), lr=1e-12, epochs=1, weight_decay=0))
    assert model[0].weight.is_contiguous()
    torch.testing.assert_close(model[0].weight.data, wide[..., ::2])


def test_the_state_of_a_fused_optimizer_has_the_layout_of_its_parameters_again() -> None:
    found = []
    for fused in (False, True):
        model = conv()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
        list(train(model, (X, Y), lr=1, epochs=2, optimizer=optimizer))
        for p, state in optimizer.state.items():
            assert state["momentum_buffer"].stride() == p.stride()
        for _ in range(2):  # the user's own loop goes on
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimizer.step()
        found.append(parameters_to_vector(model.parameters()).detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
