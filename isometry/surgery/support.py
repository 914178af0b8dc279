"""What surgery does not support: networks that are refused, by the name of the layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from isometry.errors import InvalidValueError

__all__ = ["check_supported"]


def check_supported(model: nn.Module) -> None:
    """Raise a ValueError for what surgery would break: parametrizations, masks, weight_norm, tied weights, compiled modules."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            raise InvalidValueError(
                f"got {name or 'a model'} compiled by torch.jit, whose parameters cannot be replaced; it takes the module "
                "from which that was compiled, e.g. model=torch.nn.Linear(4, 2) in place of "
                "torch.jit.script(torch.nn.Linear(4, 2))."
            )
        if parametrize.is_parametrized(module):
            raise _unsupported(
                name, module, "a parametrization", f"parametrize.remove_parametrizations(model.{name}, 'weight')"
            )
        for key, parameter in module._parameters.items():
            _check_reparametrization(name, module, key)
            if parameter is None:
                continue
            if other := owners.get(id(parameter)):
                raise ValueError(
                    f"{name}.{key} is tied to {other}, and channel surgery would silently untie them. Give one of them "
                    f"a copy first: model.{name}.{key} = torch.nn.Parameter(model.{name}.{key}.detach().clone())."
                )
            owners[id(parameter)] = f"{name}.{key}"


def _check_reparametrization(name: str, module: nn.Module, key: str) -> None:
    """Raise a ValueError where a parameter's name says that the weight is computed from it by a hook."""
    weight = key.removesuffix("_orig")
    if weight != key and f"{weight}_u" in module._buffers:
        raise _unsupported(name, module, "spectral_norm", f"remove_spectral_norm(model.{name})")
    if weight != key:
        raise _unsupported(name, module, "a mask of torch.nn.utils.prune", f"prune.remove(model.{name}, {weight!r})")
    if key.endswith("_g") and key.removesuffix("_g") + "_v" in module._parameters:
        raise _unsupported(name, module, "weight_norm", f"remove_weight_norm(model.{name})")


def _unsupported(name: str, module: nn.Module, what: str, call: str) -> ValueError:
    return ValueError(
        f"{name} ({type(module).__name__}) carries {what}, which channel surgery would break. Fold it first: "
        f"torch.nn.utils.{call}."
    )
