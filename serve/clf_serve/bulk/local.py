"""Bulk embedding in this process: the reference for all other engines, and the fastest on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from clf.errors import ConfigError
from clf_serve.bulk.engine import BulkEngine, Options
from clf_serve.bulk.plan import Shard
from clf_serve.bulk.worker import ShardReport, Work


class LocalEngine(BulkEngine):
    """One worker on all cores, or on one GPU. Files are decoded ahead of the model, across shards too."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.workers not in (None, 1) or options.address is not None:
            raise ConfigError(
                "--engine local works in this process, on all its cores; --workers and --address are for others, such "
                "as --engine ray"
            )

    def run(self, work: Work, shards: Sequence[Shard], progress: Callable[[int], None]) -> Iterator[ShardReport]:
        if shards:
            with work.open() as worker:
                yield from worker.each(shards, progress)
