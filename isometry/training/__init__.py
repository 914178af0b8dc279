"""Training and evaluation of networks: recipes, one resumable loop, regularizers."""

from isometry.training.capture import capture_steps
from isometry.training.epoch import Epoch
from isometry.training.evaluation import Evaluation, evaluate
from isometry.training.loop import train
from isometry.training.optimizer import parameter_groups
from isometry.training.recipe import Cosine, Penalty, Recipe, Regularizer, Schedule, Steps
from isometry.training.regularizers import KernOrth, OrthConv

__all__ = [
    "Cosine",
    "Epoch",
    "Evaluation",
    "KernOrth",
    "OrthConv",
    "Penalty",
    "Recipe",
    "Regularizer",
    "Schedule",
    "Steps",
    "capture_steps",
    "evaluate",
    "parameter_groups",
    "train",
]
