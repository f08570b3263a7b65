"""Bulk embedding on Ray Data: shards are its rows, and a worker is the actor that maps them (extra ``ray``).

Source: https://docs.ray.io/en/latest/data/transforming-data.html#stateful-transforms
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from clf.errors import ConfigError, PluginError, in_one_line, missing_extra
from clf_serve import ray_start
from clf_serve.bulk.encoder import OpenModel
from clf_serve.bulk.engine import BulkEngine
from clf_serve.bulk.plan import Shard
from clf_serve.bulk.worker import ShardReport, Work, Worker
from clf_serve.cores import usable_cores

_STORE = 128 * 2**20  # bytes of shared memory; images do not travel through Ray
_MOST_BLOCKS = 2000
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # which its core announces in a line of its own; nobody hears it
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Share(NamedTuple):
    """Of the cluster, what each worker takes."""

    workers: int
    cpus: int
    gpus: int


class RayEngine(BulkEngine):
    """One worker for each machine, or for each GPU, of a Ray cluster.

    The cluster is the one at the address that was given or that ``RAY_ADDRESS`` names. Without one, Ray is started on
    this machine, on its loopback, and ended again; usage statistics and the dashboard stay off.
    """

    def run(self, work: Work, shards: Sequence[Shard], progress: Callable[[int], None]) -> Iterator[ShardReport]:
        if not shards:
            return
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
            raise missing_extra("ray", "ray", "--engine ray")
        if work.output.startswith("memory://"):
            raise ConfigError(f"{work.output} is seen by one process only; name a folder or another URL with -o")
        address = self.options.address or os.environ.get("RAY_ADDRESS")
        with joined(address) if address else started() as ray:
            share = _share(ray, work, self.options.workers)
            work = _with_provider(work, share)
            with closing(_rows(work, shards, share)) as rows:
                for row in rows:
                    report = _report(row)
                    progress(report.made)
                    yield report


class _Actor:
    """A worker, in the process that Ray makes for it."""

    def __init__(self, work: bytes, threads: int) -> None:
        self._work, self._threads = work, threads
        self._worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        return {"report": [self._done(bytes(shard)) for shard in rows["shard"]]}

    def _done(self, shard: bytes) -> bytes:
        """A report, or what went wrong: Ray would bury the cause, and begin again from what cannot succeed."""
        try:
            if self._worker is None:
                work: Work = pickle.loads(self._work)
                self._worker = work.open(self._threads)
            return pickle.dumps(self._worker.do(pickle.loads(shard)))
        except Exception as error:
            return _packed(error)


def _packed(error: Exception) -> bytes:
    error.add_note(traceback.format_exc())
    error.__cause__ = error.__context__ = None
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)  # some can be pickled, and not be made again
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {in_one_line(error)}"))
    return packed


def _report(row: bytes) -> ShardReport:
    """Raises what the worker raised."""
    found: ShardReport | Exception = pickle.loads(row)
    if isinstance(found, Exception):
        raise found
    return found


def _rows(work: Work, shards: Sequence[Shard], share: Share) -> Generator[bytes, None, None]:
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"shard": pickle.dumps(shard)} for shard in shards]
    blocks = min(len(items), _MOST_BLOCKS)
    resources: dict[str, Any] = {"num_cpus": share.cpus} | ({"num_gpus": share.gpus} if share.gpus else {})
    mapped = data.from_items(items, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_args=(pickle.dumps(work), share.cpus),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=share.workers),
        **resources,
    )
    with ray_start.explained("Ray Data failed", PluginError), closing(iter(mapped.iter_rows())) as rows:
        for row in rows:
            yield bytes(row["report"])


def _share(ray: Any, work: Work, workers: int | None) -> Share:
    """Raises ConfigError: more workers than there are CPUs or GPUs."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    nodes = [node for node in alive if node.get("CPU", 0) >= 1]
    asked = work.encoder.provider if isinstance(work.encoder, OpenModel) else "cpu"
    on_gpu = asked == "cuda" or (asked == "auto" and gpus > 0 and work.provider in ("", "cuda"))
    if on_gpu:
        if (workers or 1) > gpus:
            raise ConfigError(f"{workers or 1} workers on GPUs are more than the {gpus} GPUs of the Ray cluster")
        count = workers or gpus
        fewest = min(node.get("CPU", 1) / node["GPU"] for node in alive if node.get("GPU", 0) >= 1)
        return Share(count, max(1, int(fewest)), 1)
    cpus = int(sum(node["CPU"] for node in nodes))
    count = workers or len(nodes)
    if not nodes or count > cpus:
        raise ConfigError(f"{max(count, 1)} workers are more than the {cpus} CPUs of the Ray cluster; see --workers")
    on_each = -(-count // len(nodes))
    return Share(count, max(1, int(min(node["CPU"] for node in nodes) // on_each)), 0)


def _with_provider(work: Work, share: Share) -> Work:
    """``auto`` settled for all workers alike, as vectors of a CPU and of a GPU differ in their last bits."""
    if not isinstance(work.encoder, OpenModel) or work.encoder.provider not in ("auto", "cuda"):
        return work
    provider: Literal["cuda", "cpu"] = "cuda" if share.gpus else "cpu"
    encoder = replace(work.encoder, provider=provider) if work.encoder.provider == "auto" else work.encoder
    return replace(work, encoder=encoder, provider=work.provider or provider)


@contextmanager
def started() -> Iterator[Any]:
    """Ray on this machine, which ends with the block and leaves nothing behind. It listens on 127.0.0.1 and asks for a
    secret of its own."""
    if _running():
        yield importlib.import_module("ray")
        return
    with (
        ray_start.own_folder() as folder,
        ray_start.environment(_settings() | ray_start.own_settings(folder)),
        ray_start.started(PluginError, "ray.data", folder, num_cpus=usable_cores(), object_store_memory=_STORE) as ray,
    ):
        yield ray


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """A cluster that runs and goes on running."""
    if _running():  # whoever started it ends it
        yield importlib.import_module("ray")
        return
    with ray_start.environment(_settings()), ray_start.joined(PluginError, "ray.data", address) as ray:
        yield ray


def _settings() -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}


def _running() -> bool:
    return "ray" in sys.modules and bool(importlib.import_module("ray").is_initialized())
