"""Does a sweep that is killed, loses power or has its files damaged still end in the same table, and does a call change nothing else?

Yes: of 1,662 faults and 500 measurements in unusual modes 1,966 ended in the same result, 196 in an error that says why (134 damaged
archives, 62 measurements, 50 of them in torch.inference_mode, where nothing has a derivative), none in a wrong one. An earlier run of the 450
interrupts met two that were not: one left a checkpoint locked in its process, so that `train` refused it (mended since), and one of
`measure`, at a random time, left something changed or another number (not met again). Every fault of a sweep is followed by a restart, whose
table and networks are compared bit for bit with those of a sweep that nothing happened to; a fault is survived where they are equal, or where
an error names the file (archives, which have nothing to be computed again from). Simulated crashes end the process before, within and after
every file operation; simulated losses of power then also drop what was not synced: the data of files, and the names in folders. "ext4 image"
is a real file system behind a loop device, as its disk was when the process was killed. The sweep is tiny (two trials, trainings of 2 or 8
epochs).

Fifty kinds of network are measured in ten modes: survived where everything that `isometry.trials.faults.surroundings` records of network
and process is as before and the mean is that of the same network in no mode, or where the measurement is refused by an error of its own.
Verbs are interrupted by KeyboardInterrupt or an error, and called again: survived where the interrupt changed nothing and the second
call returns what an undisturbed one does; `train` changes its network and goes on from its checkpoint.

Not tested: disks that lie, other systems than Linux, network folders. Run `python analyses/faults.py --out figures`: two hours of one core.
Linux only.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

import isometry
from isometry import L1, networks
from isometry.trials import script
from isometry.trials.faults.disks import lose_power, mounted
from isometry.trials.faults.interrupts import PLACES, VERBS, interrupt
from isometry.trials.faults.kills import killed, killed_pool, two_runs
from isometry.trials.faults.modes import MODES, measure_in
from isometry.trials.faults.restarts import CRASHED, REFUSED, SAME, WRONG, Sweep
from isometry.trials.faults.simulated import Disk, fork, mutate
from isometry.trials.faults.specimens import SPECIMENS
from isometry.trials.script import Row

OPTIONS: dict[str, Any] = {"input_shape": (1, 8, 8), "widths": (20, 20)}
MUTATIONS = ("bit flip", "truncation", "swap", "content of another file")


def row(kind: str, outcomes: Counter[str]) -> Row:
    """Return the counts of one kind of fault."""
    survived = outcomes[SAME] + outcomes[REFUSED]
    counts = {
        "same_table": outcomes[SAME],
        "refused": outcomes[REFUSED],
        "wrong": outcomes[WRONG],
        "crashed": outcomes[CRASHED],
    }
    return {"kind": kind, "tried": outcomes.total(), "survived": survived, **counts}


@contextlib.contextmanager
def subject(epochs: int) -> Iterator[Sweep]:
    """Give a sweep in a temporary folder."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread of its own, which would not survive a fork
    with tempfile.TemporaryDirectory() as scratch:
        yield Sweep(epochs, OPTIONS, Path(scratch).resolve())


def kills(quick: bool) -> list[Row]:
    """Return what came of real signals to running sweeps, at random times."""
    chance = random.Random(0)
    with subject(8) as s:
        moments = [chance.uniform(0, s.seconds) for _ in range(2 if quick else 40)]
        kill = {"SIGKILL of everything": signal.SIGKILL, "SIGINT": signal.SIGINT}
        rows = [row(kind, Counter(killed(s, sent, moment) for moment in moments)) for kind, sent in kill.items()]
        rows.append(row("two runs on one folder", Counter(two_runs(s, chance) for _ in moments)))
    return rows


def killed_workers(quick: bool) -> list[Row]:
    """Return what came of kills of sweeps with two workers: of the process that started them, or of one of them."""
    chance, count = random.Random(2), 1 if quick else 40
    kinds = {"SIGKILL of the main process only": False, "SIGKILL of a worker": True}
    with subject(2) as s:
        return [
            row(kind, Counter(killed_pool(s, chance, worker=worker) for _ in range(count)))
            for kind, worker in kinds.items()
        ]


def side_effects(quick: bool) -> list[Row]:
    """Return what came of measuring fifty networks in every mode, with options in turn."""
    options: list[dict[str, Any]] = [{}, {"method": "krylov"}, {"layers": True}, {"rtol": 0.5}, {"budget": 40}]
    chosen = list(enumerate(SPECIMENS.values()))[:: 25 if quick else 1]
    return [
        row(
            f"measure: {mode}",
            Counter(measure_in(mode, net, **options[(n + shift) % len(options)]) for n, net in chosen),
        )
        for shift, mode in enumerate(MODES)
    ]


def interrupts(quick: bool) -> list[Row]:
    """Return what came of verbs that were interrupted and called again."""
    count = 1 if quick else 50
    return [
        row(f"{verb} interrupted {place}", Counter(interrupt(verb, place, index) for index in range(count)))
        for verb in VERBS
        for place in PLACES
    ]


def crashes(quick: bool) -> list[Row]:
    """Return what came of a process that ends at each of its file operations, with what disks keep of its files."""
    kinds = {
        "crash at a file operation": None,
        "power loss: unsynced data": "data",
        "power loss: unsynced names": "names",
    }
    rows = []
    with subject(2) as s:
        for kind, loss in kinds.items():
            rows.append(row(kind, Counter(_outcomes(s, loss, range(1, 1000, 40 if quick else 1)))))
    return rows


def _outcomes(s: Sweep, loss: str | None, points: range) -> Iterator[str]:
    """Yield what came of a crash at each of these operations, up to the last that there is."""
    for point in points:
        with s.folder() as folder:
            if not _crashed(s, Disk(folder, point, loss)):
                return
            yield s.restart(folder)


def _crashed(s: Sweep, disk: Disk) -> bool:
    """Run the sweep in a process that ends at an operation; return False where it has none with that number."""

    def work() -> None:
        disk.install()
        s.run(disk.root)

    with fork(work) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 137


def disks(quick: bool) -> list[Row]:
    """Return what came of losses of power on ext4; nothing where this process may not mount an image."""
    chance = random.Random(3)
    with subject(2) as s:
        try:
            with s.folder() as folder, mounted(folder.with_suffix(".img")):
                pass
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"losses of power on ext4 are left out: an image cannot be mounted ({error})")
            return []
        moments = [chance.uniform(0, 1.2 * s.seconds) for _ in range(2 if quick else 25)]
        return [row("power loss: ext4 image", Counter(lose_power(s, moment) for moment in moments))]


def mutations(quick: bool) -> list[Row]:
    """Return what came of files that were changed: of finished folders, of interrupted ones, of archives."""
    chance = random.Random(1)
    count = 3 if quick else 134
    with subject(2) as s, s.folder() as interrupted:
        _interrupt(s, interrupted)
        rows = [
            row(
                "file changed: finished folder",
                Counter(_mutated(s, s.whole, "[a-z]*.*", chance, i) for i in range(count)),
            ),
            row(
                "file changed: checkpoint or log",
                Counter(_mutated(s, interrupted, "[a-z]*.*", chance, i) for i in range(count)),
            ),
        ]
        result = isometry.prune(networks.build("mlp-7-linear", seed=0, **OPTIONS), L1(), 0.5, progress=False)
        isometry.save(result, s.scratch / "net.safetensors")
        rows.append(row("file changed: archive", Counter(_mutated_archive(s.scratch, chance, i) for i in range(count))))
    return rows


def _interrupt(s: Sweep, folder: Path) -> None:
    """Leave a sweep that was killed in the last epoch of its fine-tuning."""
    for point in range(40, 1000, 2):
        shutil.rmtree(folder, ignore_errors=True)
        _crashed(s, Disk(folder, point))
        logs = list(folder.rglob("rows.jsonl"))
        if logs and (logs[0].parent / "training.safetensors").exists():
            return


def _mutated(s: Sweep, template: Path, pattern: str, chance: random.Random, index: int) -> str:
    with s.folder(template) as folder:
        files = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size)
        if template != s.whole:
            files = [path for path in files if path.name.startswith(("training", "rows.jsonl"))]
        while not _damage(chance.choice(files), (folder, s.whole), MUTATIONS[index % 4], chance):
            pass
        return s.restart(folder)


def _damage(path: Path, folders: tuple[Path, ...], kind: str, chance: random.Random) -> bool:
    """Change a file, and return whether it has changed; the content of another comes from one of the folders."""
    if kind in MUTATIONS[:3]:
        return mutate(path, kind, chance)
    others = [other for folder in folders for other in folder.rglob(f"*{path.suffix}")]
    content = chance.choice([other.read_bytes() for other in others] or [b""])
    changed = path.read_bytes() != content
    path.write_bytes(content)
    return changed


def _mutated_archive(scratch: Path, chance: random.Random, index: int) -> str:
    whole, path = scratch / "net.safetensors", scratch / "damaged.safetensors"
    shutil.copy(whole, path)
    while not mutate(path, MUTATIONS[index % 3], chance):
        pass
    dense = networks.build("mlp-7-linear", seed=0, **OPTIONS)
    try:
        found = isometry.load(path, dense)
    except ValueError as error:
        return REFUSED if str(path) in str(error) else CRASHED
    except Exception:
        return CRASHED
    expected = isometry.load(whole, dense)
    tensors, state = expected.model.state_dict(), found.model.state_dict()
    same = found.plan == expected.plan and all(torch.equal(tensors[name], state[name]) for name in tensors)
    return SAME if same else WRONG


COLUMNS = {
    "kind": "fault", "tried": "tried", "survived": "survived", "same_table": "same result", "refused": "refused by name",
    "wrong": "wrong result", "crashed": "other error",
}  # fmt: skip


def tables(table: pd.DataFrame) -> str:
    """Return the counts of every kind as markdown."""
    return script.format_columns(table, COLUMNS)


def short(table: pd.DataFrame) -> str:
    """Return the counts of every group of faults as markdown."""
    groups = table.groupby("part", sort=False)[["tried", "survived", "wrong"]].sum().reset_index()
    return script.format_columns(groups, {str(name): COLUMNS.get(str(name), "faults") for name in groups})


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw per kind how many ended in the same result, and how many in an error that says why."""
    figure, ax = plt.subplots(figsize=(7.5, 1 + 0.24 * len(table)), layout="constrained")
    rows = table.iloc[::-1]
    ax.barh(rows["kind"], rows["tried"], color="lightgray", label="tried")
    ax.barh(rows["kind"], rows["same_table"], height=0.45, label="same result")
    ax.barh(rows["kind"], rows["refused"], height=0.45, left=rows["same_table"], label="refused, saying why")
    for index, (tried, survived) in enumerate(zip(rows["tried"], rows["survived"], strict=True)):
        ax.text(tried, index, f" {survived} of {tried}", va="center", fontsize="small")
    ax.set(xlabel="faults and settings tried", xlim=(0, 1.25 * rows["tried"].max()))
    lost = int((table["tried"] - table["survived"]).sum())
    same, refused = int(table["same_table"].sum()), int(table["refused"].sum())
    told = f"{same} of {int(table['tried'].sum())} ended in the same result,\n{refused} in an error that says why, {lost} in neither"
    figure.suptitle(told, fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "crashes": crashes,
    "disks": disks,
    "changed files": mutations,
    "kills": kills,
    "killed workers": killed_workers,
    "side effects": side_effects,
    "interrupts": interrupts,
}

if __name__ == "__main__":
    script.run_measurement("faults", __doc__, PARTS, draw, tables)
