"""Which of these checkpoints of one network is still trainable?

As a rule the one whose mean JSV is nearer to that of the dense network, if none was repaired: it was the better of two in 85 %, with repairs
among them in 74 % (`predictors.py`, means over eight small networks; ResNet-20: 58 and 77 %). This is the command `isometry compare` as a
script, to copy and change: name the weights, the network that they belong to, and inputs.

Run `python analyses/score.py dense=dense.safetensors l1=l1.safetensors --network my.module:build --data digits --plot`; the first is
the one that the others are compared with. `--quick` scores two small networks of its own. Seconds on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import isometry
from isometry.command import main
from isometry.files import write_tensors


def write_example(folder: Path) -> list[str]:
    """Write a dense network and a pruned one, both untrained, and return the words that score them."""
    model = isometry.networks.build("conv-4", input_shape=(1, 8, 8), seed=0)
    write_tensors(folder / "dense.safetensors", model.state_dict(), {})
    isometry.save(isometry.prune(model, isometry.L1(), 0.5), folder / "l1.safetensors")
    named = [f"{name}={folder / name}.safetensors" for name in ("dense", "l1")]
    return [*named, "--network", "conv-4", "--data", "digits", "--samples", "8"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options, words = parser.parse_known_args()
    sys.exit(main(["compare", *(write_example(options.runs / "score-quick") if options.quick else words)]))
