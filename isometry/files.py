"""Files of text, tables and tensors: written whole or not at all; the provenance of a result."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "check_writable",
    "digest_tensors",
    "file_digest",
    "make_folder",
    "markdown",
    "read_records",
    "read_table",
    "read_tensors",
    "remove_leftovers",
    "seal",
    "software",
    "unseal",
    "write",
    "write_records",
    "write_table",
    "write_tensors",
]


_DIGEST = "sha256"  # the key under which a record or a header of tensors keeps its digest
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems without it
_PARTIAL = re.compile(r"\..+\.(?P<host>[^.]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")


def check_writable(folder: Path) -> None:
    """Raise an OSError that names `folder` unless files can be written there; remove what dead processes left there."""
    try:
        make_folder(folder)
        probe = _partial(folder / "writable")
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({error.strerror}). Name another one, e.g. folder='runs', or --runs runs "
            "in a shell."
        ) from error
    remove_leftovers(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where absent, so that they outlast a loss of power."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def write(path: Path, content: str | bytes) -> None:
    """Write a file of text or bytes whole or not at all; once this returns, it outlasts a loss of power."""
    _write_bytes(path, content.encode() if isinstance(content, str) else content)


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON objects, one per line, each with its digest; see `seal`."""
    write(path, "".join(json.dumps(seal(record)) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return what `write_records` wrote; an empty list where there is no file.

    Raises:
        ValueError: a line is not what was written; the text names the file. Lines without digest, of earlier versions, are
            taken as they are.
    """
    try:
        return [unseal(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from error


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the SHA-256 digest of its content."""
    content = json.dumps(record, sort_keys=True)
    return {**record, _DIGEST: hashlib.sha256(content.encode()).hexdigest()}


def unseal(record: Any) -> dict[str, Any]:
    """Return what `seal` was given; raise a ValueError where it is something else. Without a digest it is not verified."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    content = {key: value for key, value in record.items() if key != _DIGEST}
    if _DIGEST in record and seal(content) != record:
        raise ValueError("its content does not fit its digest")
    return content


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and a header of text to one safetensors file, whole or not at all, and without pickle.

    The header also holds the SHA-256 digest of tensors and metadata. Tied parameters share memory, which the format does
    not allow: every name gets a copy of its own. Once this returns, the file outlasts a loss of power.

    Args:
        path: the file; its folder is created where it does not exist.
        tensors: {name: tensor of any shape}, on any device and in any memory layout.
        metadata: {key: text}, the file's header.
    """
    path = Path(path)
    make_folder(path.parent)
    copies = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in tensors.items()}
    _write_bytes(path, save(copies, {**metadata, _DIGEST: digest_tensors(copies, metadata)}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `write_tensors` wrote: {name: tensor}, on the CPU, and the metadata.

    A file without a digest (of other software, or of isometry before it wrote digests) is read without that check.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no whole safetensors file, or its content does not fit its digest; the text names the path
            and the reason.
    """
    try:
        content = Path(path).read_bytes()  # read once: another process may replace the file meanwhile
        tensors = dict(sorted(load(content).items()))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own class, which derives from Exception alone
        raise ValueError(f"{os.fspath(path)} is no whole safetensors file ({error})") from error
    metadata = dict(header.get("__metadata__") or {})
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != digest_tensors(tensors, metadata):
        raise ValueError(f"{os.fspath(path)} is damaged: its tensors and metadata do not fit the digest in its header")
    return tensors, metadata


def remove_leftovers(folder: Path) -> None:
    """Delete the partial files in `folder` of processes of this machine that are dead."""
    for path in folder.glob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match and match["host"] == _host() and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()


def _write_bytes(path: Path, content: bytes) -> None:
    """Write to a file of a unique name, bring it to the disk, rename it, and bring that to the disk."""
    partial = _partial(path)
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        message = f"cannot write {path} ({error.strerror}); make room or choose another folder"
        raise OSError(error.errno, message) from error


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    """Return a name beside `path` that no other process, thread or call uses."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", platform.node())


def _alive(pid: int) -> bool:
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def digest_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 digest of names, types, shapes and bytes of tensors, and of the metadata."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def software() -> dict[str, str]:
    """Return the commit of the source tree (with + where it was changed since) and the versions that matter."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout.strip()

    tracked = git("ls-files", "--", Path(__file__).name)  # not the repository of a user who installed the package in it
    commit = (git("rev-parse", "--short=12", "HEAD") if tracked else "") or "unknown"
    changed = "+" if tracked and git("status", "--porcelain", "--untracked-files=no", "--", str(here)) else ""
    versions = {"torch": str(torch.__version__), "numpy": _version("numpy"), "isometry": _version("isometry")}
    return {"commit": commit + changed, "python": platform.python_version(), **versions}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed, for instance
        return "unknown"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as GitHub markdown, one row a line."""
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def read_table(path: Path) -> pd.DataFrame:
    """Return a table written as CSV, its numbers as they were to the last bit; only empty cells are missing values."""
    import pandas as pd  # takes long to import

    exact: dict[str, Any] = {"float_precision": "round_trip"}
    if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1):  # which always is, and deprecates the argument
        exact = {}
    return pd.read_csv(path, keep_default_na=False, na_values=[""], **exact)


def write_table(table: pd.DataFrame, origin: dict[str, Any], stem: str | os.PathLike[str]) -> None:
    """Write `<stem>.csv` and `<stem>.json` atomically: the numbers and where they came from."""
    stem = Path(stem)
    check_writable(stem.parent)
    write(stem.with_name(stem.name + ".csv"), table.to_csv(index=False, float_format="%.6g"))
    write(stem.with_name(stem.name + ".json"), json.dumps(origin, indent=1) + "\n")
