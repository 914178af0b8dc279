"""Files of text, tables and tensors: written whole or not at all; the provenance of a result."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_writable", "markdown", "read_tensors", "software", "write", "write_table", "write_tensors"]


def check_writable(folder: Path) -> None:
    """Raise an OSError that names `folder` unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({error.strerror}). Name another one, e.g. --runs runs."
        ) from error


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and a header of text to one safetensors file, whole or not at all, and without pickle.

    Tied parameters share memory, which the format does not allow: every name gets a copy of its own.

    Args:
        path: the file; its folder is created where it does not exist.
        tensors: {name: tensor of any shape}, on any device and in any memory layout.
        metadata: {key: text}, the file's header.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    copies = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(copies, partial, dict(metadata))
    os.replace(partial, path)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write_tensors` wrote: {name: tensor}, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no whole safetensors file; the text names the path and the reason.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        raise ValueError(f"{os.fspath(path)} is no whole safetensors file ({error})") from error


def software() -> dict[str, str]:
    """Return the commit of the source tree (with + where it was changed since) and the versions that matter."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", str(here)) else ""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "torch-pruning", "isometry")}
    return {"commit": commit + changed, "python": platform.python_version(), **versions}


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, one row a line."""
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_table(table: pd.DataFrame, origin: dict[str, Any], stem: str | os.PathLike[str]) -> None:
    """Write `<stem>.csv` and `<stem>.json` atomically: the numbers and where they came from."""
    stem = Path(stem)
    check_writable(stem.parent)
    write(stem.with_name(stem.name + ".csv"), table.to_csv(index=False, float_format="%.6g"))
    write(stem.with_name(stem.name + ".json"), json.dumps(origin, indent=1) + "\n")
