"""The folder in which commands are run."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import isometry
from tests.command.workplace import MODULE, SHAPE, build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, weights of several kinds, and inputs, in which the command is run."""
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").write_text(MODULE)
    model = build()
    save_file(model.state_dict(), "dense.safetensors")
    pruned = isometry.prune(model, isometry.L1(), 0.5)
    isometry.save(pruned, "l1.safetensors")
    state = {f"module.{name}": value for name, value in pruned.model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, "ddp.pt")
    x = torch.randn(12, *SHAPE)
    save_file({"inputs": x, "targets": torch.arange(12) % 10}, "x.safetensors")
    (tmp_path / "junk").write_bytes(b"neither the one nor the other")
    return tmp_path
