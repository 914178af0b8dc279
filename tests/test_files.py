"""Files of results: tables in Markdown, tensors whole or not at all."""

import errno
import importlib.metadata
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from isometry.files import (
    _partial,
    markdown,
    read_records,
    read_table,
    read_tensors,
    remove_leftovers,
    software,
    write,
    write_records,
    write_table,
    write_tensors,
)


def test_markdown_is_a_table() -> None:
    assert markdown(pd.DataFrame({"a": [1], "b": ["x"]})) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    path = tmp_path / "new" / "file.safetensors"
    write_tensors(path, {"a": matrix, "tied": matrix, "transposed": matrix.T}, {"key": "text"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"key": "text"}
    assert torch.equal(tensors["a"], matrix)
    assert torch.equal(tensors["tied"], matrix)
    assert torch.equal(tensors["transposed"], matrix.T)
    assert [file.name for file in path.parent.iterdir()] == ["file.safetensors"]


def test_a_truncated_file_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"file\.safetensors is no whole safetensors file \(.+\)"):
        read_tensors(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.safetensors")


def test_a_flipped_bit_of_tensors_or_metadata_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.arange(100.0), "b": torch.arange(100.0) + 1}, {"done": "3"})
    whole = path.read_bytes()
    places = [whole.index(b'"done":"3"') + 8, whole.index(b'"b":') + 1, len(whole) - 1, len(whole) - 500]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file\.safetensors is (damaged|no whole safetensors file)"):
            read_tensors(path)


def test_swapped_tensors_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.zeros(4), "b": torch.ones(4)}, {"key": "text"})
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({"a": torch.ones(4), "b": torch.zeros(4)}, path, header)
    with pytest.raises(ValueError, match="do not fit the digest"):
        read_tensors(path)


def test_a_file_without_a_digest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"a": torch.ones(4)}, path, {"key": "text"})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(4))
    assert metadata == {"key": "text"}


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    for write_file in (
        lambda: write(tmp_path / "text", "x"),
        lambda: write_tensors(tmp_path / "tensors", {"a": torch.ones(1)}, {}),
    ):
        calls.clear()
        write_file()
        assert calls == ["file", "rename", "folder"]
    calls.clear()
    write_table(pd.DataFrame({"a": [1]}), {}, tmp_path / "table")
    assert calls == ["file", "rename", "folder"] * 2


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "text", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*text \(No space left on device\); make room"):
        write(tmp_path / "text", "new")
    assert (tmp_path / "text").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_partial_files_of_dead_processes_are_removed_and_those_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    names = []
    for pid in (process.pid, os.getpid()):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        names.append(_partial(tmp_path / "file"))
        names[-1].write_text("")
    remove_leftovers(tmp_path)
    assert [path.exists() for path in names] == [False, True]


def test_records_come_back_and_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_records(path) == []
    write_records(path, [{"epoch": 1, "loss": 0.25}, {"epoch": 2, "loss": math.nan}])
    assert read_records(path)[0] == {"epoch": 1, "loss": 0.25}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(ValueError, match=r"rows\.jsonl is damaged"):
        read_records(path)
    path.write_text('{"epoch": 1}\n')  # of an earlier version
    assert read_records(path) == [{"epoch": 1}]


def test_a_package_without_metadata_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "isometry":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = software()
    assert (found["isometry"], found["numpy"]) == ("unknown", "1.0")
    assert found["torch"] == torch.__version__  # with the build, which the metadata may lack


def test_a_table_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    table = pd.DataFrame({"value": torch.rand(1000, dtype=torch.float64).numpy(), "method": ["None", "NA"] * 500})
    (tmp_path / "rows.csv").write_text(table.assign(empty=float("nan")).to_csv(index=False))
    found = read_table(tmp_path / "rows.csv")
    assert found["empty"].isna().all()
    pd.testing.assert_frame_equal(found.drop(columns="empty"), table, check_exact=True)


def test_a_tensor_without_entries_is_read_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"none": torch.zeros(0, 3), "one": torch.ones(1)}, {})
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert tensors["none"].shape == (0, 3)
