"""Numbers of a just-pruned network that might tell how well it fine-tunes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.data import Data
from isometry.files import make_folder, write
from isometry.measurement import measure
from isometry.measurement.report import Report
from isometry.networks import placed
from isometry.networks.modules import BATCH_NORMS, hooked
from isometry.networks.preservation import evaluating
from isometry.repairs import recalibrate, repair_by_name
from isometry.trials.stages import DenseTraining, Pruning, plan_stages
from isometry.trials.trial import Trial

__all__ = ["CANDIDATES", "Yardstick", "describe_starts", "linear_similarity"]

CANDIDATES = {
    "mean_jsv": "mean JSV",
    "log_mean_jsv": "distance of log mean JSV from 0",
    "jsv_ratio": "mean JSV / dense",
    "log_jsv_ratio": "distance of log mean JSV from dense",
    "isometry_gap": "isometry gap",
    "gap_to_dense": "gap to the dense spectrum",
    "condition_number": "condition number (median)",
    "spread": "spread (std / mean)",
    "effective_rank": "effective rank",
    "weakest_layer": "weakest layer / dense",
    "gradient_norm": "gradient norm",
    "train_accuracy": "accuracy",
    "train_loss": "loss",
    "recalibrated_loss": "loss, recalibrated",
    "output_error": "output error to dense",
    "feature_similarity": "feature similarity (CKA)",
    "parameters": "parameters",
}
"""{name of a number that `Yardstick.describe` returns: how tables and pictures call it}."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """The dense network at fixed training images, which pruned ones are described against.

    Attributes:
        inputs, targets: [N, ...] and [N], training images for accuracy, loss, gradients and features.
        samples: number of these, the first ones, that Jacobians are taken at.
        report: of the dense network at those.
        outputs, features: [N, K] and [N, D] of the dense network: its logits, and what its last linear layer reads.
    """

    inputs: Tensor
    targets: Tensor
    samples: int
    report: Report
    outputs: Tensor
    features: Tensor

    @classmethod
    def of(cls, dense: nn.Module, data: Data, *, images: int = 2000, samples: int = 64) -> Yardstick:
        """Return the dense network's numbers at the first training images.

        Args:
            dense: a classifier whose last linear layer gives the logits.
            data: its training part is used.
            images: number of training images.
            samples: number of images that Jacobians are taken at.
        """
        inputs, targets = data.train.inputs[:images], data.train.targets[:images]
        outputs, features = _outputs_and_features(dense, inputs)
        return cls(inputs, targets, samples, _report(dense, inputs[:samples]), outputs, features)

    def describe(self, pruned: nn.Module) -> dict[str, float]:
        """Return `CANDIDATES` of a pruned network by name.

        With s [k] the JSVs of a sample in descending order, d those of the dense network at the same sample:
        `gap_to_dense` is sqrt(mean (s - d)²) / mean d; `effective_rank` the mean over samples of exp(entropy of s / sum s)
        (Roy & Vetterli, EUSIPCO 2007); `weakest_layer` the smallest ratio over layers of the mean JSV from the layer to the
        outputs to the dense network's; `gradient_norm` that of the mean cross-entropy with respect to all parameters;
        `output_error` sum |z - z_d|² / sum |z_d - mean z_d|² of logits z; `feature_similarity` the linear CKA of
        what the last linear layer reads (Kornblith et al., ICML 2019); `recalibrated_loss` the loss after BatchNorm statistics
        are estimated anew, or the loss where there is no BatchNorm.

        Args:
            pruned: made from the dense network; it is left alone.
        """
        report = _report(pruned, self.inputs[: self.samples])
        outputs, features = _outputs_and_features(pruned, self.inputs)
        loss = float(F.cross_entropy(outputs, self.targets))
        again = _recalibrated(pruned, self.inputs)
        return {
            **_spectral_numbers(report, self.report),
            "gradient_norm": _gradient_norm(pruned, self.inputs, self.targets),
            "train_accuracy": float((outputs.argmax(1) == self.targets).double().mean()),
            "train_loss": loss,
            "recalibrated_loss": loss
            if again is None
            else float(F.cross_entropy(_outputs_and_features(again, self.inputs)[0], self.targets)),
            "output_error": float(
                (outputs - self.outputs).square().sum() / (self.outputs - self.outputs.mean(0)).square().sum()
            ),
            "feature_similarity": linear_similarity(features, self.features),
            "parameters": sum(p.numel() for p in pruned.parameters()),
        }


def describe_starts(
    trials: Sequence[Trial], runs: Path, *, images: int = 2000, samples: int = 64
) -> list[dict[str, float]]:
    """Return `CANDIDATES` of the network that each trial fine-tunes, for trials of one dense network that `run` has finished.

    What is computed is kept in the folder `candidates` of `runs`, and read from there the next time.

    Args:
        trials: with a pruner each; a repair is applied again.
        runs: the folder given to `run`.
        images: see `Yardstick.of`.
        samples: see `Yardstick.of`.
    """
    found, ruler = [], None
    for trial in trials:
        start = plan_stages(replace(trial, finetune=None))[-1]
        path = runs / "candidates" / f"{start.folder}-{images}-{samples}.json"
        if not path.exists():
            data = trial.load_data()
            if ruler is None:
                dense = DenseTraining(trial).load(runs, data).model
                ruler = Yardstick.of(dense, data, images=images, samples=samples)
            model = Pruning(trial).load(runs, data).model
            if trial.repair is not None:
                model = repair_by_name(trial.repair)(model, data=data, reference=dense, seed=trial.seed)
            make_folder(path.parent)
            write(path, json.dumps(ruler.describe(model)))
        found.append(json.loads(path.read_text()))
    return found


def _report(model: nn.Module, inputs: Tensor) -> Report:
    return measure(model, inputs, method="exact", layers=True, progress=False)


def _spectral_numbers(report: Report, dense: Report) -> dict[str, float]:
    values, yardstick = (r.spectrum.values.sort(1, descending=True).values for r in (report, dense))
    width = min(values.shape[1], yardstick.shape[1])
    shares = values / values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    ratio = report.mean_jsv / dense.mean_jsv
    return {
        "mean_jsv": report.mean_jsv,
        "log_mean_jsv": _log_distance(report.mean_jsv),
        "jsv_ratio": ratio,
        "log_jsv_ratio": _log_distance(ratio),
        "isometry_gap": report.isometry_gap,
        "gap_to_dense": float((values - yardstick)[:, :width].square().mean().sqrt() / yardstick.mean()),
        "condition_number": float(report.median_condition_number),
        "spread": report.std_jsv / report.mean_jsv if report.mean_jsv else math.inf,
        "effective_rank": float(torch.special.entr(shares).sum(1).exp().mean()),
        "weakest_layer": min(_layer_means(report)[name] / mean for name, mean in _layer_means(dense).items()),
    }


def _log_distance(value: float) -> float:
    return abs(math.log10(value)) if value > 0 else math.inf


def _layer_means(report: Report) -> Mapping[str, float]:
    assert report.layers is not None
    return dict(zip(report.layers["layer"], report.layers["mean_jsv"], strict=True))


def _recalibrated(model: nn.Module, inputs: Tensor) -> nn.Module | None:
    tracking = any(isinstance(module, BATCH_NORMS) and module.track_running_stats for module in model.modules())
    return recalibrate(model, inputs) if tracking else None


@torch.no_grad()
def _outputs_and_features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] and what the last linear layer reads [N, D], both float64 on the CPU."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    read: list[Tensor] = []
    with evaluating(model), hooked(last.register_forward_pre_hook(lambda _, args: read.append(args[0]))):
        outputs = [model(placed(x, model)) for x in inputs.split(500)]
    return torch.cat(outputs).double().cpu(), torch.cat(read).double().cpu()


def _gradient_norm(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the norm of the gradient of the mean cross-entropy with respect to all parameters, in eval mode."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(model), torch.enable_grad():
        for x, y in zip(inputs.split(500), targets.split(500), strict=True):
            x = placed(x, model)
            loss = F.cross_entropy(model(x), y.to(x.device), reduction="sum") / len(inputs)
            for summed, gradient in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                summed += gradient
    return float(torch.stack([gradient.double().square().sum() for gradient in total]).sum().sqrt())


def linear_similarity(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of features x [N, D] and y [N, E]: |Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|) of centered features, in [0, 1].

    0 where one of them does not depend on the sample.

    Source: Kornblith et al., ICML 2019, "Similarity of neural network representations revisited", Eq. 3 with Table 1.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    norm = float((x.T @ x).norm() * (y.T @ y).norm())
    return float((y.T @ x).square().sum()) / norm if norm else 0.0
