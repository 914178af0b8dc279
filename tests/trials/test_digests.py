"""What counts as another trial."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isometry
from isometry.trials import Trial, run
from isometry.trials.digests import code_digest, data_digest, function_digest, network_digest
from isometry.trials.stages import plan_stages

_MODULE = '''
"""A module."""
import torch
WIDTH = {width}
class Net(torch.nn.Sequential):
    def forward(self, x):
        return {factor} * super().forward(x.flatten(1))
def build(hidden=WIDTH):
    # {comment}
    return Net(torch.nn.Linear(64, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 10))
'''


def folder_of(path: Path, **changes: object) -> str:
    content = {"width": 8, "factor": 1, "comment": "one", **changes}
    (path / "mine.py").write_text(_MODULE.format(**content))
    sys.modules.pop("mine", None)
    importlib.invalidate_caches()
    trial = Trial("digits", "mine:build", None, pruner=isometry.L1(), ratio=0.5)
    return plan_stages(trial)[0].folder


def test_a_function_by_name_is_another_one_when_its_module_is_edited_but_for_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = folder_of(tmp_path)
    assert first.startswith("mine-build/digits/dense/s0-")
    assert folder_of(tmp_path, comment="two") == first
    assert folder_of(tmp_path, width=9) != first  # another network
    assert folder_of(tmp_path, factor=2) != first  # another class


def test_a_function_by_name_is_pruned_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder_of(tmp_path)
    trial = Trial("digits", "mine:build", None, pruner=isometry.L1(), ratio=0.5, options={"hidden": 12})
    table = run([trial], tmp_path / "runs", jobs=1, progress=False)
    assert list(table["network"]) == ["mine-build"] * 2
    assert list(table["parameters"]) == [64 * 12 + 12 + 12 * 10 + 10, 64 * 6 + 6 + 6 * 10 + 10]


def test_weights_by_name_are_refused_for_networks_of_the_users() -> None:
    with pytest.raises(ValueError, match=r"got pretrain='cifar10', the name of weights, for a network of your own"):
        Trial("digits", nn.Linear(64, 10), "cifar10")


def test_networks_that_differ_in_anything_have_other_digests() -> None:
    def build(stride: int = 1, rate: float = 0.1, weight: float = 1.0) -> nn.Module:
        net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=stride), nn.Dropout(rate))
        nn.init.constant_(net[0].weight, weight)
        nn.init.zeros_(net[0].bias)
        return net

    scaled: Any = build()
    scaled.factor = 2.0
    different = [build(), build(stride=2), build(rate=0.2), build(weight=2.0), build().half(), scaled]
    assert len({network_digest(net) for net in different}) == 6
    assert network_digest(build()) == network_digest(build().eval())
    assert code_digest(build()) is None


def test_the_code_of_classes_and_of_functions_among_their_attributes_counts() -> None:
    def square(x: torch.Tensor) -> torch.Tensor:
        return x * x

    class Own(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

    digests = {code_digest(Own(f)) for f in (square, lambda x: x, torch.relu)}
    assert None not in digests
    assert len(digests) == 3
    assert function_digest(torch.relu) is None


def test_what_a_function_is_bound_to_counts() -> None:
    def build(width: int) -> nn.Module:
        return nn.Linear(width, 2)

    def closing(width: int) -> Any:
        return lambda: build(width)

    assert function_digest(partial(build, 3)) != function_digest(partial(build, 4))
    assert function_digest(closing(3)) != function_digest(closing(4))
    assert function_digest(closing(3)) == function_digest(closing(3))


def test_data_that_differ_in_one_value_have_other_digests(digits: isometry.data.Data) -> None:
    from dataclasses import replace

    inputs = digits.train.inputs.clone()
    inputs[5, 0, 0, 0] += 1
    changed = replace(digits, train=isometry.data.Split(inputs, digits.train.targets))
    cropped = replace(digits, augment=isometry.data.CropFlip(2))
    assert len({data_digest(data) for data in (digits, changed, cropped, replace(cropped, augment=lambda x: x))}) == 4
    assert data_digest(digits) == data_digest(replace(digits))
