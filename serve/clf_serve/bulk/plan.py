"""What is to be done, written down before it is begun: ``plan.json`` and ``listing.jsonl`` in the output.

Everything that the vectors depend on stands in the plan, so that a second run either goes on to the very same output
or is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import zip_longest
from typing import IO, Any, Protocol

from clf.errors import DataError
from clf_serve.bulk.folders import Folder
from clf_serve.bulk.sources import Listed, Source, any_tars

PLAN, LISTING, REPORT = "plan.json", "listing.jsonl", "report.json"
FORMAT = 1
_BLOCK = 2**20
_SAID = {
    "model": "the model",
    "model_sha256": "the model",
    "dim": "vectors of length",
    "variant": "the variant",
    "preprocessing": "the preprocessing",
    "provider": "the provider",
    "batch_size": "--batch-size",
    "shard_size": "--shard-size",
    "form": "--format",
    "source": "the source",
}


@dataclass(frozen=True)
class Settings:
    """All that decides what the output holds, besides the source."""

    model: str
    model_sha256: str
    """Of the graph that is run: a variant has its own."""
    dim: int
    variant: str = "fp32"
    preprocessing: str = ""
    provider: str = "auto"
    batch_size: int = 32
    shard_size: int = 8192
    """Images of a part at most."""
    form: str = "parquet"
    """Of the parts: ``parquet`` or ``npy``."""


@dataclass(frozen=True)
class Shard:
    """A part of the work that is done by one worker: images of a folder in a row, or one tar."""

    number: int
    images: int
    """How many; 0 for a tar, which says when it is read."""
    start: int
    end: int
    """Bytes of the listing."""


@dataclass(frozen=True)
class Plan:
    """Settings, source, and how the source is cut."""

    settings: Settings
    source: tuple[str, ...]
    tars: bool
    listed: int
    """Images of a folder, or tars."""
    listing_sha256: str
    ends: tuple[int, ...]
    """Of each shard, the byte of the listing at which it ends."""

    @cached_property
    def id(self) -> str:
        """Equal for equal plans. Asked for with every part, and as long to make as there are tars."""
        return hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()[:16]

    def shards(self) -> list[Shard]:
        size = 1 if self.tars else self.settings.shard_size
        starts = (0, *self.ends)
        return [
            Shard(i, 0 if self.tars else min(size, self.listed - i * size), starts[i], end)
            for i, end in enumerate(self.ends)
        ]

    def text(self) -> str:
        """As it is kept. Raises nothing; :meth:`of` reads it."""
        return json.dumps({"format": FORMAT, "plan": self.id, **self._facts()}, indent=1) + "\n"

    def _facts(self) -> dict[str, Any]:
        return {
            **asdict(self.settings),
            "source": list(self.source),
            "tars": self.tars,
            "listed": self.listed,
            "listing_sha256": self.listing_sha256,
            "ends": list(self.ends),
        }

    @classmethod
    def of(cls, text: bytes, shown: str) -> Plan:
        """Raises DataError: it is damaged, or of a later clf."""
        try:
            facts = json.loads(text)
            number, id_ = facts.pop("format"), facts.pop("plan")
            if number != FORMAT:
                raise DataError(f"{shown} has format {number}, this clf reads {FORMAT}; use the clf that wrote it")
            settings = Settings(**{name: facts[name] for name in Settings.__dataclass_fields__})
            plan = cls(
                settings,
                tuple(facts["source"]),
                facts["tars"],
                facts["listed"],
                facts["listing_sha256"],
                tuple(facts["ends"]),
            )
            if plan.id != id_:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{shown} is damaged or was not written by clf embed; name another folder with -o, or begin anew "
                "with --restart"
            ) from None
        return plan


class Sink(Protocol):
    """What a listing is written to."""

    def write(self, data: bytes, /) -> Any: ...


def line(listed: Listed) -> bytes:
    return json.dumps(list(listed), separators=(",", ":")).encode() + b"\n"


def read_listing(folder: Folder, shard: Shard) -> list[Listed]:
    """What a shard consists of. Raises DataError: the listing is gone, or another."""
    try:
        text = folder.read(LISTING, shard.start, shard.end)
        listed = [Listed(*json.loads(each)) for each in text.splitlines()]
        if len(text) != shard.end - shard.start or len(listed) != (shard.images or 1):
            raise ValueError
    except (FileNotFoundError, ValueError, TypeError):
        raise DataError(
            f"{folder.shown}/{LISTING} was removed or changed meanwhile; see that nothing else writes there, and run "
            "the same command again"
        ) from None
    return listed


def make_plan(source: Source, settings: Settings, file: Sink, found: Callable[[int], None]) -> Plan:
    """Lists the source into a file, and cuts it.

    Args:
        found: called with the number listed so far, now and then.

    Raises:
        DataError: there is nothing to embed.
    """
    digest, ends, at, count = hashlib.sha256(), list[int](), 0, 0
    size = 1 if source.tars else settings.shard_size
    for listed in source.listing():
        text = line(listed)
        file.write(text)
        digest.update(text)
        at, count = at + len(text), count + 1
        if count % size == 0:
            ends.append(at)
        if count % 10_000 == 0:
            found(count)
    if not count:
        hint = ""
        if any_tars(source):
            hint = f"; for the tars in it name them: '{source.shown[0].rstrip('/')}/*.tar'"
        raise DataError(f"{source.shown[0]} holds no images{hint}")
    if ends[-1:] != [at]:
        ends.append(at)
    return Plan(settings, source.shown, source.tars, count, digest.hexdigest(), tuple(ends))


def settle(
    folder: Folder,
    source: Source,
    settings: Settings,
    *,
    restart: bool = False,
    found: Callable[[int], None] = lambda count: None,
) -> Plan:
    """The plan in the output: the one that is there, if it is of the same work, or a new one.

    Raises:
        DataError: the folder holds another work, or other files; the source has changed, or is empty, and then
            nothing is removed.
    """
    names = folder.names()
    if PLAN not in names and (others := names - {LISTING}):
        remedy = f"and no {PLAN}; name another folder" if restart else "; name an empty or a new folder"
        raise DataError(f"{folder.shown} holds other files ({min(others)}){' ' * restart}{remedy} with -o")
    if PLAN in names and not restart:
        before = Plan.of(folder.read(PLAN), f"{folder.shown}/{PLAN}")
        _refuse_others(before, settings, source, folder)
        plan = make_plan(source, settings, _Nowhere(), found)
        if plan != before:
            raise DataError(_change(folder, source))
        if not _is_listing_of(plan, folder):  # damaged by hand, or a --restart was cut off
            folder.write(LISTING, lambda file: _write_listing(source, file))
        return before
    plans: list[Plan] = []
    folder.make()
    folder.write(LISTING, lambda file: plans.append(make_plan(source, settings, file, found)))
    clear(folder, names)
    text = plans[0].text().encode()
    folder.put(PLAN, text)
    return plans[0]


def clear(folder: Folder, names: set[str]) -> None:
    """Removes what was made by an older plan, and that plan last; other files stay."""
    for name in sorted(names):
        if name.startswith(("part-", "skipped-")) or name == REPORT:
            folder.remove(name)
    if PLAN in names:
        folder.remove(PLAN)


def _is_listing_of(plan: Plan, folder: Folder) -> bool:
    digest = hashlib.sha256()
    try:
        with folder.open(LISTING) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == plan.listing_sha256


def _write_listing(source: Source, file: Sink) -> None:
    for listed in source.listing():
        file.write(line(listed))


def _refuse_others(before: Plan, settings: Settings, source: Source, folder: Folder) -> None:
    old = {**asdict(before.settings), "source": before.source}
    new = {**asdict(settings), "source": source.shown}
    for name, was in old.items():
        if new[name] != was:
            raise DataError(
                f"{folder.shown} was begun with {_SAID[name]} {_short(was)}, not {_short(new[name])}; name another "
                "folder with -o, or begin anew with --restart"
            )


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"of SHA-256 {value[:12]}..."
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else f"{value[0]} and {len(value) - 1} more"
    return str(value)


def _change(folder: Folder, source: Source) -> str:
    """The first difference between the source and what was listed."""
    what = "has changed"
    with suppress(OSError, ValueError, DataError), folder.open(LISTING) as file:
        for before, now in zip_longest(_lines(file), source.listing()):
            if before == now:
                continue
            if before is None or (now is not None and now.key < before.key):
                what = f"has got {now.key}"
            elif now is None or before.key < now.key:
                what = f"has lost {before.key}"
            else:
                what = f"has got another {now.key}"
            break
    return (
        f"{source.shown[0]} {what} since {folder.shown} was begun; name another folder with -o, or begin anew with "
        "--restart"
    )


def _lines(file: IO[bytes]) -> Iterator[Listed]:
    for text in file:
        yield Listed(*json.loads(text))


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)
