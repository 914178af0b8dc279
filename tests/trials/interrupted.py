"""A script that is killed: `python -m tests.trials.interrupted FOLDER JOBS` runs trials and prints a digest of their table.

Instead of a number of jobs it takes the address of a Dask scheduler.
"""

import hashlib
import sys

from isometry import Recipe
from isometry.trials import run
from isometry.trials.connection import connect
from tests.trials.examples import trial

TRIALS = [trial(pretrain=Recipe(0.01, 8, 32), finetune=Recipe(0.01, 8, 32), seed=seed) for seed in range(2)]


def main(folder: str, jobs: str) -> None:
    with connect(None if jobs.isdecimal() else jobs) as client:
        table = run(TRIALS, folder, jobs=None if client else int(jobs), progress=False, client=client)
    print(hashlib.sha256(table.to_csv().encode()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
