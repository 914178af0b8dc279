"""A client of a Dask cluster: made, and checked before trials run on its workers."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from isometry.errors import InvalidTypeError, InvalidValueError, join_names
from isometry.files import software
from isometry.trials.parcel import describe_worker

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["INSTALL", "check_client", "check_workers", "connect", "is_installed"]

INSTALL = "pip install 'isometry[cluster]'"
_TIMEOUT = 10  # seconds to reach a scheduler


def is_installed() -> bool:
    """Whether Dask's scheduler and workers are installed."""
    return importlib.util.find_spec("distributed") is not None


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Client | None]:
    """Give a client of the scheduler at an address, closed afterwards; None without an address.

    Raises:
        OSError: no scheduler answers there; the text names the address.
    """
    if address is None:
        yield None
        return
    from distributed import Client

    try:
        client = Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise OSError(
            f"no Dask scheduler answered at {address} within {_TIMEOUT} s ({error}). Start one, e.g. dask scheduler --port 8786, "
            "and name its address, e.g. --cluster tcp://localhost:8786."
        ) from error
    with client:
        yield client


def check_client(client: Any, jobs: int | None) -> None:
    """Raise an error unless this is a client that can be used, and the number of jobs is left to its workers."""
    if client is None:
        return
    example = "e.g. client=distributed.Client('tcp://localhost:8786')"
    if not is_installed():
        raise InvalidTypeError(
            f"got client={client!r}, but Dask is not installed; it takes a distributed.Client. {INSTALL}."
        )
    from distributed import Client

    if not isinstance(client, Client):
        raise InvalidTypeError(f"got client={client!r}; it takes a distributed.Client, {example}.")
    if client.asynchronous:
        raise InvalidTypeError(f"got a client that is asynchronous; it takes one that is not, {example}.")
    if client.status != "running":
        raise InvalidValueError(f"got a client that is {client.status}; it takes one that is connected, {example}.")
    if jobs is not None:
        raise InvalidValueError(
            f"got jobs={jobs} and a client; the workers of the cluster are the jobs. Leave out one or the other."
        )


def check_workers(client: Client, verb: str) -> None:
    """Refuse workers that cannot import isometry; warn of those of other versions, and of several threads.

    Raises:
        ValueError: a worker cannot import isometry, or not this part of it.
    """
    threads = client.nthreads()
    if not threads:
        print(f"no workers at {client.scheduler_info()['address']} yet; waiting for them", file=sys.stderr, flush=True)
    here, others = software(), dict[str, list[str]]()
    for address, found in client.run(describe_worker, on_error="return").items():
        if isinstance(found, ImportError):
            raise InvalidValueError(
                f"got a cluster whose worker {address} cannot import what it needs ({found}); install isometry "
                f"{here['isometry']} there, the version that is used here."
            )
        for name in ("isometry", "commit", "torch", "numpy"):
            if isinstance(found, dict) and found[name] != here[name]:
                others.setdefault(f"{name} {found[name]} instead of {here[name]}", []).append(address)
    for text, addresses in others.items():
        warnings.warn(
            f"{verb}() got workers of another version: {text} at {join_names(addresses)}. Numbers may differ between versions; "
            "install the same ones.",
            stacklevel=4,
        )
    if several := [address for address, number in threads.items() if number > 1]:
        warnings.warn(
            f"{verb}() got workers of several threads, {join_names(several)}; each computes one stage at a time. Start them with one, "
            "e.g. dask worker --nworkers 4 --nthreads 1.",
            stacklevel=4,
        )
