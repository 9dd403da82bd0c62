"""A cluster of Ray: connecting to it, what its machines have, and how many engines fit."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fastdecode.jobs.manifest import versions

SECONDS = 10.0
"""How long a cluster may take to answer."""


def connect(address: str | None = None) -> None:
    """Connect to the cluster at ``address``; "auto": one that runs on this machine; None: that, or else a new one for
    this process. No effect if this process is connected. ``ValueError`` for an address that does not answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ writes among the bar's lines
    if address not in (None, "auto", "local"):
        _check_answers(str(address))
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **_quiet(address))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address in (None, "auto") else f"at {address}"
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"there is no cluster of Ray {where} that takes this process: {said}") from error


def _quiet(address: str | None) -> dict[str, Any]:
    return {"include_dashboard": False} if address == "local" else {}


def _check_answers(address: str) -> None:
    """``ValueError`` unless something listens there."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        port = place.port
    except ValueError:
        port = None
    if not place.hostname or port is None:
        raise ValueError(f"{address[:80]!r} is no address of a cluster: give HOST:PORT, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((place.hostname, port), timeout=SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"no cluster of Ray answers at {address}: {error.strerror or error}; `ray status` on a machine of it says "
            "where it is"
        ) from error


@dataclass(frozen=True)
class Sizes:
    """How many engines, and what each takes."""

    actors: int
    cpus: float
    gpus: float


def sizes(actors: int | None, cpus: int | None, gpus: float | None, device: str | None) -> Sizes:
    """Sizes for this cluster.

        actors, cpus, gpus   None: on GPUs one engine for each, with one CPU; on CPUs one for each machine, with as many
                             as the smallest has
        device               where engines work; None is the CPU

    ``ValueError`` for more than the cluster has, for GPUs that engines would not use, and for engines on GPUs without
    any.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise ValueError("no machine of the cluster has CPUs to give")
    on_gpus = device is not None and device.startswith("cuda")
    if gpus and not on_gpus:
        raise ValueError(f"{gpus:g} GPUs for each engine, which works on the CPU: give --device cuda too")
    if on_gpus and gpus == 0:
        raise ValueError(f"no GPU for each engine, which works on {device}: give --gpus 1, or 0.5 for two on a GPU")
    gpus = gpus or (1 if on_gpus else 0)
    if cpus is None:
        smallest = int(min(node["CPU"] for node in nodes))
        each = -(-actors // len(nodes)) if actors else 1
        cpus = 1 if on_gpus else max(1, smallest // each)
        actors = actors or (None if on_gpus else len(nodes))
    found = Sizes(actors or 1, cpus, gpus)
    room = sum(_fit(node, found) for node in nodes)
    if not room:
        cpus_there, gpus_there = (max(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        raise ValueError(
            f"no machine of the cluster has {found.cpus:g} CPUs and {found.gpus:g} GPUs for one engine: the largest "
            f"have {cpus_there:g} CPUs and {gpus_there:g} GPUs"
        )
    found = replace(found, actors=actors or room)
    if found.actors > room:
        raise ValueError(
            f"{found.actors} engines of {found.cpus:g} CPUs and {found.gpus:g} GPUs do not fit: the machines of the "
            f"cluster have room for {room}"
        )
    return found


def _fit(node: Mapping[str, float], wanted: Sizes) -> int:
    fits = int(node["CPU"] // wanted.cpus)
    return min(fits, int(node.get("GPU", 0) // wanted.gpus)) if wanted.gpus else fits


def check_machines(any_version: bool = False) -> None:
    """``ValueError`` names a machine of the cluster without fastdecode, or with other versions of the packages."""

    def found() -> dict[str, str | None]:
        from importlib import metadata

        have: dict[str, str | None] = {}
        for name in ("fastdecode", "torch", "transformers"):
            try:
                have[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                have[name] = None
        return have

    ask = ray.remote(num_cpus=0, max_retries=2)(found)
    machines = [node for node in ray.nodes() if node["Alive"]]
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in machines
    ]
    for node, have in zip(machines, ray.get(answers, timeout=60), strict=True):
        machine = f"the machine {node['NodeManagerAddress']} of the cluster"
        for name, version in versions().items():
            if have[name] is None:
                raise ValueError(f"{machine} has no {name}: install it there")
            if have[name] != version and not any_version:
                raise ValueError(
                    f"{machine} has {name} {have[name]}, and this one has {version}: install the same, or give "
                    "--any-version: its tokens may differ"
                )
