"""Where a trial's network comes from: the catalogue, a factory of the user's, or a network that is there already."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from isometry import networks
from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.networks.modules import clone, unwrap
from isometry.trials.digests import code_digest, function_digest, network_digest
from isometry.trials.seeding import seeded

__all__ = ["Architecture", "Factory", "Given", "find_function", "read_architecture"]


class Architecture(ABC):
    """Where a trial's network comes from; a value that does not change."""

    name: str
    """In tables and in the names of folders."""

    @abstractmethod
    def settings(self, seed: int, options: Mapping[str, Any]) -> Any:
        """Return what decides the network, as JSON types."""

    @abstractmethod
    def build(self, classes: int, seed: int, options: Mapping[str, Any], *, weights: str | None = None) -> nn.Module:
        """Return a network that nobody else holds, on the CPU.

        Args:
            classes: of the data set; networks of the catalogue have as many outputs.
            seed: of the initialization.
            options: arguments of the builder.
            weights: the name of weights, for networks of the catalogue.
        """


@dataclass(frozen=True)
class Catalogued(Architecture):
    """A network that `networks.build` knows by its name."""

    name: str

    def settings(self, seed: int, options: Mapping[str, Any]) -> str:
        """Return the name; the options and the seed are settings of the trial."""
        return self.name

    def build(self, classes: int, seed: int, options: Mapping[str, Any], *, weights: str | None = None) -> nn.Module:
        """Return the network, initialized with the seed or with weights."""
        if weights is not None:
            return networks.build(self.name, classes, weights=weights, **options)
        return networks.build(self.name, classes, seed=seed, **options)


@dataclass(frozen=True, eq=False)
class Factory(Architecture):
    """A function of the user's that returns a new network.

    Attributes:
        function: called with the trial's options, while the generators of torch, numpy and Python are seeded.
        reference: "package.module:function" where it was named so, else None.
    """

    function: Callable[..., Any]
    reference: str | None = None

    @property
    def title(self) -> str:
        """The function as it was named, or by its own name."""
        qualified = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return self.reference or str(qualified).replace("<locals>.", "").replace("<lambda>", "lambda")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The same as the name of a file."""
        return _as_file_name(self.title)

    @functools.cached_property
    def source(self) -> str | None:
        """The digest of the function's source; see `function_digest`."""
        return function_digest(self.function)

    @functools.cached_property
    def _built(self) -> dict[str, tuple[str, str | None]]:
        return {}

    def settings(self, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the digests of the function's source, of the network that it builds with this seed, and of its classes."""
        key = repr((seed, sorted(options.items())))
        if key not in self._built:
            model = self._call(seed, options)
            self._built[key] = network_digest(model), code_digest(model)
        network, code = self._built[key]
        return {"factory": self.name, "source": self.source, "network": network, "code": code}

    def build(self, classes: int, seed: int, options: Mapping[str, Any], *, weights: str | None = None) -> nn.Module:
        """Return the network that the function builds with this seed.

        Raises:
            ValueError: it is another one than it built before with the same seed.
        """
        model = self._call(seed, options)
        known = self.settings(seed, options)["network"]
        if (found := network_digest(model)) != known:
            raise InvalidValueError(
                f"got the factory {self.title}, which builds different networks with one seed (digests {known} and {found}), so "
                "that no result could be found again. Let it draw from torch, numpy or random alone, which are seeded, or "
                "pass the network that it builds, e.g. sweep(build(), ...)."
            )
        return model

    def _call(self, seed: int, options: Mapping[str, Any]) -> nn.Module:
        try:
            inspect.signature(self.function).bind(**options)
        except TypeError as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise InvalidTypeError(
                f"got the factory {self.title}, which cannot be called as {self.title}({given}) ({error}). It takes a function whose "
                "arguments have defaults or are in options, e.g. lambda: build(width=64)."
            ) from error
        except ValueError:  # no signature: a builtin
            pass
        with seeded(seed):
            try:
                built = self.function(**options)
            except Exception as error:  # whatever the user's function raises
                raise InvalidValueError(
                    f"got the factory {self.title}, which failed ({type(error).__name__}: {error}); it takes a function that "
                    "returns a torch module."
                ) from error
            return _copied(_checked(built, f"the factory {self.title}"))


@dataclass(frozen=True, eq=False)
class Given(Architecture):
    """A network that is there already, trained or not; every trial starts from a copy of it.

    Attributes:
        model: which; a copy of the user's, so that it does not change.
    """

    model: nn.Module

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of its class."""
        return _as_file_name(type(self.model).__name__)

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        return {
            "class": type(self.model).__name__,
            "network": network_digest(self.model),
            "code": code_digest(self.model),
        }

    def settings(self, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the digests of its weights and modules, and of its classes."""
        return self._settings

    def build(self, classes: int, seed: int, options: Mapping[str, Any], *, weights: str | None = None) -> nn.Module:
        """Return a copy."""
        return _copied(self.model)


def read_architecture(network: Any) -> Architecture:
    """Return where a network comes from.

    Args:
        network: a name of the catalogue, "package.module:function", a module, or a function that returns one.

    Raises:
        ValueError: the name is not known, or the module or function cannot be imported.
        TypeError: it is something else.
    """
    if isinstance(network, Architecture):
        return network
    if isinstance(network, str) and ":" in network:
        return Factory(find_function(network), network)
    if isinstance(network, str):
        if network not in networks.names():
            raise InvalidValueError(
                f"got the network {network!r}; it takes {', '.join(networks.names())}, or 'package.module:function' for one of "
                "your own."
            )
        return Catalogued(network)
    if isinstance(network, nn.Module):
        return Given(_copied(unwrap(network)))
    if isinstance(network, type) or not callable(network):
        kind = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise InvalidTypeError(
            f"got {kind} as the network; it takes a torch module, a function that returns one, a name such as 'resnet-20', or "
            "'package.module:function', e.g. lambda: Net(width=64)."
        )
    return Factory(network)


def find_function(reference: str) -> Callable[..., Any]:
    """Return the function that "package.module:function" names.

    Raises:
        ValueError: the module cannot be imported, or has no such function; the text says which.
    """
    module, _, function = reference.partition(":")
    example = "e.g. 'package.module:function', in a module that Python finds from here or from PYTHONPATH"
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise InvalidValueError(
            f"got the network {reference!r}, but {module or 'its module'} cannot be imported "
            f"({type(error).__name__}: {error}); it takes {example}."
        ) from error
    for part in function.split("."):
        if not hasattr(found, part):
            public = [name for name, value in vars(sys.modules[module]).items() if callable(value) and name[0] != "_"]
            raise InvalidValueError(
                f"got the network {reference!r}, but {module} has no {function or 'function of that name'}; it has "
                f"{', '.join(public[:5]) or 'no functions'}, {example}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise InvalidValueError(
            f"got the network {reference!r}, which is no function but {type(found).__name__}; {example}."
        )
    return found


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU."""
    try:
        return clone(model).cpu()
    except TypeError as error:
        raise InvalidTypeError(
            f"got a network of class {type(model).__name__}, which cannot be copied ({error}), and every trial starts from a copy. It "
            "takes networks without open files, locks or generators, e.g. a function that returns a new one."
        ) from error


def _checked(built: Any, source: str) -> nn.Module:
    if not isinstance(built, nn.Module):
        raise InvalidTypeError(
            f"got {source}, which returned {type(built).__name__}; it takes a function that returns a torch module, e.g. "
            "lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))."
        )
    return unwrap(built)


def _as_file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:80]
