"""sweep: a user's own network and data, several methods, one table."""

import contextlib
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import isometry
from isometry import L1, TPP, Recipe
from isometry.surgery import UnitGroup

TUNE = Recipe(0.05, 2, 64)


def net(width: int = 12) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class Broken(L1):
    def importance(self, context: object, group: UnitGroup) -> Tensor:
        raise RuntimeError("no importance today")


def tensors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 10
    return torch.randn(96, 1, 8, 8, generator=generator) + targets.view(-1, 1, 1, 1) / 5, targets


def sweep(
    network: Any = net, pruners: Any = None, ratios: Any = (0.5,), data: Any = None, **options: Any
) -> pd.DataFrame:
    options = {"seeds": 1, "progress": False, "finetune": TUNE, **options}
    data = tensors() if data is None else data
    return isometry.sweep(network, {"L1": L1()} if pruners is None else pruners, ratios, data, **options)


def test_a_table_has_every_method_ratio_and_seed_and_the_plots_take_it() -> None:
    grown = TPP(delta=0.25, interval=1, stabilize=8, zero_out=1, batch_size=64)
    table = sweep(pruners={"L1": L1(), "L1 + repair": L1(), "TPP": grown}, ratios=[0.25, 0.5], seeds=2, pretrain=TUNE)
    assert list(table["method"].unique()) == ["dense", "L1", "L1 + repair", "TPP"]
    assert len(table) == 2 * (1 + 2 * (3 + 4 + 3))
    assert table["error"].isna().all()
    assert set(table["evaluated_on"]) == {"training data"}
    dense = table[table["method"] == "dense"]
    assert (dense["ratio"] == 0).all()
    assert list(dense["seed"]) == [0, 1]
    assert list(table[table["repair"] == "reconstruct"]["phase"].unique()) == ["pruned", "repaired", "finetune"]
    for y in ("mean_jsv", "accuracy"):
        for draw in (isometry.plots.sweep, isometry.plots.trajectory):
            names = [text.get_text() for text in draw(table, y=y).get_legend().get_texts()]
            assert "dense" in names
            assert len(names) >= 4
    plt.close("all")


def test_a_given_network_is_left_alone_and_starts_every_trial() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = sweep(model, finetune=None, seeds=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    x, y = tensors()
    assert table["accuracy"].iloc[0] == isometry.evaluate(model, (x, y)).accuracy
    assert table["mean_jsv"].iloc[0] == isometry.measure(model, x[:64]).mean_jsv
    pruned = isometry.prune(model, L1(), 0.5, inputs=x[:2]).model
    assert table["mean_jsv"].iloc[1] == isometry.measure(pruned, x[:64]).mean_jsv


def test_a_sweep_goes_on_where_it_was_and_an_edited_network_is_another_one(tmp_path: Path) -> None:
    model = net()
    table = sweep(model, folder=tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    longer = sweep(model, ratios=[0.5, 0.75], folder=tmp_path)
    pd.testing.assert_frame_equal(
        longer[longer["ratio"] != 0.75].dropna(axis=1, how="all"), table.dropna(axis=1, how="all")
    )
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    count = len(list(tmp_path.rglob("done.json")))
    with torch.no_grad():
        model[0].weight[0] += 1
    sweep(model, folder=tmp_path)
    assert len(list(tmp_path.rglob("done.json"))) == count + 3


def test_a_failing_method_is_recorded_with_its_error_and_the_others_go_on() -> None:
    with pytest.warns(UserWarning, match=r"^sweep\(\) finished 1 of 2 trials\. Failed: .*no importance today"):
        table = sweep(pruners={"broken": Broken(), "L1": L1()})
    failed = table[table["method"] == "broken"]
    assert list(failed["phase"]) == ["pruned"]
    assert failed["error"].iloc[0].endswith("pruned: RuntimeError: no importance today")  # no file that is gone
    assert list(table[table["method"] == "L1"]["phase"]) == ["pruned", "finetune", "finetune"]
    assert len(isometry.plots.sweep(table).get_legend().get_texts()) == 2  # L1 and dense
    plt.close("all")


def test_what_a_notebook_defines_gives_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    cell = (
        "import torch, isometry\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x.flatten(1)).relu())\n"
        "class Largest(isometry.L1):\n"
        "    def importance(self, context, group):\n"
        "        return -super().importance(context, group)\n"
    )
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(cell, scope)  # no source to be found, as in an interpreter
    own = scope["Own"]
    tables = [
        sweep(
            lambda: own(),
            {"own": scope["Largest"](), "L1": L1()},
            folder=tmp_path / str(jobs),
            jobs=jobs,
            seeds=2,
        )
        for jobs in (1, 2)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["error"].isna().all()
    assert not list((tmp_path / "2").glob(".*.safetensors"))


def test_what_cannot_be_sent_to_other_processes_is_refused_before_anything_runs(tmp_path: Path) -> None:
    model = net()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^sweep\(\) got a network of class Sequential, which cannot be copied"):
        sweep(model)
    lock = threading.Lock()

    def locked() -> nn.Module:
        with lock:
            return net()

    with pytest.raises(TypeError, match=r"got the network, which cannot be sent .*lock.*pass jobs=1"):
        sweep(locked, jobs=2, folder=tmp_path)
    assert not list(tmp_path.rglob("done.json"))
    assert len(sweep(locked)) == 4


def test_bars_move_with_steps() -> None:
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        sweep(progress=True, pretrain=TUNE)
    assert "fine-tuning: 100%" in shown.getvalue()
    assert "4/4" in shown.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": [0.5, 1.0]}, r"got ratios=\[0\.5, 1\.0\]; it takes fractions of units removed in \(0, 1\), e\.g\. sweep"),
        ({"ratios": [0]}, r"fractions of units removed in \(0, 1\)"),
        ({"ratios": []}, "fractions of units removed"),
        ({"ratios": "0.5"}, "fractions of units removed"),
        ({"ratios": [0.8, 0.8]}, "of which some are equal"),
        ({"pruners": {}}, "got no pruners; it takes {label: pruner}"),
        ({"pruners": L1()}, "got pruners of type L1"),
        ({"pruners": {"L1": L1}}, r"got the class L1 as 'L1'; it takes an instance, e\.g\. {'L1': isometry.L1\(\)}"),
        ({"pruners": {"a": 3}}, "got int as 'a'; it takes a pruner"),
        ({"pruners": {"dense": L1()}}, "got the label 'dense'"),
        ({"pruners": {"L1 + magic": L1()}}, r"whose end names no repair; it takes 'recover', .*'orthp'.* '{L1 \+|L1 \+ repair"),
        ({"seeds": 0}, "got seeds=0; it takes how many"),
        ({"seeds": [1, 1]}, r"got seeds=\[1, 1\]"),
        ({"jobs": -3}, "got jobs=-3; it takes a number of processes of at least 1"),
        ({"finetune": 3}, "got finetune=3; it takes a Recipe or None"),
        ({"keep": "all"}, "got keep='all'"),
        ({"keep": "weights"}, "got keep='weights' without a folder"),
        ({"network": "resnet-21"}, r"got the network 'resnet-21'; it takes conv-4, .*package\.module:function"),
        ({"network": nn.Linear}, "got the class Linear as the network; it takes a torch module, a function"),
        ({"network": 3}, "got int as the network"),
        ({"network": lambda: 3}, "got the factory .*lambda, which returned int; it takes a function that returns a torch module"),
        ({"network": lambda width: net(width)}, r"which cannot be called as .*missing a required argument: 'width'"),
        ({"network": "no_such_module:build"}, r"no_such_module cannot be imported \(ModuleNotFoundError"),
        ({"network": "tests.models:no_such"}, "but tests.models has no no_such; it has .*e.g. 'package.module:function'"),
        ({"network": "tests.trials.test_sweeping:TUNE"}, "which is no function but Recipe"),
        ({"data": "mnisty"}, "got the data 'mnisty'; it takes cifar10"),
        ({"data": "digits", "test": tensors()}, "got test= with the data 'digits', which have a test part"),
        ({"data": (torch.ones(2, 1, 8, 8), torch.ones(3).long())}, "got 2 inputs and 3 targets"),
        ({"data": (torch.ones(0, 1, 8, 8), torch.ones(0).long())}, "got data without samples"),
        ({"data": iter([tensors()])}, "got data that can be read only once"),
        ({"data": []}, "gives no batches"),
        ({"data": 3}, "got data of type int"),
        ({"test": 3}, "got data of type int"),
        ({"data": ((torch.ones(4, 3), torch.ones(4, 3)), torch.arange(4))}, "whose inputs are of type tuple; it takes one tensor"),
        ({"data": (torch.ones(4, 3, 8, 8), torch.arange(4))}, r"inputs have the shape \(3, 8, 8\) .* which the network refuses \(RuntimeError"),
        ({"network": lambda: nn.Sequential(nn.Flatten(0), nn.Linear(128, 10))}, r"returned a tensor of shape \(10,\) for 2 inputs"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isometry.trials.stages.train", None)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        sweep(**changes)
    assert str(caught.value).startswith("sweep() got")
    assert type(caught.value) in (ValueError, TypeError)


def loader(shuffle: bool = True, generator: torch.Generator | None = None) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors()), batch_size=32, shuffle=shuffle, generator=generator
    )


def test_loaders_give_the_same_whatever_was_read_from_them_before(tmp_path: Path) -> None:
    own = loader(generator=torch.Generator().manual_seed(3))
    state = own.generator.get_state()
    pruners = {"Random": isometry.Random(), "L1": L1()}
    table = sweep(pruners=pruners, data=own, folder=tmp_path / "a", pretrain=TUNE)
    assert torch.equal(own.generator.get_state(), state)
    assert list(table["dataset"].unique()) == ["DataLoader"]
    alone = sweep(pruners={"L1": L1()}, data=own, folder=tmp_path / "b", pretrain=TUNE)
    both = table[table["method"] != "Random"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)
    parallel = sweep(pruners=pruners, data=own, folder=tmp_path / "c", pretrain=TUNE, jobs=2)
    pd.testing.assert_frame_equal(parallel, table)
    count = len(list((tmp_path / "a").rglob("done.json")))
    sweep(
        pruners=pruners, data=loader(generator=torch.Generator().manual_seed(3)), folder=tmp_path / "a", pretrain=TUNE
    )
    assert len(list((tmp_path / "a").rglob("done.json"))) == count


def test_a_regression_is_swept_by_its_own_loss_and_metric() -> None:
    def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()

    x = torch.randn(64, 4)
    y = x.square().sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    table = sweep(model, data=(x, y), loss=nn.functional.mse_loss, metric=absolute)
    assert table["accuracy"].isna().all()
    expected = isometry.evaluate(model, (x, y), loss=nn.functional.mse_loss, metric=absolute)
    assert table["loss"].iloc[0] == expected.loss
    assert table["metric"].iloc[0] == expected.metric
    tuned = sweep(model, data=(x, y), finetune=Recipe(0.05, 2, 64, loss=nn.functional.mse_loss))
    assert list(tuned["loss"]) == list(table["loss"])
    with pytest.warns(UserWarning, match="cross-entropy takes logits"):
        assert sweep(model, data=(x, y))["error"].notna().all()


def test_numbers_may_be_arrays() -> None:
    table = sweep(ratios=np.array([0.25, 0.5]), seeds=np.arange(2), finetune=None)
    assert set(table["seed"]) == {0, 1}
    assert set(table["ratio"]) == {0.0, 0.25, 0.5}


def test_a_factory_that_builds_something_else_every_time_is_refused() -> None:
    calls: list[int] = []

    def growing() -> nn.Module:
        calls.append(1)
        return net(10 + len(calls))

    with pytest.raises(
        ValueError, match=r"^sweep\(\) got the factory .*growing, which builds different networks with one seed"
    ):
        sweep(growing)
