"""Trial: one experiment as data, and its readable key."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from isometry import data, networks
from isometry.pruners import Pruner
from isometry.repairs import REPAIRS
from isometry.training.objective import describe_callable
from isometry.training.recipe import Recipe

__all__ = ["SCRATCH", "Trial", "label", "source_digest", "to_json"]

SCRATCH = "scratch"
"""The name of the control that keeps the pruned widths and nothing else: fresh weights, MLPs only."""


@dataclass(frozen=True)
class Trial:
    """One experiment: train a dense network, prune it, repair it or not, fine-tune it. Holds all that decides its outcome.

    Attributes:
        dataset: a name that `data.load` knows.
        network: a name that `networks.build` knows.
        pretrain: how the dense network is trained; or the name of weights that `networks.build` knows; None keeps the
            initialization, for pruners that train from scratch.
        finetune: how the pruned network is trained; None stops after pruning.
        pruner: how units are removed; None trains the dense network only.
        ratio: the fraction of units removed from every layer that can be pruned.
        layers: name pattern of the layers to prune; None means all that can be.
        repair: None, a name in `isometry.repairs.REPAIRS`, or "scratch" (fresh weights at the pruned widths, MLPs only).
        seed: of initialization, shuffling and the pruner.
        options: further arguments of `networks.build`.
        validation: number of training images that are held out.
        autocast: whether pruners that train, and evaluation, run in bfloat16; fine-tuning follows its own recipe.

    Raises:
        ValueError: an unknown repair, "scratch" for another network than an MLP, or a repair or fine-tuning without a
            pruner.
    """

    dataset: str
    network: str
    pretrain: Recipe | str | None
    finetune: Recipe | None = None
    pruner: Pruner | None = None
    ratio: float = 0.0
    layers: str | None = None
    repair: str | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    validation: int = 0
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.repair not in (None, *REPAIRS, SCRATCH):
            known = ", ".join(map(repr, (*REPAIRS, SCRATCH)))
            raise ValueError(
                f"Trial() got repair={self.repair!r}; it accepts None, {known}, e.g. Trial(..., repair='recalibrate')."
            )
        if self.repair == SCRATCH and not self.network.startswith("mlp"):
            raise ValueError(
                f"Trial() got repair='scratch' for {self.network}; fresh weights at the pruned widths are built for MLPs only. "
                "Train another control, e.g. Trial(..., repair='recalibrate'), or a narrower network, e.g. "
                "Trial(..., options={'width': 8})."
            )
        if self.pruner is None and (self.finetune or self.repair):
            raise ValueError(
                "Trial() got a repair or a fine-tuning without a pruner, so there is nothing to repair or fine-tune. "
                "Pass one, e.g. Trial(..., pruner=isometry.L1())."
            )

    @property
    def pruner_name(self) -> str:
        """The pruner's name in lower case, "dense" without one."""
        return "dense" if self.pruner is None else type(self.pruner).__name__.lower()

    @functools.cached_property
    def pruner_settings(self) -> dict[str, Any]:
        """The pruner's name and fields as JSON types, and a digest of its source where it is not one of isometry's.

        Read in the process that calls `run`, and pickled with the trial: a worker may have no access to the source.
        """
        assert self.pruner is not None
        settings = {"name": self.pruner_name, **to_json(self.pruner)}
        source = source_digest(type(self.pruner))
        return settings if source is None else settings | {"source": source}

    @property
    def key(self) -> str:
        """A readable name, e.g. mlp-7-linear/mnist/l1-0.8/oracle/lr0.001x90/s3."""
        parts = [self.network, self.dataset]
        if self.pruner is not None:
            parts.append(f"{self.pruner_name}-{self.ratio:g}")
        if self.finetune is not None or self.repair is not None:
            parts += [self.repair or "plain", label(self.finetune)]
        return "/".join([*parts, f"s{self.seed}"])

    def load_data(self) -> data.Data:
        """Return the data set, normalized as the given weights need it."""
        weights = self.pretrain if isinstance(self.pretrain, str) else ""
        return _load(self.dataset, self.validation, self.network, weights)


@functools.lru_cache(maxsize=1)
def _load(dataset: str, validation: int, network: str, weights: str) -> data.Data:
    known = networks.PRETRAINED.get((network, weights))
    return data.load(dataset, validation=validation, normalization=known.normalization if known else None)


def source_digest(kind: type) -> str | None:
    """Return a digest of the source of a class and its bases outside isometry and Python's library, None without any.

    Comments, docstrings and layout do not count; functions outside the classes, which they call, are not seen.
    """
    known = (*sys.stdlib_module_names, "isometry")
    own = [base for base in kind.__mro__ if base.__module__ == "__main__" or base.__module__.split(".")[0] not in known]
    sources = [_normalized_source(base) for base in own]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16] if sources else None


def _normalized_source(kind: type) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter, for instance
        return "\n".join(_describe_code(f.__code__) for f in vars(kind).values() if inspect.isfunction(f))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _describe_code(code: types.CodeType) -> str:
    constants = [_describe_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_name, code.co_code.hex(), code.co_names, constants))


def label(recipe: Recipe | None) -> str:
    """Return the part of a trial's key that names its fine-tuning, e.g. lr0.001x90 for 90 epochs."""
    return "untrained" if recipe is None else f"lr{recipe.lr:g}x{recipe.epochs}"


def to_json(value: Any) -> Any:
    """Return a dataclass as JSON types, its nested dataclasses (regularizers, schedules) with their class names.

    A recipe's loss is written as its name and code; where it has none, it has no entry. Its metric changes nothing.
    """
    if value is None or isinstance(value, str):
        return value
    entries = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, Recipe):
        del entries["metric"]
        loss = entries.pop("loss")
        entries |= {} if loss is None else {"loss": describe_callable(loss)}
    return {name: asdict(v) | {"name": type(v).__name__} if is_dataclass(v) else v for name, v in entries.items()}  # type: ignore[arg-type]
