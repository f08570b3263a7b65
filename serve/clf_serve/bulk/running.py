"""From a source to an output: plan, work that is left, engine, and the report at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from clf.errors import ClfError, PluginError
from clf_serve.bulk.encoder import OpenEncoder
from clf_serve.bulk.engine import BUILT_IN, BulkEngine
from clf_serve.bulk.folders import Folder
from clf_serve.bulk.parts import About, Unused, done, part_name, read_skipped
from clf_serve.bulk.plan import REPORT, Plan, Settings, Shard, settle
from clf_serve.bulk.sources import Source
from clf_serve.bulk.worker import ShardReport, Work
from clf_serve.installed import reason_of

_READERS = 16
SHOWN = 100
"""Images that could not be used which a report names."""


@dataclass
class Watch:
    """What a run tells meanwhile."""

    found: Callable[[int], None] = lambda count: None
    """So many images, or tars, have been listed."""
    begin: Callable[[int | None], None] = lambda total: None
    """So many images are left to be embedded; None where nobody knows, as with tars."""
    progress: Callable[[int], None] = lambda done: None
    """So many more are embedded or skipped."""
    note: Callable[[str], None] = lambda text: None
    """Something worth knowing of the model as it runs, once."""


@dataclass(frozen=True)
class BulkReport:
    """What the output holds, and what was done for it now."""

    images: int
    skipped: int
    left_out: int
    shards: int
    made: int = 0
    """Images embedded or skipped now; the rest was there."""
    some: list[Unused] = field(default_factory=list)
    """The first of those that could not be used."""


@dataclass(frozen=True)
class Bulk:
    """One output, planned and to be gone on with."""

    folder: Folder
    plan: Plan
    work: Work
    left: list[Shard]
    """Shards that are not done."""

    @property
    def images_left(self) -> int | None:
        """None where nobody knows."""
        return None if self.plan.tars and self.left else sum(shard.images for shard in self.left)


def prepare(
    source: Source,
    output: str,
    settings: Settings,
    encoder: OpenEncoder,
    *,
    restart: bool = False,
    watch: Watch | None = None,
) -> Bulk:
    """Plans, or finds the plan that is there and what is left of it.

    Raises:
        DataError: the source is empty or has changed; the output holds something else.
        MissingExtraError: the source or the output needs a package that is not installed.
    """
    folder = Folder.of(output)
    plan = settle(folder, source, settings, restart=restart, found=(watch or Watch()).found)
    folder.make()
    left, provider = [], ""
    for shard, there in _looked_at(folder, plan):
        if not (there and there[-1].last):
            left.append(shard)
        if there and not provider:
            provider = there[0].provider
    return Bulk(folder, plan, Work(output, plan, source, encoder, provider), left)


def run(bulk: Bulk, engine: BulkEngine, name: str, watch: Watch | None = None) -> BulkReport:
    """Does what is left, and writes ``report.json``.

    Args:
        name: of the engine, for messages.

    Raises:
        ClfError: what is whole is kept; run again, it goes on from there.
        PluginError: the engine does not do what it has to.
    """
    watch = watch or Watch()
    watch.begin(bulk.images_left)
    made, notes = 0, set[str]()
    for report in _reports(bulk, engine, name, watch.progress):
        made += report.made
        if report.note and report.note not in notes:
            notes.add(report.note)
            watch.note(report.note)
    found = list(_looked_at(bulk.folder, bulk.plan))
    undone = [shard.number for shard, there in found if not (there and there[-1].last)]
    if undone:
        raise PluginError(
            f"engine {name!r} ended and left {len(undone)} of {len(found)} shards undone, shard {undone[0]} first; run "
            "the same command again"
        )
    return _report(bulk, [about for _, there in found for about in there], made)


def _reports(bulk: Bulk, engine: BulkEngine, name: str, progress: Callable[[int], None]) -> Iterator[ShardReport]:
    """Of the engine, each looked at. Raises ClfError, PluginError."""
    waiting = {shard.number: shard for shard in bulk.left}
    providers = {bulk.work.provider} - {""}
    try:
        with closing(iter(engine.run(bulk.work, bulk.left, progress))) as reports:  # type: ignore[type-var]
            for report in reports:
                shard = waiting.pop(getattr(report, "shard", -1), None)
                if shard is None:
                    raise PluginError(
                        f"engine {name!r} reported {report!r:.80}, which it was not given or had reported"
                    )
                there = done(bulk.folder, bulk.plan, shard)
                if not (there and there[-1].last):
                    file = part_name(bulk.plan, shard.number, len(there))
                    raise PluginError(
                        f"engine {name!r} says that shard {shard.number} is done, and {file} is not in "
                        f"{bulk.folder.shown}; a cluster needs a folder that all machines see, or a URL, with -o"
                    )
                providers |= {about.provider for about in there}
                if len(providers) > 1:
                    raise PluginError(
                        f"the model ran on {' and '.join(sorted(providers))}, whose vectors differ in their last bits; "
                        "name one with --provider, and begin anew with --restart"
                    )
                yield report
    except (ClfError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # a SystemExit of theirs is no end of ours
        if name in BUILT_IN:  # a bug of ours, whose traceback is wanted
            raise
        raise PluginError(f"engine {name!r} failed: {reason_of(error)}") from error


def _looked_at(folder: Folder, plan: Plan) -> Iterator[tuple[Shard, list[About]]]:
    """Each shard with its parts that are there and whole."""
    names = folder.names()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="clf-look") as pool:
        shards = plan.shards()
        yield from zip(
            shards, pool.map(lambda shard: done(folder, plan, shard, names.__contains__), shards), strict=True
        )


def _report(bulk: Bulk, parts: Sequence[About], made: int) -> BulkReport:
    skipped = (
        unused
        for about in parts
        if about.skipped
        for unused in read_skipped(bulk.folder, bulk.plan, about.shard, about.slice)
    )
    report = BulkReport(
        sum(about.images for about in parts),
        sum(about.skipped for about in parts),
        sum(about.left_out for about in parts),
        len(bulk.plan.shards()),
        made,
        list(islice(skipped, SHOWN)),
    )
    facts: dict[str, Any] = {
        "plan": bulk.plan.id,
        "images": report.images,
        "skipped": report.skipped,
        "left_out": report.left_out,
        "shards": report.shards,
        "parts": len(parts),
        "provider": parts[0].provider,
        "first_skipped": [each._asdict() for each in report.some],
    }
    text = (json.dumps(facts, indent=1) + "\n").encode()

    bulk.folder.put(REPORT, text)
    return report
