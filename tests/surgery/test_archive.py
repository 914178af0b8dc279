"""Pruned networks in files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import isometry
from isometry import L1, networks, prune, surgery
from tests.models import batch_norm_net, lenet


def test_a_pruned_net_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    file = tmp_path / "new" / "net.safetensors"
    isometry.save(result, file)
    back = isometry.load(file, networks.build("lenet-5-relu", seed=9))
    assert back.plan == result.plan
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(back.model.eval()(x), result.model(x))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    file = tmp_path / "new" / "net.safetensors"
    isometry.save(result, file)
    with pytest.raises(ValueError, match="does not fit the network"):
        isometry.load(file, networks.build("mlp-7-relu"))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    file = tmp_path / "new" / "net.safetensors"
    isometry.save(result, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        isometry.load(file, lenet())


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"load\(\) found no file .*none; it takes one that isometry.save wrote"
    ):
        isometry.load(tmp_path / "none", lenet())


def test_a_suffix_that_promises_a_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"save\(\) got the path .*net.pth, .* e.g. isometry.save\(result, .*net.safetensors'\)"
    ):
        isometry.save(prune(lenet(), L1(), 0.5), tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_no_name_of_a_file_is_refused(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    with pytest.raises(ValueError, match=r"save\(\) got the path .*, which is a folder; .*pruned\.safetensors'"):
        isometry.save(result, tmp_path)
    with pytest.raises(TypeError, match=r"save\(\) got a path of type NoneType; it takes .*, e\.g\. isometry\.save\("):
        isometry.save(result, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"load\(\) got a path of type LeNet.*; it takes .*, e\.g\. isometry\.load\("):
        isometry.load(lenet(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"load\(\) got a str for a model; it takes .*, e\.g\. isometry\.load\("):
        isometry.load(tmp_path, "lenet")  # type: ignore[arg-type]


def test_a_network_alone_is_refused_with_the_way_to_write_its_weights(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save\(\) got LeNet.*torch\.save\(model\.state_dict\(\), 'weights\.pt'\)"):
        isometry.save(lenet(), tmp_path / "net.safetensors")  # type: ignore[arg-type]


def test_a_file_keeps_the_precision_of_the_whole_network(tmp_path: Path) -> None:
    net = batch_norm_net().double().train()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    result = prune(net, L1(), 0.5, inputs=x)
    isometry.save(result, tmp_path / "net.safetensors")
    again = isometry.load(tmp_path / "net.safetensors", batch_norm_net(), inputs=x.float()).model
    assert torch.equal(again(x), result.model(x))


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


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for plan in ("{}", "not json", '{"removed": 3, "widths": {}}'):
        save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"plan": plan})
        with pytest.raises(ValueError, match=r"plan that cannot be read.*isometry.save"):
            isometry.load(tmp_path / "bad.safetensors", nn.Linear(3, 2))


def test_a_network_without_a_tensor_of_the_file_is_refused(tmp_path: Path) -> None:
    isometry.save(prune(networks.build("mlp-7-relu"), isometry.Magnitude(), 0.5), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"another network: .* has the shape \(2,\) here and is missing in the file"):
        isometry.load(tmp_path / "net.safetensors", nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2)))


def test_a_network_with_other_activations_is_refused(tmp_path: Path) -> None:
    isometry.save(prune(networks.build("mlp-7-relu"), L1(), 0.5), tmp_path / "net.safetensors")
    with pytest.raises(
        ValueError, match=r"net\.safetensors, which belongs to another network .* is Identity here and ReLU"
    ):
        isometry.load(tmp_path / "net.safetensors", networks.build("mlp-7-linear"))


def test_a_file_with_another_plan_swapped_tensors_or_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    file, x = tmp_path / "net.safetensors", torch.randn(2, 1, 32, 32)
    isometry.save(prune(lenet(), L1(), 0.5), file)
    isometry.save(prune(lenet(), isometry.Random(), 0.5, seed=3), tmp_path / "other.safetensors")
    whole = file.read_bytes()
    headers = []
    for path in (file, tmp_path / "other.safetensors"):
        with safe_open(path, "pt") as opened:
            headers.append(opened.metadata())
    tensors = load_file(file)
    first = next(name for name in tensors if name.endswith("bias"))
    swapped = {**tensors, first: tensors[first].flip(0)}
    for content, header in ((tensors, {**headers[0], "plan": headers[1]["plan"]}), (swapped, headers[0])):
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, file, header)
        with pytest.raises(ValueError, match=r"net\.safetensors is damaged.*isometry\.save"):
            isometry.load(file, lenet(), inputs=x)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"net\.safetensors is damaged"):
        isometry.load(file, lenet(), inputs=x)


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    with torch.no_grad():
        next(result.model.parameters())[0] = torch.nan
    isometry.save(result, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net\.safetensors, which holds NaN in .*load_file"):
        isometry.load(tmp_path / "net.safetensors", lenet())


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    result = prune(lenet(), L1(), 0.5)
    save_file(
        dict(result.model.state_dict()),
        tmp_path / "old.safetensors",
        {"format": "isometry-1", "plan": result.plan.to_json()},
    )
    back = isometry.load(tmp_path / "old.safetensors", lenet())
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(back.model(x), result.model.eval()(x))


def test_a_plan_that_does_not_lead_to_its_network_is_not_saved(tmp_path: Path) -> None:
    first = prune(lenet(), L1(), 0.5)
    second = prune(first.model, L1(), 0.5)
    for model, plan in ((second.model, first.plan), (lenet(), first.plan), (batch_norm_net(), first.plan)):
        with pytest.raises(
            ValueError, match=r"save\(\) got a plan .* units by the plan and has .*first\.then\(second\)"
        ):
            isometry.save(surgery.Loaded(model, plan), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    isometry.save(first.then(second), tmp_path / "net.safetensors")
    assert isometry.load(tmp_path / "net.safetensors", lenet()).plan.ratio > 0.7


def test_plans_of_transposed_and_grouped_convolutions_are_saved(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)
    )
    x = torch.randn(2, 3, 5, 5)
    result = prune(net, L1(), 0.5, inputs=x)
    isometry.save(result, tmp_path / "net.safetensors")
    assert torch.equal(isometry.load(tmp_path / "net.safetensors", net, inputs=x).model(x), result.model(x))


def of_any_size() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )


class OddlySized(nn.Module):
    """Takes inputs of 13 pixels, which nobody would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6 * 11 * 11, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_a_file_knows_the_shape_of_its_inputs(tmp_path: Path) -> None:
    net, x = OddlySized(), torch.randn(2, 2, 13, 13)
    first = prune(net, L1(), 0.5, inputs=x)
    later = first.then(prune(first.model, L1(), 0.5, inputs=x))
    for result in (first, later):
        isometry.save(result, tmp_path / "net.safetensors")
        assert torch.equal(isometry.load(tmp_path / "net.safetensors", net).model(x), result.model(x))


def test_a_network_without_a_stated_shape_is_saved_and_loaded_without_inputs(tmp_path: Path) -> None:
    net, x = of_any_size(), torch.randn(2, 3, 20, 20)
    pruned = prune(net, L1(), 0.5)
    isometry.save(pruned, tmp_path / "net.safetensors")
    loaded = isometry.load(tmp_path / "net.safetensors", net)
    assert torch.equal(loaded.model(x), pruned.model(x))
    isometry.save(loaded, tmp_path / "again.safetensors")
    assert torch.equal(isometry.load(tmp_path / "again.safetensors", net).model(x), pruned.model(x))


def test_a_network_of_tokens_is_saved_and_loaded_without_inputs(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruned = prune(net, L1(), {"1": 0.5}, inputs=torch.randint(5, (2, 3)))
    isometry.save(pruned, tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["inputs"])["shape"] == [3]
    assert isometry.load(tmp_path / "net.safetensors", net).plan == pruned.plan


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Embedding(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return self.head((self.a(x) + self.b(kind)).relu())


@pytest.mark.parametrize("named", [False, True])
def test_a_network_of_several_inputs_is_saved_and_loaded_without_inputs(tmp_path: Path, named: bool) -> None:
    net, x, kind = Two(), torch.randn(4, 5), torch.tensor([0, 1, 3, 2])
    pruned = prune(net, L1(), {"a": 0.5}, inputs={"x": x, "kind": kind} if named else (x, kind))
    isometry.save(pruned, tmp_path / "net.safetensors")
    assert torch.equal(isometry.load(tmp_path / "net.safetensors", net).model(x, kind), pruned.model(x, kind))
