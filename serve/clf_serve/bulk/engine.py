"""What an engine for bulk embedding has to do, and which are installed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType

from clf.catalogue import PluginInfo, list_entries, the_usable
from clf.errors import ConfigError, PluginError, did_you_mean
from clf_serve.bulk.plan import Shard
from clf_serve.bulk.worker import ShardReport, Work
from clf_serve.installed import load_class, quiet, reason_of

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {"local": "clf_serve.bulk.local:LocalEngine", "ray": "clf_serve.bulk.rays:RayEngine"}
)


@dataclass(frozen=True)
class Options:
    """What the user may say of the machines that work."""

    workers: int | None = None
    """How many processes at a time; as the engine thinks best unless given."""
    address: str | None = None
    """Of a cluster; None for this machine, or what the engine's own settings say."""


class BulkEngine(ABC):
    """Runs shards on one machine or many. Its class is named by an entry point of the group ``clf.engines``.

    An engine brings shards to workers and their reports back; it reads no image and writes no file of the output. In
    each process that is to work it calls :meth:`Work.open` once, and then :meth:`Worker.do` for one shard after
    another, or :meth:`Worker.each` for several. All of these can be pickled: work, shards and reports.

    A shard may be done twice, for example after its process has died: what is there of it is kept, and it comes out
    the same to the bit.
    """

    def __init__(self, options: Options) -> None:
        """Raises ConfigError: an option that this engine has no use for."""
        self.options = options

    @abstractmethod
    def run(self, work: Work, shards: Sequence[Shard], progress: Callable[[int], None]) -> Iterator[ShardReport]:
        """Does all shards, in any order, and reports each as soon as it is done, once.

        Closed early, it ends its workers before it returns; shards that they have not finished may be left undone.

        Args:
            shards: none of them twice; may be empty, and then nothing is opened.
            progress: to be called with the number of images embedded or skipped since the last call; in all as many as
                the reports say were made. At the latest with the report.

        Raises:
            ClfError: what a worker raised of that kind comes out as it is; what else goes wrong there comes out with
                its reason, as a PluginError of the engine's own at best. Nothing is swallowed, and no shard left out.
            MissingExtraError: the engine needs a package that is not installed.
        """


def list_engines() -> list[PluginInfo]:
    """All that are installed, by name, with what forbids their use. Imports none of them."""
    return list_entries("engine", BUILT_IN)


def load_engine(name: str) -> type[BulkEngine]:
    """The class of an engine. What it prints while it is imported goes to standard error.

    Raises:
        PluginError: there is none of that name, it cannot be imported, or it is no engine.
        MissingExtraError: it needs an optional package of clf that is not installed.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[BulkEngine] = getattr(import_module(module), attribute)
        return built_in
    rows = list_engines()
    named = [row for row in rows if row.name == name]
    if not named:
        known = sorted({*BUILT_IN, *(row.name for row in rows if row.state == "available")})
        raise PluginError(f"there is no engine {name!r}.{did_you_mean(name, known)} Installed: {', '.join(known)}")
    found: type[BulkEngine] = load_class(the_usable(named), BulkEngine)
    return found


def make_engine(kind: type[BulkEngine], name: str, options: Options) -> BulkEngine:
    """Raises ConfigError, PluginError: it cannot be made."""
    try:
        with quiet():
            return kind(options)
    except (ConfigError, PluginError):
        raise
    except Exception as error:
        raise PluginError(f"engine {name!r} cannot be made: {reason_of(error)}") from error
