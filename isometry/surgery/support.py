"""What surgery does not support, and why."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["check_supported"]


def check_supported(model: nn.Module) -> None:
    """Raise a ValueError for what surgery would break: parametrizations, masks, weight_norm, tied weights."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name} ({type(module).__name__}) carries a parametrization, which channel surgery would break. Fold "
                f"it first: torch.nn.utils.parametrize.remove_parametrizations(model.{name}, 'weight')."
            )
        for key in list(module._parameters):
            if key.endswith("_orig") and f"{key.removesuffix('_orig')}_u" in module._buffers:
                raise ValueError(
                    f"{name} ({type(module).__name__}) carries spectral_norm, which channel surgery would break. Fold it "
                    f"first: torch.nn.utils.remove_spectral_norm(model.{name})."
                )
            if key.endswith("_orig"):
                raise ValueError(
                    f"{name} ({type(module).__name__}) carries a mask of torch.nn.utils.prune, which channel surgery "
                    f"would break. Fold it first: torch.nn.utils.prune.remove(model.{name}, "
                    f"{key.removesuffix('_orig')!r})."
                )
            if key.endswith("_g") and key.removesuffix("_g") + "_v" in module._parameters:
                raise ValueError(
                    f"{name} ({type(module).__name__}) carries weight_norm, which channel surgery would break. Fold it "
                    f"first: torch.nn.utils.remove_weight_norm(model.{name})."
                )
            parameter = module._parameters[key]
            if parameter is None:
                continue
            if other := owners.get(id(parameter)):
                raise ValueError(
                    f"{name}.{key} is tied to {other}, and channel surgery would silently untie them. Give one of them "
                    f"a copy first: model.{name}.{key} = torch.nn.Parameter(model.{name}.{key}.detach().clone())."
                )
            owners[id(parameter)] = f"{name}.{key}"
