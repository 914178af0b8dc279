"""The command line: what it refuses with 2 and one line; pickles are never executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command.workplace import build, ends


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def test_a_pickle_is_never_executed(folder: Path, capsys: Any) -> None:
    (folder / "trap.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"state_dict": Trap()}, "trap2.pt")
    torch.save(build(), "module.pt")
    for name in ("trap.pt", "trap2.pt", "module.pt"):
        for words in (f"info {name}", f"measure conv-4 --weights {name}", f"measure conv-4 --data {name}"):
            status, _, err = ends(words, capsys)
            assert status == 2
            assert f"{name} holds no plain tensors" in err
            assert "is not executed" in err
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required"),
        ("frobnicate", "invalid choice: 'frobnicate'"),
        ("measure", "the following arguments are required: NETWORK"),
        ("measure conv-4 --samples 0", "--samples: got 0; it takes a whole number of at least 1"),
        ("measure conv-4 --samples 3", "got --samples 3 without --data or --input-shape, of which they are taken; e.g. --samples 3"),
        ("info .", ".: that is a folder; it takes a file, e.g. pruned.safetensors"),
        ("measure conv-4 --seed -1", "--seed: "),
        ("measure conv-4 --method fast", "invalid choice: 'fast'"),
        ("measure conv-4 --device tpu7", "--device tpu7: torch has no such device here"),
        ("measure conv-4 --plot x.txt", "--plot x.txt: its name has to end in .png"),
        ("measure conv-4 --json no/x.json", "--json no/x.json: no file can be written there"),
        ("measure conv-4 --data digitz", "--data digitz: it takes cifar10, cifar100, digits"),
        ("measure conv-4 --data dense.safetensors", "it takes the tensors inputs [N, ...] and targets [N]"),
        ("measure conv-4 --data digits --input-shape 1 8 8", "got --data and --input-shape"),
        ("measure conv-4 --weights nofile", "got the weights nofile: there is no such file; published weights of conv-4: none"),
        ("measure conv-4 --weights junk", "junk holds no plain tensors"),
        ("measure resnet-20 --weights dense.safetensors", "dense.safetensors does not fit resnet-20: adopt() got the state of another"),
        ("measure resnet-21", "got the network resnet-21; it takes conv-4"),
        ("measure l1.safetensors", "a file of weights is named by --weights"),
        ("measure nothing.here:build", "nothing.here cannot be imported (ModuleNotFoundError: No module named 'nothing')"),
        ("measure mine:absent", "mine has no absent; it has build, number, warns, fails"),
        ("measure mine:number", "got the factory mine:number, which returned int; it takes a function that returns a torch module"),
        ("measure mine:fails", "got the factory mine:fails, which failed (KeyError: 'boom')"),
        ("measure mine:build --input-shape 3 8 8", "measure() "),
        ("compare a=dense.safetensors --network mine:build", "got a alone; it takes at least two"),
        ("compare dense.safetensors --network mine:build", "dense.safetensors: it takes NAME=WEIGHTS"),
        ("compare a=l1.safetensors a=ddp.pt --network mine:build", "there are two networks named a"),
        ("compare a=l1.safetensors b=ddp.pt", "the following arguments are required: --network"),
        ("prune mine:build --pruner l1 --ratio 1.5 --out o.safetensors", "--ratio: got 1.5; it takes a fraction above 0 and below 1"),
        ("prune mine:build --pruner l1 --ratio .5 --flops .5 --out o.safetensors", "not allowed with argument"),
        ("prune mine:build --pruner l1 --ratio .5 --out o.pt", "--out o.pt: its name has to end in .safetensors"),
        ("prune mine:build --pruner l1 --ratio .5 --out .", "no file can be written there"),
        ("compare a=l1.safetensors b=ddp.pt --network mine:build --reference", "isometry compare: unrecognized arguments: --reference. See isometry compare --help"),
        ("prune mine:build --pruner masking --ratio .5 --out o.safetensors", "--pruner masking: it takes greg, greg2, l1, magnitude, polarization"),
        ("prune mine:build --pruner magic --ratio .5 --out o.safetensors", "--pruner magic: it takes greg, greg2, l1"),
        ("prune mine:build --pruner mine:build --ratio .5 --out o.safetensors", "it is no class derived from isometry.Pruner"),
        ("prune mine:build --pruner tpp --ratio .5 --out o.safetensors", "--pruner tpp trains, and needs --data"),
        ("prune mine:build --pruner tpp --set delta --ratio .5 --out o.safetensors", "--set delta: tpp takes scope, floor, delta"),
        ("prune mine:build --weights l1.safetensors --pruner l1 --ratio .5 --out l1.safetensors", "that is the file of --weights"),
        ("info nofile", "nofile: there is no such file"),
        ("info junk", "junk holds no plain tensors"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_2_and_one_line(
    folder: Path, capsys: Any, words: str, message: str
) -> None:
    before = set(folder.iterdir())
    status, out, err = ends(words, capsys)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.startswith("isometry")
    assert out == ""
    assert {path for path in folder.iterdir() if path.name != "__pycache__"} == before
