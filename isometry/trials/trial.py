"""Trial: one experiment as data, and its readable key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import nn

from isometry.data import Data
from isometry.data.nests import first_samples
from isometry.pruners import Pruner
from isometry.repairs import REPAIRS
from isometry.training.objective import Loss, Metric, describe_callable
from isometry.training.recipe import Recipe
from isometry.trials.architecture import Architecture, read_architecture
from isometry.trials.dataset import Own, load_named
from isometry.trials.digests import source_digest

__all__ = ["SCRATCH", "Trial", "label", "to_json"]

SCRATCH = "scratch"
"""The name of the control that keeps the pruned widths and nothing else: fresh weights, MLPs only."""


@dataclass(frozen=True)
class Trial:
    """One experiment: train a dense network, prune it, repair it or not, fine-tune it. Holds all that decides its outcome.

    Attributes:
        dataset: a name that `data.load` knows, or `Own` data.
        network: a name that `networks.build` knows; "package.module:function", or a function, that returns a network; or a
            network. What counts as another trial: of a function an edit of its module (of the function itself, where that is
            no importable module) other than of comments and docstrings, or another network built with the same seed; of a
            network another weight, buffer, module, attribute that is a plain value, or source of its classes. Functions that
            these classes call in other modules do not count: name another folder after editing such.
        pretrain: how the dense network is trained; or the name of weights that `networks.build` knows; None keeps the
            initialization, for pruners that train from scratch.
        finetune: how the pruned network is trained; None stops after pruning.
        pruner: how units are removed; None trains the dense network only.
        ratio: the fraction of units removed from every layer that can be pruned.
        layers: name pattern of the layers to prune; None means all that can be.
        repair: None, a name in `isometry.repairs.REPAIRS`, or "scratch" (fresh weights at the pruned widths, MLPs only).
        seed: of initialization, shuffling and the pruner.
        options: further arguments of `networks.build`, or of the function.
        validation: number of training images that are held out.
        autocast: whether pruners that train, and evaluation, run in bfloat16; fine-tuning follows its own recipe.
        loss: of evaluation, and of trainings whose recipe has none; None means that of the recipe of fine-tuning or of dense
            training, where these have one, else cross-entropy.
        metric: of evaluation, for the column of that name; None likewise.

    Raises:
        ValueError: an unknown repair, "scratch" for another network than an MLP of the catalogue, a repair or fine-tuning
            without a pruner, or the name of weights for a network that is not of the catalogue. When it runs: a network that
            cannot be imported or is not known.
    """

    dataset: str | Own
    network: str | nn.Module | Callable[[], nn.Module] | Architecture
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
    loss: Loss | None = None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.repair not in (None, *REPAIRS, SCRATCH):
            known = ", ".join(map(repr, (*REPAIRS, SCRATCH)))
            raise ValueError(
                f"Trial() got repair={self.repair!r}; it accepts None, {known}, e.g. Trial(..., repair='recalibrate')."
            )
        if self.repair == SCRATCH and not (isinstance(self.network, str) and self.network.startswith("mlp")):
            name = self.network if isinstance(self.network, str) else "a network of your own"
            raise ValueError(
                f"Trial() got repair='scratch' for {name}; fresh weights at the pruned widths are built for MLPs only. "
                "Train another control, e.g. Trial(..., repair='recalibrate'), or a narrower network, e.g. "
                "Trial(..., options={'width': 8})."
            )
        if self.pruner is None and (self.finetune or self.repair):
            raise ValueError(
                "Trial() got a repair or a fine-tuning without a pruner, so there is nothing to repair or fine-tune. "
                "Pass one, e.g. Trial(..., pruner=isometry.L1())."
            )

        if isinstance(self.pretrain, str) and not (isinstance(self.network, str) and ":" not in self.network):
            raise ValueError(
                f"Trial() got pretrain={self.pretrain!r}, the name of weights, for a network of your own; it takes a Recipe or None, "
                "and networks with their weights as they are, e.g. Trial('digits', model, None, pruner=isometry.L1())."
            )

    @functools.cached_property
    def architecture(self) -> Architecture:
        """Where the network comes from."""
        return read_architecture(self.network)

    @property
    def network_name(self) -> str:
        """The network's name in tables and folders."""
        return self.architecture.name

    @property
    def dataset_name(self) -> str:
        """The data set's name in tables and folders."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name

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
        parts = [self.network_name, self.dataset_name]
        if self.pruner is not None:
            parts.append(f"{self.pruner_name}-{self.ratio:g}")
        if self.finetune is not None or self.repair is not None:
            parts += [self.repair or "plain", label(self.finetune)]
        return "/".join([*parts, f"s{self.seed}"])

    def load_data(self) -> Data:
        """Return the data set, normalized as the given weights need it."""
        if isinstance(self.dataset, Own):
            return self.dataset.restarted()
        weights = self.pretrain if isinstance(self.pretrain, str) else ""
        return load_named(self.dataset, self.validation, self.network_name, weights)

    def example_inputs(self, count: int) -> Any:
        """Return the first training inputs [count, ...], at most as many as networks are measured at."""
        if isinstance(self.dataset, Own):
            return first_samples(self.dataset.first_inputs, count)
        return self.load_data().train.inputs[:count]

    @property
    def objective(self) -> dict[str, Any]:
        """The loss and the metric of evaluation, each where there is one, as keyword arguments of `evaluate`."""
        sources = [self, *(recipe for recipe in (self.finetune, self.pretrain) if isinstance(recipe, Recipe))]
        found = {
            name: [value for source in sources if (value := getattr(source, name)) is not None]
            for name in ("loss", "metric")
        }
        return {name: values[0] for name, values in found.items() if values}

    def completed(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the trial's loss, where it has none."""
        return recipe if recipe.loss is not None or self.loss is None else replace(recipe, loss=self.loss)


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
