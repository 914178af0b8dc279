"""Networks run part by part: the same results, a batch at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry import L1, networks, prune, repair
from isometry.networks.modules import hooked
from isometry.repairs import reconstruction, resumption
from isometry.repairs.resumption import Passes, Stop, find_cuts, follow
from tests import models
from tests.models import Wired, lively


def skipping() -> nn.Module:
    """Something reaches the head past `b`, but not past `c`."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        x = net.c(F.relu(net.b(x)) + x)
        return net.head(x)

    return Wired(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4), head=nn.Linear(4, 2)).double()


def test_a_cut_is_what_everything_passes_through() -> None:
    net = skipping()
    course = follow(net, torch.zeros(1, 4, dtype=torch.float64))
    x = torch.randn(2, 4, dtype=torch.float64)
    assert find_cuts(net, course, x, ["a", "b", "c", "head"]) == [None, "a", "a", "c"]
    twice = nn.Sequential(shared := nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)).double()
    assert find_cuts(twice, follow(twice, x[:1] * 0), x, ["4"]) == ["3"]


@pytest.mark.parametrize("in_memory", [2**30, 0], ids=["memory", "file"])
def test_a_pass_from_a_cut_gives_what_a_whole_one_gives(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "_IN_MEMORY", in_memory)
    net = lively(networks.build("resnet-20", seed=0, input_shape=(3, 8, 8))).eval()
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    runs: list[str] = []
    results: list[Tensor] = []
    with torch.no_grad():
        passes = Passes(net, follow(net, torch.zeros_like(x[:1])), x.split(3))
        for cut in ("layer1.1", "layer3.0"):
            passes.advance(cut)
            runs.clear(), results.clear()
            handles = [
                module.register_forward_hook(lambda m, a, r, name=name: runs.append(name))
                for name, module in (("before", net.layer1[1].conv1), ("after", net.layer3[2].conv1))
            ]
            with hooked(*handles, net.register_forward_hook(lambda m, a, r: results.append(r))):
                assert list(passes.run()) == [0, 1, 2]
            torch.testing.assert_close(torch.cat(results), net(x))
            assert runs == ["after"] * 3
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_stopped_pass_leaves_the_network_as_it_was() -> None:
    net = skipping()
    own = net.a.forward = lambda x: F.linear(x, net.a.weight)  # a forward that the user put there
    x = torch.randn(5, 4, dtype=torch.float64)
    passes = Passes(net, follow(net, torch.zeros_like(x[:1])), [x])
    passes.advance("a")

    def stop(*args: object) -> None:
        raise Stop

    with hooked(net.b.register_forward_hook(stop)):
        assert list(passes.run()) == [0]
    assert net.a.forward is own
    assert not any("forward" in vars(module) for module in (net.b, net.c, net.head))


@pytest.mark.filterwarnings("ignore:.*leaves blocks.0.attention.out_proj")
@pytest.mark.parametrize("build", [models.ShortcutResidual, models.DenselyConnected, models.SqueezeExcite, models.ViT])
def test_the_repair_is_the_same_without_cuts_and_in_any_batches(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = lively(build())
    x = torch.randn(30, 3, 8, 8, dtype=torch.float64)
    pruned = prune(net, L1(), 0.3, inputs=x[:2]).model
    expected = repair(pruned, reference=net, data=x, batch_size=30)
    torch.testing.assert_close(repair(pruned, reference=net, data=x, batch_size=30)(x), expected(x))
    monkeypatch.setattr(reconstruction, "find_cuts", lambda model, course, inputs, layers: [None] * len(layers))
    torch.testing.assert_close(repair(pruned, reference=net, data=x, batch_size=30)(x), expected(x))


def test_no_layer_sees_more_than_a_batch_at_once_or_all_samples_more_than_thrice() -> None:
    net = lively(networks.build("resnet-20", seed=0, input_shape=(3, 8, 8)))
    pruned = prune(net, L1(), {"layer*.conv1": 0.5}).model
    seen: dict[nn.Module, list[int]] = {}

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and "forward" not in vars(module):  # one that is not skipped
            seen.setdefault(module, []).append(len(args[0]))

    with hooked(nn.modules.module.register_module_forward_pre_hook(watch)):
        repair(pruned, reference=net, data=torch.randn(80, 3, 8, 8, dtype=torch.float64), batch_size=8)
    assert max(max(sizes) for sizes in seen.values()) == 8
    assert max(sum(sizes) for sizes in seen.values()) < 3 * 80 + 50  # 50 samples to find the cuts with


def test_networks_that_take_no_zeros_are_repaired_too() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        if not bool(x.any()):
            raise AssertionError("no signal")
        return net.head(F.relu(net.b(F.relu(net.a(x)))))

    net = Wired(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 6), head=nn.Linear(6, 2)).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    pruned = prune(net, L1(), 0.5, inputs=x[:2]).model
    repaired = repair(pruned, reference=net, data=x, outputs=True)
    with torch.no_grad():
        assert (repaired(x) - net(x)).norm() < (pruned(x) - net(x)).norm()
