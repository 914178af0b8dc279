"""Finished stages are believed for their digests, not for existing."""

import json
import warnings
from pathlib import Path

import pytest

from isometry.files import read_tensors, seal
from isometry.trials import record, run
from tests.trials.examples import trial


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run([trial()], tmp_path, jobs=1, progress=False)
    return tmp_path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def content(path: Path) -> str:
    """Return what a file says; the order of entries in the header of tensors is arbitrary."""
    if path.suffix != ".safetensors":
        return path.read_text()
    tensors, metadata = read_tensors(path)
    return repr(sorted((name, tensor.tolist()) for name, tensor in tensors.items())) + repr(sorted(metadata.items()))


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("l1-0.5/plain/*/*/rows.csv", -30),
        ("dense/*/rows.csv", -30),
        ("l1-0.5/s0*/model.safetensors", -1),
        ("l1-0.5/s0*/history.csv", 0),
        ("dense/*/done.json", 20),
    ],
)
def test_what_does_not_fit_its_digest_is_said_and_computed_again(finished: Path, pattern: str, place: int) -> None:
    (path,) = finished.rglob(pattern)
    whole = content(path)
    flip(path, place)
    with pytest.warns(UserWarning, match=rf"computes again what is damaged: .*{path.parent.name}.{path.name}"):
        run([trial()], finished, jobs=1, progress=False)
    if path.name != "done.json":  # that holds seconds
        assert content(path) == whole


def test_a_missing_or_empty_file_is_computed_again(finished: Path) -> None:
    rows = next(finished.rglob("dense/*/rows.csv"))
    next(finished.rglob("l1-0.5/s0*/model.safetensors")).unlink()
    rows.write_text("")
    with pytest.warns(UserWarning, match=r"dense.*rows\.csv does not fit.*model\.safetensors is missing"):
        run([trial()], finished, jobs=1, progress=False)
    assert rows.read_text()


def test_a_stage_swapped_with_another_is_computed_again(finished: Path) -> None:
    run([trial(seed=1)], finished, jobs=1, progress=False)
    first, second = finished.rglob("dense/*/done.json")
    for file in first.parent.glob("[a-z]*"):
        file.write_bytes((second.parent / file.name).read_bytes())
    with pytest.warns(UserWarning, match="is of other settings"):
        run([trial(), trial(seed=1)], finished, jobs=1, progress=False)


def test_a_finished_folder_that_is_read_only_is_read_back(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "folder")

    for name in ("mkdir", "touch", "unlink", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("isometry.files._write_bytes", refuse)
    assert len(run([trial()], finished, jobs=1, progress=False)) == 4


def rewrite(path: Path, **software: str) -> None:
    found = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    found["software"] |= software
    path.write_text(json.dumps(seal(found)))


def test_a_folder_of_several_versions_is_said_once(finished: Path) -> None:
    rewrite(next(finished.rglob("dense/*/done.json")), torch="2.4.0")
    with pytest.warns(UserWarning, match=r"results are of several versions: torch .*2\.4\.0.*new folder") as caught:
        run([trial()], finished, jobs=1, progress=False)
    assert len(caught) == 1


def test_a_folder_of_an_earlier_version_is_read_where_it_can_be_and_said(finished: Path) -> None:
    for path in finished.rglob("done.json"):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({"seconds": found["seconds"], **found["software"]}))
    with pytest.warns(UserWarning, match="3 stages are of an isometry that wrote no digests"):
        table = run([trial()], finished, jobs=1, progress=False)
    assert len(table) == 4
    next(finished.rglob("dense/*/rows.csv")).write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run([trial()], finished, jobs=1, progress=False)
    assert any("computes again what is damaged" in str(warning.message) for warning in caught)


def test_a_stage_that_is_absent_is_neither_recorded_nor_damaged(tmp_path: Path) -> None:
    from isometry.trials.stages import plan_stages

    assert record.find(plan_stages(trial())[0], tmp_path) == record.Finding()
