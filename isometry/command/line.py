"""The words of the command line, and how it ends: 0, or 2 with one line that says what was refused."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main"]

_REFUSALS = (ValueError, TypeError, OSError, ArithmeticError, ImportError, LookupError, RuntimeError, AttributeError)
"""What bad files, networks, data and settings raise."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line, without the usage."""
        self.exit(2, f"{self.prog}: {message}. See {self.prog} --help\n")


class _Defaults(argparse.HelpFormatter):
    """Help that shows the defaults of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or action.const is not None
        return f"{action.help or ''}{'' if hidden else ' (default: %(default)s)'}"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        words: of the command line, without the program's name; None takes those of this process.
    """
    parser = _build_parser()
    options, unknown = parser.parse_known_args(words)
    if unknown:
        command = f"isometry {options.command}"
        parser.exit(2, f"{command}: unrecognized arguments: {' '.join(unknown)}. See {command} --help\n")
    from isometry.command import information, verbs  # a mistyped option should not wait for torch

    commands = {"measure": verbs.measure, "compare": verbs.compare, "prune": verbs.prune, "info": information.inform}
    if "" not in sys.path:
        sys.path.insert(0, "")  # where a network of the user's is looked for
    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of pyparsing, which are user warnings, too
        warnings.showwarning = _note
        try:
            commands[options.command](options)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, `head` for instance, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print(f"isometry {options.command}: interrupted", file=sys.stderr)
            return 130
        except _REFUSALS as error:
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"isometry {options.command}: {text}", file=sys.stderr)
            return 2
    return 0


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the place in the library that it comes from."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser("isometry", description="Trainability of neural networks: their Jacobian singular values (JSVs).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="measure | compare | prune | info")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=_Defaults)

    _add_measure(add("measure", "Measure the JSVs of a network."))
    _add_compare(add("compare", "Measure several weights of one network at the same inputs."))
    _add_prune(add("prune", "Prune a network and write it to a file."))
    info = add("info", "Say which versions, devices and data are here, or what a file holds.")
    info.add_argument("file", nargs="?", help="weights, or what `isometry prune` wrote; it is read, never executed")
    return parser


_NETWORK = "a name such as resnet-56, or package.module:function for one of your own"
_WEIGHTS = (
    "a safetensors file, a file of torch.save(model.state_dict(), ...), or the name of published weights (cifar10)"
)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="NAME|FILE",
        help="a data set by name, a folder of images, or a file with the tensors inputs and targets",
    )
    parser.add_argument(
        "--input-shape", type=positive, nargs="+", metavar="N", help="of one input, e.g. 3 32 32; without --data"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of which inputs are taken, and of everything random")
    parser.add_argument("--device", default="cpu", help="where the network lives, cpu or cuda")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=positive,
        help="how many inputs of the test part, drawn at random (default: 64; with --rtol as many as it takes)",
    )
    parser.add_argument(
        "--layers",
        nargs="*",
        metavar="PATTERN",
        help="where the JSVs are lost: the network's blocks, those of a depth, or layers by name",
    )
    parser.add_argument("--method", choices=["auto", "exact", "krylov"], default="auto", help="see isometry.measure")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", metavar="NETWORK", help=_NETWORK)
    parser.add_argument("--weights", metavar="FILE|NAME", help=_WEIGHTS)
    _add_source(parser)
    _add_measuring(parser)
    parser.add_argument(
        "--rtol", type=float, help="sample until the 95 %% interval is this narrow, relative to the mean"
    )
    parser.add_argument("--reference", metavar="FILE|NAME", help="weights of the dense network, as the yardstick")
    parser.add_argument(
        "--plot", nargs="?", const="measure.png", metavar="FILE", help="draw the spectrum, and the layers; measure.png"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NAME=WEIGHTS", help=f"the first is compared with; {_WEIGHTS}")
    parser.add_argument("--network", required=True, metavar="NETWORK", help=_NETWORK)
    _add_source(parser)
    _add_measuring(parser)
    parser.add_argument(
        "--plot", nargs="?", const="compare.png", metavar="FILE", help="draw the mean JSVs; compare.png"
    )


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", metavar="NETWORK", help=_NETWORK)
    parser.add_argument("--weights", metavar="FILE|NAME", help=_WEIGHTS)
    _add_source(parser)
    parser.add_argument("--pruner", required=True, help="l1, random, tpp, ..., or package.module:Class")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--ratio", type=fraction, help="fraction of units removed from every layer")
    amount.add_argument("--flops", type=fraction, help="fraction of FLOPs removed")
    parser.add_argument("--out", required=True, metavar="FILE", help="a safetensors file for weights and plan")
    parser.add_argument(
        "--layers", nargs="+", metavar="PATTERN", help="names of the layers that may lose units; all that can"
    )
    parser.add_argument("--skip", nargs="+", metavar="PATTERN", help="names of layers that keep their units")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="hyperparameters of the pruner")


def positive(text: str) -> int:
    """Return a word as a whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Return a word as a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text}; it takes a whole number of at least {least}, e.g. 3")
    return int(text)


def fraction(text: str) -> float:
    """Return a word as a number in (0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}; it takes a fraction above 0 and below 1, e.g. 0.5")
    return value
