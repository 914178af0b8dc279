"""Pruning inside a training loop of the user's own."""

import copy
import dataclasses
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isometry
from isometry import L1, TPP, GReg, GReg2, Polarization, Pruning, Random, RecedingBN, Slimming, prune
from isometry.pruners import PruningContext, Stage
from isometry.surgery import Selection, remove, transfer_optimizer_state
from isometry.training.recipe import Recipe
from tests.models import HardCoded
from tests.pruners.loops import SHORT, assert_equal, batches, net, run, run_like_prune

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SHORT_GREG: dict[str, Any] = {**SHORT, "zero_out": None, "pick_delta": 0.02, "pick": 0.1}
SPARSE: dict[str, Any] = {"epochs": 3, "lr": 0.05, "strength": 1e-3}


@pytest.mark.parametrize(
    "pruner",
    [
        TPP(**SHORT),
        GReg(**{**SHORT, "zero_out": None}, magnitude_ratio=3.0),
        GReg2(**SHORT_GREG),
        Slimming(**SPARSE),
        Polarization(**SPARSE),
        RecedingBN(**SPARSE),
    ],
    ids=lambda pruner: type(pruner).__name__,
)
def test_a_loop_that_does_what_train_does_gives_what_prune_gives(
    pruner: isometry.Pruner, digits: isometry.data.Data
) -> None:
    model = net("bounded" if isinstance(pruner, RecedingBN) else "batch")
    before = copy.deepcopy(model)
    whole = prune(model, pruner, 0.5, data=digits, progress=False)
    if isinstance(pruner, GReg | TPP):
        recipe = Recipe(pruner.lr, 1, pruner.batch_size, weight_decay=pruner.weight_decay, schedule=None)
    else:
        recipe = pruner.recipe()
    length = -(-len(digits.train.inputs) // recipe.batch_size)
    pruning = Pruning(model, pruner, 0.5, inputs=X, steps_per_epoch=length)
    stepped = run_like_prune(pruning, digits.train, recipe)
    assert stepped.plan == whole.plan
    assert (stepped.before, stepped.after, stepped.left_alone) == (whole.before, whole.after, whole.left_alone)
    assert_equal(stepped.model, whole.model)
    assert_equal(model, before)


@pytest.mark.parametrize("pruner", [L1(), Random(), RecedingBN().without_training()], ids=str)
def test_pruners_that_do_not_train_are_done_at_once(pruner: isometry.Pruner) -> None:
    model = net("bounded")
    pruning = Pruning(model, pruner, 0.5, inputs=X, seed=3)
    assert (pruning.steps, pruning.progress, pruning.stage) == (0, 1.0, None)
    assert pruning.step()
    assert float(pruning.loss()) == 0
    pruning.regularize()
    assert "nothing to train" in str(pruning)
    whole = prune(model, pruner, 0.5, inputs=X, seed=3)
    assert_equal(pruning.finish().model, whole.model)


def test_it_says_how_many_steps_it_takes(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), GReg(**{**SHORT, "zero_out": None}, magnitude_ratio=1.3), 0.5, inputs=X)
    assert str(pruning).startswith(
        "GReg: 0 of at most 70 steps done; 50.0% of the units selected; stage after_selection"
    )
    assert pruning.plan == prune(net(), L1(), 0.5).plan
    optimizer = torch.optim.SGD(pruning.model.parameters(), lr=5e-2)
    run(pruning, batches(digits.train), optimizer, steps=7)
    assert (pruning.steps_done, pruning.progress) == (7, 0.1)
    assert "phase grow, strength 0.15, magnitude_ratio" in str(pruning)
    run(pruning, batches(digits.train), optimizer)
    assert pruning.steps_done == pruning.steps < 70  # the magnitude ratio ended the growth
    assert repr(pruning).endswith("the units have receded: call finish()")
    pruning.finish()
    assert str(pruning).endswith("finished")


def test_greg_2_counts_both_stages_and_selects_between_them(digits: isometry.data.Data) -> None:
    pruner = GReg2(**SHORT_GREG, magnitude_ratio=None)
    pruning = Pruning(net(), pruner, 0.5, inputs=X)
    assert (pruning.steps, pruning.stage, pruning.plan) == (11 + 36 + 30, "before_selection", None)
    optimizer = torch.optim.SGD(pruning.model.parameters(), lr=1e-3)
    run(pruning, batches(digits.train), optimizer)
    assert (pruning.steps_done, pruning.stage) == (11, "after_selection")
    assert pruning.plan is not None
    run(pruning, batches(digits.train), optimizer)
    assert (pruning.steps_done, pruning.steps, pruning.stage) == (77, 77, None)


def test_further_steps_keep_the_selection_and_the_zeros(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), TPP(**SHORT), 0.5, inputs=X)
    optimizer, stream = torch.optim.SGD(pruning.model.parameters(), lr=1e-3), batches(digits.train)
    run(pruning, stream, optimizer)
    plan = pruning.plan
    for _ in range(3):
        run(pruning, stream, optimizer, steps=1)
    assert pruning.steps_done == pruning.steps + 3
    (layer, units), *_ = plan.removed.items()
    assert float(pruning.model.get_submodule(layer).weight[list(units)].detach().abs().max()) == 0
    assert pruning.finish().plan == plan


def test_adamw_label_smoothing_and_clipping_drive_the_units_to_zero(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), TPP(**SHORT), {"features.*": 0.5}, inputs=X)
    optimizer = torch.optim.AdamW(pruning.model.parameters(), lr=1e-3)
    criterion, stream = nn.CrossEntropyLoss(label_smoothing=0.1), batches(digits.train)
    while True:
        x, y = next(stream)
        loss = criterion(pruning.model(x), y) + pruning.loss()
        optimizer.zero_grad()
        loss.backward()
        pruning.regularize()
        nn.utils.clip_grad_norm_(pruning.model.parameters(), 1.0)
        optimizer.step()
        if pruning.step():
            break
    dense = copy.deepcopy(pruning.model).eval()
    pruned = pruning.finish()
    x = digits.validation.inputs[:20]
    torch.testing.assert_close(pruned.model(x), dense(x), rtol=1e-4, atol=1e-5)  # the units had no effect any more
    assert pruned.ratio == 0.5


def test_a_grad_scaler_and_autocast_change_nothing_but_rounding(digits: isometry.data.Data) -> None:
    models = {}
    for scaled in (True, False):
        pruning = Pruning(net(), TPP(**SHORT), 0.5, inputs=X)
        optimizer = torch.optim.SGD(pruning.model.parameters(), lr=1e-3, momentum=0.9)
        scaler, stream = torch.amp.GradScaler("cpu", enabled=scaled), batches(digits.train)
        while True:
            x, y = next(stream)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(pruning.model(x).float(), y) + pruning.loss()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            pruning.regularize()
            scaler.step(optimizer)
            scaler.update()
            if pruning.step():
                break
        models[scaled] = pruning.finish().model
    for one, other in zip(models[True].parameters(), models[False].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # a power of two scales bfloat16 almost exactly


@pytest.mark.parametrize(
    "pruner",
    [TPP(**SHORT), GReg(**{**SHORT, "zero_out": None}, magnitude_ratio=2.0), RecedingBN(**SPARSE)],
    ids=lambda pruner: type(pruner).__name__,
)
def test_accumulated_gradients_give_what_whole_batches_give(
    pruner: isometry.Pruner, digits: isometry.data.Data
) -> None:
    results = {}
    for parts in (1, 4):
        model = isometry.networks.build("mlp-7-relu", seed=0, input_shape=(1, 8, 8), widths=(8, 6)).double()
        if isinstance(pruner, RecedingBN):  # in eval mode: statistics of parts are not those of the whole
            model = net("bounded").double()
        pruning = Pruning(model, pruner, 0.5, inputs=X.double(), steps_per_epoch=8)
        optimizer = torch.optim.SGD(pruning.model.parameters(), lr=1e-2, momentum=0.9)
        pruning.model.eval()
        for x, y in itertools.islice(batches(digits.train), 100):
            optimizer.zero_grad()
            for inputs, targets in zip(x.double().chunk(parts), y.chunk(parts), strict=True):
                loss = F.cross_entropy(pruning.model(inputs), targets, reduction="sum") / len(y)
                (loss + pruning.loss() / parts).backward()
            pruning.regularize()
            optimizer.step()
            if pruning.step():
                break
        results[parts] = pruning.steps_done, pruning.finish()
    (steps, whole), (same_steps, parted) = results.values()
    assert (steps, whole.plan) == (same_steps, parted.plan)
    for one, other in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_averaged_weights_are_pruned_by_the_same_plan(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), TPP(**SHORT), 0.5, inputs=X)
    ema = AveragedModel(pruning.model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer, stream = torch.optim.SGD(pruning.model.parameters(), lr=1e-3), batches(digits.train)
    while pruning.stage:
        run(pruning, stream, optimizer, steps=1)
        ema.update_parameters(pruning.model)
    separate = remove(ema.module, pruning.plan, X)
    pruning.model.load_state_dict(ema.module.state_dict())
    assert_equal(pruning.finish().model, separate)


def test_a_compiled_model_is_pruned_to_the_bit(digits: isometry.data.Data) -> None:
    models = []
    for compiled in (False, True):
        pruning = Pruning(net(), TPP(**SHORT), 0.5, inputs=X)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own
            model = torch.compile(pruning.model, backend="eager") if compiled else pruning.model
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for x, y in batches(digits.train):
                optimizer.zero_grad()
                (F.cross_entropy(model(x), y) + pruning.loss()).backward()
                pruning.regularize()
                optimizer.step()
                if pruning.step():
                    break
        models.append(pruning.finish().model)
    assert_equal(*models)


def test_the_model_keeps_its_shape_so_that_the_optimizer_can_be_carried_over(digits: isometry.data.Data) -> None:
    pruning = Pruning(net(), TPP(**SHORT), 0.5, inputs=X)
    optimizer, stream = torch.optim.Adam(pruning.model.parameters(), lr=1e-3), batches(digits.train)
    run(pruning, stream, optimizer)
    trained = copy.deepcopy(pruning.model)
    pruned = pruning.finish()
    assert_equal(pruning.model, trained)
    transferred = transfer_optimizer_state(optimizer, pruning.model, pruned)
    x, y = next(stream)
    F.cross_entropy(pruned.model.train()(x), y).backward()
    transferred.step()


def test_a_model_that_is_moved_is_followed(digits: isometry.data.Data) -> None:
    models = []
    for early in (True, False):
        model = net().double() if early else net()
        pruning = Pruning(model, TPP(**SHORT), 0.5, inputs=X)
        pruning.model.double()
        optimizer = torch.optim.SGD(pruning.model.parameters(), lr=1e-3)
        run(pruning, ((x.double(), y) for x, y in batches(digits.train)), optimizer)
        models.append(pruning.finish().model)
    assert_equal(*models)


@pytest.mark.parametrize(
    "pruner", [TPP(**SHORT), GReg2(**SHORT_GREG), Slimming(**SPARSE)], ids=lambda p: type(p).__name__
)
def test_a_model_that_is_moved_to_a_device_is_followed(
    pruner: isometry.Pruner, digits: isometry.data.Data, cuda: torch.device
) -> None:
    pruning = Pruning(net(), pruner, 0.5, inputs=X, steps_per_epoch=5)
    pruning.model.to(cuda)
    optimizer = torch.optim.SGD(pruning.model.parameters(), lr=1e-3)
    while pruning.stage:
        run(pruning, ((x.to(cuda), y.to(cuda)) for x, y in batches(digits.train)), optimizer)
    assert pruning.loss().is_cuda
    assert all(p.is_cuda for p in pruning.finish().model.parameters())


@dataclasses.dataclass(frozen=True)
class Decorrelated(L1):
    """A pruner of the user's: the smallest units, after two epochs of training with a regularizer."""

    trains = True

    def stage_after_selection(self, context: PruningContext, selection: Selection) -> Stage | None:
        recipe = Recipe(0.01, 2, 64, regularizer=isometry.KernOrth(1e-2))
        return Stage("after_selection", recipe, 2 * context.epoch_length(recipe))


def test_a_pruner_of_ones_own_works_in_both(digits: isometry.data.Data) -> None:
    whole = prune(net(), Decorrelated(), 0.5, data=digits, progress=False)
    assert list(whole.history["stage"]) == ["after_selection"] * 2
    length = -(-len(digits.train.inputs) // 64)
    pruning = Pruning(net(), Decorrelated(), 0.5, inputs=X, steps_per_epoch=length)
    stepped = run_like_prune(pruning, digits.train, Recipe(0.01, 2, 64))
    assert_equal(stepped.model, whole.model)


def test_a_share_of_the_flops_can_be_requested() -> None:
    pruning = Pruning(net(), L1(), flops=0.4, inputs=X)
    assert_equal(pruning.finish().model, prune(net(), L1(), flops=0.4, inputs=X).model)


def test_units_can_be_removed_early(digits: isometry.data.Data) -> None:
    for pruner in (TPP(**SHORT), Slimming(**SPARSE)):
        pruning = Pruning(net(), pruner, 0.5, inputs=X, steps_per_epoch=10)
        run(pruning, batches(digits.train), torch.optim.SGD(pruning.model.parameters(), lr=1e-3), steps=3)
        assert pruning.finish(early=True).ratio == pytest.approx(0.5, abs=0.1)


def test_the_warning_points_to_the_callers_line() -> None:
    with pytest.warns(
        UserWarning, match=r"Pruning\(\) leaves alone what cannot be cut exactly: The units of one"
    ) as record:
        Pruning(HardCoded(), L1(), 0.5, inputs=torch.randn(2, 3, 5, 5))
    assert record[0].filename == __file__
