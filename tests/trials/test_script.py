"""What analysis scripts share."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from isometry.files import read_table
from isometry.trials import script
from tests.trials.examples import trial


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
    parser = script.build_parser("Is it so?\n\nYes.", seeds=3, ratios=(0.5, 0.9), device=True)
    return script.parse(parser, quick_ignores=("ratios", "seeds"))


def write_picture(table: pd.DataFrame, path: Path) -> None:
    path.write_text(f"{len(table)} rows")


def tables(table: pd.DataFrame) -> str:
    return script.format_columns(table, {"a": "A"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: got 0; it takes a whole number of at least 1"),
        (["--jobs", "two"], "--jobs: got two; it takes a whole number"),
        (["--jobs", "-3"], "--jobs: got -3; it takes a whole number of at least 1"),
        (["--ratios", "0.5", "1"], "--ratios: got 1; it takes a fraction removed, above 0 and below 1"),
        (["--ratios", "0"], "--ratios: got 0; it takes a fraction"),
        (["--ratios", "0.8", "0.5", "0.80"], "--ratios: got 0.8 0.5 0.8, of which some are equal; it takes each once"),
        (["--quick", "--seeds", "3"], "--quick: its tiny version has --seeds of its own; leave out one or the other"),
        (["--ratios", "0.5", "--quick", "--seeds", "1"], "--quick: its tiny version has --ratios, --seeds of its own"),
        (["--ratios", "nan"], "--ratios: got nan; it takes a fraction"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        options(monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_a_device_that_is_absent_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        options(monkeypatch, "--device", "cuda")
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_help_shows_the_defaults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(monkeypatch, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "number of seeds (default: 3)" in shown
    assert "each once (default: 0.5 0.9)" in shown
    assert "where networks live (default: cpu)" in shown
    assert "(default: False)" not in shown


def test_trials_are_refused_before_they_train_where_their_state_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("isometry.trials.script.run_tables", None)
    (tmp_path / "file").write_text("")
    output = script.Output.of(
        "name", options(monkeypatch, "--out", str(tmp_path), "--runs", str(tmp_path / "file" / "a"))
    )
    with pytest.raises(SystemExit, match="cannot write to the output folder"):
        output.run_trials([trial()])


def test_every_trial_has_the_columns_of_its_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = script.Output.of("name", options(monkeypatch, "--runs", str(tmp_path), "--jobs", "1"))
    tried = [trial(), replace(trial(), ratio=0.25)]
    table, origin = output.run_trials(tried, [{"method": "first"}, {"method": "second"}])
    assert dict(table.groupby("method")["ratio"].max()) == {"first": trial().ratio, "second": 0.25}
    assert origin["seeds"] == [0]


def test_an_output_writes_four_files_and_redraws_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = script.Output.of("name", options(monkeypatch, "--runs", str(tmp_path), "--quick"), "digits")
    assert output.folder == tmp_path / "name-digits-quick"
    output.write(pd.DataFrame({"a": [1.0, None], "b": ["none", "x"]}), {"seeds": [0]})
    output.publish(write_picture, tables)
    assert output.path("md").read_text() == "| A |\n| --- |\n| 1 |\n|  |\n"
    assert output.path("png").read_text() == "2 rows"
    assert list(output.read()[0]["b"]) == ["none", "x"]
    again = script.Output.of("name", options(monkeypatch, "--redraw", "--out", str(output.folder)))
    assert again.read()[1] == {"seeds": [0]}


def test_redrawing_nothing_and_folders_that_cannot_be_written_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"--redraw found no .*name\.csv. Run the script without it first"):
        script.Output.of("name", options(monkeypatch, "--runs", str(tmp_path), "--redraw"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot write to the output folder"):
        script.Output.of("name", options(monkeypatch, "--out", str(tmp_path / "file" / "below")))


def test_the_rows_of_other_networks_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = script.Output.of("name", options(monkeypatch, "--out", str(tmp_path)))
    origin = {"software": [{"commit": "a"}], "computing_seconds": 1.5}
    output.write(pd.DataFrame({"network": ["vgg-16"], "value": [4]}), origin)  # no provenance by network
    for network, value in (("resnet-56", 1), ("resnet-20", 2), ("resnet-56", 3)):
        output.write_network(pd.DataFrame({"network": [network], "value": [value]}), origin)
    table, merged = output.read()
    assert dict(zip(table["network"], table["value"], strict=True)) == {"resnet-56": 3, "resnet-20": 2}
    assert merged["computing_seconds"] == 3.0
    assert merged["software"] == [{"commit": "a"}]


def test_measurements_can_be_repeated_in_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = iter(range(10))
    parts = {name: lambda quick: [{"a": float(next(values))}] for name in ("one", "two")}
    for arguments in ([], ["--only", "two"]):
        monkeypatch.setattr(sys, "argv", ["analysis", "--out", str(tmp_path), *arguments])
        script.run_measurement("name", "Is it so?", parts, write_picture, tables)
        origin = json.loads((tmp_path / "name.json").read_text())
        (tmp_path / "name.json").write_text(
            json.dumps(origin | {"computing_seconds": origin["computing_seconds"] + 100})
        )
    table = read_table(tmp_path / "name.csv")
    assert dict(zip(table["part"], table["a"], strict=True)) == {"one": 0.0, "two": 2.0}
    assert origin["software"]
    assert origin["computing_seconds"] >= 100  # those of the first time are kept


def test_numbers_are_shown_with_their_spread() -> None:
    assert script.format_spread(pd.Series([1.0, 2.0]), 2) == "1.50 ± 0.71"
    assert script.format_spread(pd.Series([1.0]), 2) == "1.00"
    assert script.format_spread(pd.Series([1.0, 1.0]), 2) == "1.00 ± 0.00"
    assert script.format_spread(pd.Series([1.0, 1.0]), 2, always=False) == "1.00"
    shown = script.format_columns(pd.DataFrame({"x": [4004.0, 0.02904]}), {"x": "X"})
    assert shown.splitlines()[2:] == ["| 4004 |", "| 0.029 |"]
