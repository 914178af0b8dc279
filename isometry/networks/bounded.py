"""Bounded BatchNorm, whose scales are importances in (0, 1); conversion from ordinary BatchNorm and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isometry.errors import InvalidValueError, signed
from isometry.networks.checks import check_module, check_values
from isometry.networks.masks import computed_weight, mask_of, refresh
from isometry.networks.modules import call, clone, feeding_layers, output_leaves
from isometry.networks.precision import full_precision
from isometry.networks.preservation import evaluating
from isometry.networks.shapes import example_inputs, placed

__all__ = ["BOUNDED", "BoundedBatchNorm1d", "BoundedBatchNorm2d", "convert", "fold", "importances", "to_batchnorm"]

_SMALLEST = 1e-6


class _Bounded(nn.modules.batchnorm._BatchNorm):
    """The implementation of the two bounded BatchNorms, which document it."""

    bound: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, shift: bool = False):
        super().__init__(num_features, eps, momentum)
        if not shift:
            self.register_parameter("bias", None)
        self.register_buffer("bound", torch.ones(()))
        self.reset_gamma()

    def reset_parameters(self) -> None:
        """Reset statistics and beta; `reset_gamma` draws gamma, once all attributes exist."""
        self.reset_running_stats()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_gamma(self) -> None:
        """Draw gamma from the standard normal distribution, as published: importances of 0.16 to 0.84 (5 to 95 %)."""
        nn.init.normal_(self.weight)

    @property
    def scale(self) -> Tensor:
        """[C]: the factors of the normalized channels, bound x sigmoid(gamma)."""
        return self.bound * torch.sigmoid(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...], with the statistics of the batch in train mode, the running ones in eval mode."""
        self._check_input_dim(x)
        batch = self.training or self.running_mean is None
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.scale, self.bias, training=batch, momentum=factor, eps=self.eps
        )


class BoundedBatchNorm1d(_Bounded):
    """Bounded BatchNorm over [N, C] or [N, C, L]: y = bound x sigmoid(gamma) x x_hat (+ beta).

    sigmoid(gamma), with gamma [C] the parameter `weight`, is a channel's importance, in (0, 1). gamma is initialized
    from the standard normal distribution. Without beta [C], the parameter `bias`, the output of a channel vanishes with
    its importance; there is one only with `shift=True`. `bound` is a constant of the layer, 1 unless `isometry.convert`
    set it.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: of the running statistics.
        shift: whether there is a beta.

    Source: Suteu & Guo 2022 (arXiv 2204.06404), SigBN; `bound` and the optional beta are this library's.
    """

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BoundedBatchNorm2d(_Bounded):
    """Bounded BatchNorm over [N, C, H, W]; see `BoundedBatchNorm1d`."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


BOUNDED = (BoundedBatchNorm1d, BoundedBatchNorm2d)
_KINDS: dict[type[nn.Module], type[_Bounded]] = {
    nn.BatchNorm1d: BoundedBatchNorm1d,
    nn.BatchNorm2d: BoundedBatchNorm2d,
}


@signed("importances")
def importances(model: nn.Module) -> dict[str, Tensor]:
    """Return {layer name: sigmoid(gamma) [C] in (0, 1)} of every bounded BatchNorm.

    Raises:
        ValueError: the model has none.
    """
    check_values(model, "importances(isometry.networks.build('resnet-20', norm='bounded'))")
    result = {n: m.weight.detach().sigmoid() for n, m in model.named_modules() if isinstance(m, BOUNDED)}
    if not result:
        raise InvalidValueError(
            "found no bounded BatchNorm; it takes a network with some, e.g. isometry.convert(model) of one with ordinary ones."
        )
    return result


@signed("convert")
@torch.no_grad()
def convert(
    model: nn.Module,
    inputs: Any = None,
    *,
    headroom: float = 1.5,
    skip: str | Sequence[str] = (),
) -> nn.Module:
    """Return a copy whose ordinary BatchNorms are bounded ones with the same outputs; `model` is left alone.

    A layer's bound is `headroom` times its largest |scale|, gamma = logit(|scale| / bound), and beta stays. Where a
    scale is negative, its sign moves to the convolution or linear layer before: the unit's weights and bias and the
    running mean are negated. A scale of 0 becomes an importance of 1e-6.

    Args:
        model: a network with BatchNorm1d or BatchNorm2d layers.
        inputs: [B, ...], a batch for the forward pass that finds those layers, or a tuple or dict of arguments; None draws
            one of a shape that the model is found to take.
        headroom: above 1; the ratio of a layer's bound to its largest scale. Near the bound the sigmoid is flat and
            its gradient vanishes.
        skip: name patterns (fnmatch) of BatchNorms that are not converted.

    Raises:
        ValueError: no BatchNorm; headroom of at most 1; or a BatchNorm with negative scales whose input is not the output
            of one layer alone.
    """
    check_module(model, "convert(isometry.networks.build('resnet-20'))")
    if not headroom > 1:
        raise InvalidValueError(
            f"got headroom={headroom}; it takes a number above 1, e.g. convert(model, headroom=1.5)."
        )
    result = clone(model)
    norms = _ordinary_norms(result, skip)
    negative = {name: norm for name, norm in norms.items() if bool((norm.weight < 0).any())}
    x = before = None
    if negative:
        x = placed(example_inputs(result, 2, call="convert(model, inputs)") if inputs is None else inputs, result)
        with evaluating(result), full_precision():
            pairs, before = feeding_layers(result, lambda: call(result, x))
        _move_signs(result, negative, {norm: layer for layer, norm in pairs})
        refresh(result)
    for norm in norms.values():
        _replace(result, norm, _bounded(norm, headroom))
    if negative:
        with evaluating(result), full_precision():
            outputs = zip(_tensors(call(result, x)), _tensors(before), strict=True)
        if any(float((new - old).abs().max()) > 1e-3 * float(old.abs().max()) for new, old in outputs):
            names = ", ".join(list(negative)[:5]) + (f" and {len(negative) - 5} more" if len(negative) > 5 else "")
            raise InvalidValueError(
                "found that the outputs change: a layer before one of the BatchNorms with negative scales, "
                f"{names}, is read elsewhere, too. Leave that BatchNorm out: "
                f"convert(model, skip={next(iter(negative))!r})."
            )
    return result


def _ordinary_norms(model: nn.Module, skip: str | Sequence[str]) -> dict[str, Any]:
    """Return the BatchNorms to convert by name."""
    patterns = [skip] if isinstance(skip, str) else list(skip)
    norms = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _KINDS and module.affine and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not norms:
        raise InvalidValueError(
            "found no BatchNorm to convert; it takes a network with some, e.g. "
            "convert(isometry.networks.build('resnet-20'))."
        )
    return norms


def _move_signs(model: nn.Module, norms: Mapping[str, Any], feeders: Mapping[str, str]) -> None:
    """Negate the units of the layers before BatchNorms, {name: BatchNorm}, where the scale is negative."""
    for name, norm in norms.items():
        flipped = norm.weight < 0
        if name not in feeders:
            raise InvalidValueError(
                f"found {int(flipped.sum())} negative scales in {name} ({type(norm).__name__}), which no "
                "convolution or linear layer alone feeds, so that no layer can take their sign. Leave it as it is: "
                f"convert(model, skip={name!r})."
            )
        layer = model.get_submodule(feeders[name])
        if computed_weight(layer):
            raise InvalidValueError(
                f"found {int(flipped.sum())} negative scales in {name}, whose sign {feeders[name]} cannot take, as its weight is "
                f"computed from other parameters. Make that permanent first (torch.nn.utils.remove_weight_norm), or leave {name} as it "
                f"is: convert(model, skip={name!r})."
            )
        layer.get_parameter("weight" if mask_of(layer) is None else "weight_orig")[flipped] *= -1
        if isinstance(layer.bias, Tensor):
            layer.bias[flipped] *= -1
        if norm.running_mean is not None:
            norm.running_mean[flipped] *= -1


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in output_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _bounded(norm: Any, headroom: float) -> _Bounded:
    with torch.random.fork_rng(devices=[]):  # the constructor draws gamma
        result = _KINDS[type(norm)](norm.num_features, norm.eps, norm.momentum, shift=norm.bias is not None)
    result.to(norm.weight)
    sizes = norm.weight.abs().double()
    bound = headroom * float(sizes.max()) or 1.0
    result.bound.fill_(bound)
    result.weight.copy_(torch.logit((sizes / bound).clamp_min(_SMALLEST)))
    return _copy_rest(norm, result)


def _copy_rest(norm: Any, result: Any) -> Any:
    """Return `result` with the statistics, the shift, the mode and the `requires_grad` of `norm`."""
    if norm.bias is not None:
        result.bias.copy_(norm.bias)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(result, key, getattr(norm, key))
    result.track_running_stats = norm.track_running_stats
    result.weight.requires_grad_(norm.weight.requires_grad)
    if result.bias is not None and norm.bias is not None:
        result.bias.requires_grad_(norm.bias.requires_grad)
    return result.train(norm.training)


@signed("fold")
@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return a copy whose bounded BatchNorms are ordinary ones with the same outputs; `model` is left alone.

    weight = bound x sigmoid(gamma), bias = beta or 0; the statistics stay. Outputs are the same, bit for bit.

    Raises:
        ValueError: the model has no bounded BatchNorm.
    """
    check_module(model, "fold(isometry.networks.build('resnet-20', norm='bounded'))")
    importances(model)
    result = clone(model)
    for module in list(result.modules()):
        if isinstance(module, BOUNDED):
            _replace(result, module, to_batchnorm(module))
    return result


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace `old` by `new` under each of its names, of which a shared module has several."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)


@torch.no_grad()
def to_batchnorm(norm: nn.Module) -> nn.Module:
    """Return the ordinary BatchNorm with the outputs of a bounded one; any other module as it is."""
    if not isinstance(norm, BOUNDED):
        return norm
    kind = nn.BatchNorm1d if isinstance(norm, BoundedBatchNorm1d) else nn.BatchNorm2d
    result = kind(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
    result.weight.copy_(norm.scale)
    return _copy_rest(norm, result)
