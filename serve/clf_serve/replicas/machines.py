"""The machines of a Ray cluster: what each replica may take of them, and whether each has what replicas open."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clf.errors import ServeError
from clf_serve.replicas.cluster import explained
from clf_serve.replicas.scale import Scale


def threads_of(scale: Scale, threads: int | None, cpus: Sequence[int]) -> int:
    """CPU threads of each replica: those that were asked for, or as many as fit when all run.

    Args:
        cpus: of each machine.

    Raises:
        ServeError: the fewest replicas do not fit, for which Ray would wait for ever.
    """

    def fitting(each: int) -> int:
        return sum(number // each for number in cpus)

    found = threads or next((n for n in range(max(cpus), 0, -1) if fitting(n) >= scale.most), 1)
    if fitting(found) < scale.least:
        each = f"{found} thread{'s' if found > 1 else ''}"
        raise ServeError(
            f"{scale.least} replicas of {each} do not fit on the cluster's CPUs ({', '.join(map(str, cpus))} on its "
            "machines); give fewer --replicas or --threads"
        )
    return found


def check_gpus(scale: Scale) -> None:
    """Raises ServeError: the fewest replicas do not fit on the GPUs that Ray finds; it would wait for ever."""
    if not scale.gpus:
        return
    nodes = importlib.import_module("ray").nodes()
    gpus = [int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
    fitting = sum(int(number / scale.gpus) if scale.gpus > 1 else number * int(1 / scale.gpus) for number in gpus)
    if fitting < scale.least:
        raise ServeError(
            f"{scale.least} x {scale.gpus:g} GPUs are more than Ray finds, {sum(gpus)} in all; "
            "give fewer --replicas or --replica-gpus, or leave the latter out to compute on the CPU"
        )


def check_machines(paths: Sequence[Path], host: str, galleries: Sequence[Path]) -> list[int]:
    """CPUs of each machine of a joined cluster that has any.

    Args:
        paths: that replicas open; each machine is asked for them.
        galleries: those of them that are galleries.

    Raises:
        ServeError: a machine cannot be one of the replicas', and why.
    """
    ray = importlib.import_module("ray")
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise ServeError("the Ray cluster has no machine with a CPU to use; start one (ray start --num-cpus N)")
    if len(nodes) > 1 and galleries:
        raise ServeError(
            f"the gallery {galleries[0]} is a folder, for replicas on one machine, and the cluster has {len(nodes)}; "
            "keep it in a store (clf index -o postgresql://...)"
        )
    if len(nodes) > 1 and host in ("127.0.0.1", "::1", "localhost"):
        raise ServeError(
            f"--host {host} is out of reach for the other machines of the cluster, and it has {len(nodes)}; "
            "give --host 0.0.0.0, and set CLF_API_KEYS"
        )
    for node in nodes:
        _check_machine(ray, node, [str(path.absolute()) for path in paths])
    return [int(node["Resources"]["CPU"]) for node in nodes]


def _check_machine(ray: Any, node: Mapping[str, Any], paths: list[str]) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    look = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(_missing)
    with explained(f"clf is not to be used on {where} of the cluster; install the same clf-vision[serve,ray] there"):
        missing = ray.get(look.remote(paths), timeout=60)
    if missing:
        raise ServeError(
            f"{', '.join(missing)} cannot be read on {where} of the cluster; "
            "put models at the same path on every machine, or on a file system that all of them have"
        )


def _missing(paths: list[str]) -> list[str]:
    """Those that are not here, asked on another machine."""
    return [path for path in paths if not os.access(path, os.R_OK)]
