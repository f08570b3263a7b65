"""Bulk embedding: images of a folder, of tars or of an object store into shards of vectors, by one machine or many.

The work is planned first (:mod:`clf_serve.bulk.plan`): shards of consecutive images, and all that vectors depend on.
An *engine* brings the shards to workers. Two are here: ``local``, in this process, and ``ray``, on Ray Data. A package
offers another by an entry point of the group ``clf.engines``: ``mine = "clf_mine:MyEngine"``, where ``MyEngine`` is a
:class:`BulkEngine`; ``clf embed --engine mine`` uses it from then on. :func:`conformance` makes its tests, and
``python -m clf_serve.bulk mine`` runs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clf_serve.bulk.checks import Check, Conformance, Outcome, conformance, run_checks
    from clf_serve.bulk.encoder import Encoder, OpenModel
    from clf_serve.bulk.engine import BulkEngine, Options, list_engines
    from clf_serve.bulk.local import LocalEngine
    from clf_serve.bulk.plan import Plan, Settings, Shard
    from clf_serve.bulk.running import Bulk, BulkReport, Watch, prepare, run
    from clf_serve.bulk.sources import Source, find_source
    from clf_serve.bulk.worker import ShardReport, Work, Worker

_WHERE = {
    "checks": ("Check", "Conformance", "Outcome", "conformance", "run_checks"),
    "encoder": ("Encoder", "OpenModel"),
    "engine": ("BulkEngine", "Options", "list_engines"),
    "local": ("LocalEngine",),
    "plan": ("Plan", "Settings", "Shard"),
    "running": ("Bulk", "BulkReport", "Watch", "prepare", "run"),
    "sources": ("Source", "find_source"),
    "worker": ("ShardReport", "Work", "Worker"),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Bulk",
    "BulkEngine",
    "BulkReport",
    "Check",
    "Conformance",
    "Encoder",
    "LocalEngine",
    "OpenModel",
    "Options",
    "Outcome",
    "Plan",
    "Settings",
    "Shard",
    "ShardReport",
    "Source",
    "Watch",
    "Work",
    "Worker",
    "conformance",
    "find_source",
    "list_engines",
    "prepare",
    "run",
    "run_checks",
]


def __getattr__(name: str) -> Any:
    """Each loads on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"clf_serve.bulk.{_MODULE_OF[name]}"), name)
