"""Pruning in the training loops of Lightning and Accelerate, where these are installed: the same as in a plain loop. Device maps."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import isometry
from isometry.data import Data
from tests.pruners.loops import SHORT, assert_equal, net
from tests.pruners.test_stepwise import X

PRUNERS = {
    "TPP": isometry.TPP(**SHORT),
    "Slimming": isometry.Slimming(epochs=2, strength=1e-2),
}


def prepared(name: str, digits: Data) -> tuple[isometry.Pruning, DataLoader]:
    loader = DataLoader(TensorDataset(*digits.train), batch_size=64)
    return isometry.Pruning(net(), PRUNERS[name], 0.4, inputs=X, steps_per_epoch=len(loader)), loader


def plain(pruning: isometry.Pruning, loader: DataLoader) -> isometry.pruners.Pruned:
    optimizer = torch.optim.AdamW(pruning.model.train().parameters(), lr=1e-3)
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            (F.cross_entropy(pruning.model(x), y) + pruning.loss()).backward()
            pruning.regularize()
            nn.utils.clip_grad_norm_(pruning.model.parameters(), 5.0)
            optimizer.step()
            if pruning.step():
                return pruning.finish()


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.filterwarnings("ignore")
def test_lightning_prunes_like_a_plain_loop(name: str, digits: Data, tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self, pruning: isometry.Pruning) -> None:
            super().__init__()
            self.pruning, self.net = pruning, pruning.model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1]) + self.pruning.loss()

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            self.pruning.regularize()  # after unscaling, before clipping

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            self.trainer.should_stop |= self.pruning.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net.parameters(), lr=1e-3)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    pruning, loader = prepared(name, digits)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=-1, gradient_clip_val=5.0, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Model(pruning), loader)
    other, same = prepared(name, digits)
    expected, steps = plain(other, same), pruning.steps_done
    assert steps == other.steps_done
    assert_equal(pruning.finish().model, expected.model)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_accelerate_prunes_like_a_plain_loop(name: str, parts: int, digits: Data) -> None:
    accelerate = pytest.importorskip("accelerate")
    pruning, loader = prepared(name, digits)
    if parts > 1:
        loader = DataLoader(loader.dataset, batch_size=64 // parts)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts)
    optimizer = torch.optim.AdamW(pruning.model.train().parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(pruning.model, optimizer, loader)
    receded = False
    while not receded:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y) + pruning.loss())
                if accelerator.sync_gradients:
                    pruning.regularize()
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                receded = accelerator.sync_gradients and pruning.step()
                optimizer.zero_grad()
            if receded:
                break
    result = pruning.finish()
    assert result.ratio > 0.3
    if parts == 1:
        assert_equal(result.model, plain(*prepared(name, digits)).model)


@pytest.mark.filterwarnings("ignore")
def test_models_dispatched_by_a_device_map_are_measured_and_pruned_and_offloaded_ones_refused(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    dense, devices = net(), {name: "cpu" for name, _ in net().named_children()}
    mapped = accelerate.dispatch_model(net(), devices, main_device="cpu", force_hooks=True)
    torch.testing.assert_close(isometry.measure(mapped, X).mean_jsv, isometry.measure(dense, X).mean_jsv)
    pruned = [isometry.prune(model, isometry.L1(), 0.5, inputs=X).model for model in (dense, mapped)]
    assert_equal(*pruned)
    repaired = [
        isometry.repair(model, reference=whole, data=X) for model, whole in zip(pruned, (dense, mapped), strict=True)
    ]
    assert_equal(*repaired)
    for offload in (accelerate.cpu_offload, partial(accelerate.disk_offload, offload_dir=tmp_path)):
        with pytest.raises(ValueError, match="hold no values"):
            isometry.measure(offload(net(), execution_device="cpu"), X)
