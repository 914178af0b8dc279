"""Tasks that are no classification of one input: networks, data and losses of every kind that people have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, StackDataset, TensorDataset

from isometry.data import Batches
from tests.models import Wired

SAMPLES = 24


@dataclass(frozen=True)
class Task:
    """A network, what it is trained on, in memory and from a loader, and its loss; None means cross-entropy."""

    build: Callable[[], nn.Module]
    tensors: Any
    loader: Any
    loss: Callable[[Any, Any], Tensor] | None
    metric: Callable[[Any, Any], Any] | None = None


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def trunk() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU()
    )


def regression() -> nn.Module:
    return nn.Sequential(*trunk(), nn.Linear(8, 1))


def segmentation() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 6), nn.Conv2d(6, 4, 1))


def autoencoder() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 6), nn.Conv2d(6, 3, 1))


def two_heads() -> nn.Module:
    return Wired(
        lambda m, x: (m.classes(h := m.trunk(x)), m.size(h)),
        trunk=trunk(),
        classes=nn.Linear(8, 4),
        size=nn.Linear(8, 1),
    )


def named_heads() -> nn.Module:
    return Wired(
        lambda m, x: {"classes": m.classes(h := m.trunk(x)), "size": m.size(h)},
        trunk=trunk(), classes=nn.Linear(8, 4), size=nn.Linear(8, 1),
    )  # fmt: skip


class Stereo(nn.Module):
    """Two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Linear(6, 9), nn.Linear(4, 9), nn.BatchNorm1d(9)
        self.inner, self.head = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7)), nn.Linear(7, 4)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        return self.head(self.inner(self.norm(self.left(image) * self.right(context).tanh()).relu()).relu())


def both(outputs: Any, targets: Any) -> Tensor:
    classes, size = outputs.values() if isinstance(outputs, dict) else outputs
    return F.cross_entropy(classes, targets[0]) + F.mse_loss(size, targets[1])


def pairs(*tensors: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), 8)


X, IMAGES, CONTEXT = rand(SAMPLES, 6), rand(SAMPLES, 3, 6, 6, seed=1), rand(SAMPLES, 4, seed=2)
CLASSES = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
SIZE = X[:, :2].sum(1, keepdim=True)
PIXELS = IMAGES.argmax(1)

TASKS = {
    "regression": Task(regression, (X, SIZE), pairs(X, SIZE), F.mse_loss, lambda out, y: (out - y).abs().mean()),
    "segmentation": Task(segmentation, (IMAGES, PIXELS), pairs(IMAGES, PIXELS), None),
    "autoencoder": Task(autoencoder, (IMAGES, IMAGES), Batches(pairs(IMAGES, CLASSES), inputs=0, targets=0), F.mse_loss),
    "tuple of outputs": Task(two_heads, (X, (CLASSES, SIZE)), Batches(pairs(X, CLASSES, SIZE), inputs=0, targets=(1, 2)), both),
    "dict of outputs": Task(named_heads, (X, (CLASSES, SIZE)), Batches(pairs(X, CLASSES, SIZE), inputs=0, targets=(1, 2)), both),
    "two inputs": Task(Stereo, ((X, CONTEXT), CLASSES), pairs(X, CONTEXT, CLASSES), None),
    "two inputs by name": Task(
        Stereo,
        {"image": X, "context": CONTEXT, "labels": CLASSES},
        DataLoader(StackDataset(image=X, context=CONTEXT, labels=CLASSES), 8),
        None,
    ),
}  # fmt: skip


def built(task: Task) -> nn.Module:
    """The task's network, the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task.build()
