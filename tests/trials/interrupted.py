"""A script that is killed: `python -m tests.trials.interrupted FOLDER JOBS` runs trials and prints a digest of their table."""

import hashlib
import sys

from isometry import Recipe
from isometry.trials import run
from tests.trials.examples import trial

TRIALS = [trial(pretrain=Recipe(0.01, 8, 32), finetune=Recipe(0.01, 8, 32), seed=seed) for seed in range(2)]


def main(folder: str, jobs: str) -> None:
    table = run(TRIALS, folder, jobs=int(jobs), progress=False)
    print(hashlib.sha256(table.to_csv().encode()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
