"""The command line that all analysis scripts share."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from isometry.errors import join_names
from isometry.trials.connection import INSTALL, is_installed

__all__ = ["build_parser", "parse", "positive", "ratio", "scheduler"]


def positive(text: str) -> int:
    """Return a command line value as a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}; it takes a whole number of at least 1, e.g. 3")
    return value


def ratio(text: str) -> float:
    """Return a command line value as a fraction of units removed, above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}; it takes a fraction removed, above 0 and below 1, e.g. 0.5")
    return value


def scheduler(text: str) -> str:
    """Return the address of a Dask scheduler, e.g. tcp://host:8786, where Dask is installed."""
    if not is_installed():
        raise argparse.ArgumentTypeError(f"got {text}, but Dask is not installed; {INSTALL}")
    return text


def build_parser(
    doc: str | None,
    *,
    seeds: int | None = None,
    ratios: Sequence[float] = (),
    device: bool = False,
    seconds: bool = False,
    extend: bool = False,
) -> argparse.ArgumentParser:
    """Return a parser with the options that analyses share; those of trials only where `seeds` is given.

    Args:
        doc: the script's docstring; its first line, the question, is the description.
        seeds: default number of seeds; None for a script that runs no trials.
        ratios: default ratios; none leaves out `--ratios`.
        device: whether `--device` is taken, and `--eager` with it where trials run.
        seconds: whether `--seconds` is taken, by a script whose pictures and tables do with the trials that are finished.
        extend: whether `--extend` is taken, by a script whose table holds the rows of its trials and nothing else.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0], formatter_class=_Help)
    parser.add_argument("--quick", action="store_true", help="a tiny version, to see that everything runs")
    parser.add_argument("--redraw", action="store_true", help="draw from the written table, computing nothing")
    if seeds is not None:
        parser.add_argument("--seeds", type=positive, default=seeds, help="number of seeds")
        engine = parser.add_mutually_exclusive_group()
        engine.add_argument("--jobs", type=positive, help="processes (default: the number of cores, 1 on a GPU)")
        engine.add_argument(
            "--cluster", metavar="ADDRESS", type=scheduler, help="of a Dask scheduler, whose workers run the trials"
        )
    if ratios:
        parser.add_argument(
            "--ratios", type=ratio, nargs="+", default=list(ratios), help="fractions of units removed, each once"
        )
    if device:
        parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks live")
        parser.add_argument(
            "--eager", action="store_true", help="on a GPU, launch kernel by kernel, without CUDA graphs"
        )
    if seconds:
        parser.add_argument(
            "--seconds",
            type=positive,
            help="end after so many, resumably, and show what is finished (default: no limit)",
        )
    if extend:
        parser.add_argument(
            "--extend",
            action="store_true",
            help="keep the rows of the table at --out and run only the trials that it lacks",
        )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trials keep their state")
    parser.add_argument("--out", type=Path, help="where table and figure are written (default: a folder in --runs)")
    return parser


class _Help(argparse.HelpFormatter):
    """Help that shows the defaults of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        text = " ".join(map(str, action.default)) if isinstance(action.default, list) else str(action.default)
        return f"{action.help or ''}{'' if hidden else f' (default: {text})'}".replace("%", "%%")


def parse(parser: argparse.ArgumentParser, *, quick_ignores: Sequence[str] = ()) -> argparse.Namespace:
    """Return the command line's options; exit with a message where one cannot be met. Figures are drawn without a display.

    Args:
        parser: what `build_parser` returned, with the script's own options.
        quick_ignores: options that `--quick` has its own values for, e.g. "seeds"; both together are refused.
    """
    import matplotlib  # only scripts draw

    options = parser.parse_args()
    given = _find_given(parser)
    if options.quick and (both := [f"--{name}" for name in quick_ignores if name in given]):
        parser.error(
            f"argument --quick: its tiny version has {join_names(both)} of its own; leave out one or the other"
        )
    if getattr(options, "extend", False) and (options.quick or options.redraw):
        parser.error(
            f"argument --extend: {'--quick runs trials of its own' if options.quick else '--redraw runs no trials'}; "
            "leave out one or the other"
        )
    ratios = getattr(options, "ratios", [])
    if len(set(ratios)) < len(ratios):
        text = " ".join(f"{value:g}" for value in ratios)
        parser.error(
            f"argument --ratios: got {text}, of which some are equal; it takes each once, e.g. --ratios 0.5 0.7"
        )
    here = getattr(options, "cluster", None) is None
    limit = getattr(options, "seconds", None)
    if not here and limit is not None:
        parser.error(
            "argument --seconds: it ends trials on this machine, not those of --cluster; leave out one or the other"
        )
    options.deadline = None if limit is None else time.time() + limit
    if here and getattr(options, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: got cuda, but torch finds no CUDA device; e.g. --device cpu")
    matplotlib.use("Agg")
    return options


def _find_given(parser: argparse.ArgumentParser) -> set[str]:
    """Return the names of the options that are on the command line, whatever their values."""
    absent = object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    found = vars(parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(names, absent))))
    return {name for name in names if found[name] is not absent}
