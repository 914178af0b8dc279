"""What all analysis scripts share: their command line, their files, numbers as text.

A script is a question. Its module defines `tables(table) -> str` (all results as markdown), `short(table) -> str` (those for a
README) and `draw(table, path)`; its `main` computes the table unless `--redraw` is given:

    options = script.parse(script.build_parser(__doc__, seeds=3))
    output = script.Output.of("my_analysis", options)
    if not options.redraw:
        output.write(*output.run_trials(trials(options.seeds)))
    output.publish(draw, tables)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from isometry.errors import join_names
from isometry.files import check_writable, markdown, read_table, software, write, write_table
from isometry.measurement.measuring import interrupts_raised
from isometry.trials.arguments import build_parser, parse, positive, ratio
from isometry.trials.connection import connect
from isometry.trials.extension import Written, join_origins, read_written
from isometry.trials.manner import Manner
from isometry.trials.provenance import describe_origin
from isometry.trials.runner import run_tables
from isometry.trials.trial import Trial

__all__ = [
    "Output",
    "Row",
    "build_parser",
    "format_columns",
    "format_spread",
    "parse",
    "positive",
    "ratio",
    "run_measurement",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """The files of an analysis: <name>.csv (numbers), .json (provenance), .md (tables) and .png (picture).

    Attributes:
        folder: where they are.
        name: the analysis.
        options: of its command line.
    """

    folder: Path
    name: str
    options: argparse.Namespace

    @classmethod
    def of(cls, name: str, options: argparse.Namespace, variant: str = "") -> Output:
        """Return the files at --out, else in a folder of --runs named by analysis and variant.

        Exits with a message where the folder cannot be written, or `--redraw` finds no table.
        """
        parts = [name, *filter(None, [variant, "quick" if options.quick else ""])]
        output = cls(options.out or options.runs / "-".join(parts), name, options)
        if options.redraw and not output.path("csv").exists():
            raise SystemExit(f"--redraw found no {output.path('csv')}. Run the script without it first.")
        try:
            check_writable(output.folder)
        except OSError as error:
            raise SystemExit(str(error)) from error
        return output

    def path(self, suffix: str) -> Path:
        """Return the file with this suffix, e.g. "csv"."""
        return self.folder / f"{self.name}.{suffix}"

    def run_trials(
        self,
        trials: Sequence[Trial],
        labels: Sequence[Row] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        fixed: Sequence[str] = ("dataset",),
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Run trials, each stage once; return the table of those that are finished, and its provenance.

        Where time ends before the trials do, a line says what remains. With `--extend` those in the written table are not
        run, and all its rows come first.

        Args:
            trials: what to run.
            labels: further columns of every trial's rows.
            ranks: trials of a lower rank come first.
            fixed: columns that have one value in the table; another one is not added.
        """
        labels = labels or [{}] * len(trials)
        written, lacking = self._read_written(trials, labels, fixed)
        if written and not any(lacking):
            return written.table, written.origin
        run, own = list(itertools.compress(trials, lacking)), itertools.compress(labels, lacking)
        with self._manner(ranks if ranks is None else list(itertools.compress(ranks, lacking))) as how:
            tables = run_tables(run, how, "run")
        kept = [
            (trial, table.assign(**label)) for trial, table, label in zip(run, tables, own, strict=True) if len(table)
        ]
        if remaining := [trial.key for trial, table in zip(run, tables, strict=True) if not len(table)]:
            print(
                f"{len(kept)} of {len(run)} trials are finished. The same command goes on with {join_names(remaining)}."
            )
        if not kept:
            return (written.table, written.origin) if written else (pd.DataFrame(), {})
        origin = describe_origin([trial for trial, _ in kept], self.options.runs)
        if not written:
            return pd.concat([table for _, table in kept], ignore_index=True), origin
        parts = [written.table, *(written.rename(*each) for each in kept)]
        return pd.concat(parts, ignore_index=True), join_origins(written.origin, origin)

    @contextlib.contextmanager
    def _manner(self, ranks: Sequence[int] | None) -> Iterator[Manner]:
        """Lend how trials are run, with a connection to the cluster where there is one."""
        options, device = self.options, getattr(self.options, "device", "cpu")
        with contextlib.ExitStack() as stack:
            try:
                check_writable(options.runs)
                client = stack.enter_context(connect(options.cluster))
            except OSError as error:
                raise SystemExit(str(error)) from error
            yield Manner(
                options.runs,
                options.jobs or (1 if options.quick else None),  # processes start longer than tiny trials take
                device,
                progress=True,
                client=client,
                capture=device == "cuda" and not options.eager,
                deadline=options.deadline,
                ranks=ranks,
            )

    def _read_written(
        self, trials: Sequence[Trial], labels: Sequence[Row], fixed: Sequence[str]
    ) -> tuple[Written | None, list[bool]]:
        """Return the table that --extend adds to, and of each trial whether it lacks it."""
        if not getattr(self.options, "extend", False) or not trials:
            return None, [True] * len(trials)
        csv, network = self.path("csv"), labels[0].get("network", trials[0].network_name)
        try:
            written = read_written(csv, network)
            lacking = [not (written and written.has(*pair, fixed)) for pair in zip(trials, labels, strict=True)]
        except ValueError as error:
            raise SystemExit(f"--extend got {csv}: {error}") from error
        if written:
            print(f"{lacking.count(False)} of {len(trials)} trials are in {csv}, whose rows are kept.")
        else:
            print(f"--extend found no trials of {network} in {csv}; all {len(trials)} are run.")
        return written, lacking

    def write(self, table: pd.DataFrame, origin: dict[str, Any]) -> None:
        """Write the table and its provenance."""
        write_table(table, origin, self.folder / self.name)

    def write_network(self, table: pd.DataFrame, origin: dict[str, Any]) -> None:
        """Write the rows of one network, if any; those of others in the written table are kept, with their provenance."""
        if not len(table):
            return
        network, origins = table["network"].iloc[0], {}
        if self.path("csv").exists():
            written, kept = self.read()
            origins = kept.get("networks", {})  # a table without them is replaced
            others = written[(written["network"] != network) & written["network"].isin(list(origins))]
            table = pd.concat([table, others], ignore_index=True)
            table = table.sort_values("network", ascending=False, kind="stable")
        origins |= {network: origin}
        joined = functools.reduce(join_origins, origins.values())
        self.write(table, {"networks": origins, **{name: joined[name] for name in ("software", "computing_seconds")}})

    def read(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return the written table and its provenance."""
        return read_table(self.path("csv")), json.loads(self.path("json").read_text())

    def publish(self, draw: Callable[[pd.DataFrame, Path], None], tables: Callable[[pd.DataFrame], str]) -> None:
        """Draw the written table, write it as markdown, and print that; exit where no trial is finished yet."""
        if not self.path("csv").exists():
            raise SystemExit(f"no trial is finished, so that there is no {self.path('csv')} yet")
        table, _ = self.read()
        draw(table, self.path("png"))
        text = tables(table)
        write(self.path("md"), text + "\n")
        print(f"{text}\n\nwrote {self.folder / self.name}.csv, .json, .md, .png")


def run_measurement(
    name: str,
    doc: str | None,
    parts: Mapping[str, Callable[..., list[Row]]],
    draw: Callable[[pd.DataFrame, Path], None],
    tables: Callable[[pd.DataFrame], str],
    *,
    device: bool = False,
) -> None:
    """Run a script that measures instead of running trials. The table is written after every part.

    Args:
        name: of the analysis.
        doc: the script's docstring.
        parts: {value of the column `part`: function of --quick, and of --device where that is taken, that returns the rows}.
        draw: see `Output.publish`.
        tables: see `Output.publish`.
        device: whether --device is taken; what is measured on a GPU has files of its own.
    """
    parser = build_parser(doc, device=device)
    parser.add_argument("--only", nargs="+", choices=list(parts), help="measure these parts again, keep the others")
    options = parse(parser)
    if device:
        parts = {key: functools.partial(part, device=options.device) for key, part in parts.items()}
    output = Output.of(f"{name}-cuda" if device and options.device == "cuda" else name, options)
    if not output.options.redraw:
        _measure_parts(parts, output)
    output.publish(draw, tables)


@interrupts_raised()
def _measure_parts(parts: Mapping[str, Callable[[bool], list[Row]]], output: Output) -> None:
    only, start = output.options.only or list(parts), time.perf_counter()
    kept, used, before = pd.DataFrame(columns=["part"]), [], 0.0
    if output.options.only and output.path("csv").exists():
        kept, origin = output.read()
        kept, used, before = kept[~kept["part"].isin(only)], origin["software"], origin["computing_seconds"]
    rows: list[Row] = []
    for name in tqdm(only, desc="parts", unit="part"):
        rows += [{"part": name, **row} for row in parts[name](output.options.quick)]
        origin = {
            "software": [entry for entry in used if entry != software()] + [software()],
            "computing_seconds": round(before + time.perf_counter() - start, 1),
            "threads": torch.get_num_threads(),
        }
        if tables := [table for table in (kept, pd.DataFrame(rows)) if len(table)]:
            output.write(pd.concat(tables, ignore_index=True), origin)


def format_spread(values: pd.Series, digits: int, *, always: bool = True) -> str:
    """Return "mean ± standard deviation" (over seeds, n - 1); the mean alone of a single value.

    Args:
        values: numbers.
        digits: after the point.
        always: False leaves out a standard deviation that would be shown as zero.
    """
    mean = f"{values.mean():.{digits}f}"
    if len(values) < 2:
        return mean
    deviation = values.std(ddof=1)
    return f"{mean} ± {deviation:.{digits}f}" if always or deviation > 0.5 * 10**-digits else mean


def format_columns(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return columns as a markdown table, numbers with at least three significant digits.

    Args:
        table: the rows to show.
        columns: {column of `table`: its heading}.
    """

    def text(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return "" if math.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    return markdown(table[list(columns)].rename(columns=columns).map(text))
