"""What installed distributions offer to clf, read from their metadata without importing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

DISTRIBUTION = "clf-vision"

_ENTRY_POINTS = metadata.Distribution.entry_points


@dataclass(frozen=True)
class Offer:
    """One line of an entry-point group, and the distribution it comes from."""

    name: str
    value: str
    group: str
    distribution: str
    version: str
    requires: tuple[str, ...] = ()
    problem: str = ""
    """Why the metadata cannot be used; ``name`` is then the distribution's folder."""

    @property
    def builtin(self) -> bool:
        return self.distribution == DISTRIBUTION

    def load(self) -> object:
        """Imports the module and returns it, or the object in it that the value names; raises what it raises."""
        return metadata.EntryPoint(self.name, self.value, self.group).load()


def offers(group: str) -> list[Offer]:
    """All entries of an entry-point group. A distribution with damaged metadata is one entry with a ``problem``.

    ``importlib.metadata.entry_points`` would raise on the first damaged file of any distribution, and one bad
    package must not hurt another. Of two copies of one distribution, the first on ``sys.path`` counts.
    """
    found: dict[str, list[Offer]] = {}
    for distribution in metadata.distributions():
        entries = list(_read(distribution, group))
        if entries:
            found.setdefault(entries[0].distribution.lower().replace("_", "-"), entries)
    return [offer for entries in found.values() for offer in entries]


def _read(distribution: metadata.Distribution, group: str) -> Iterator[Offer]:
    folder = str(getattr(distribution, "_path", "unknown")).replace("\\", "/").rpartition("/")[2]
    try:
        if f"[{group}]" not in (distribution.read_text("entry_points.txt") or ""):
            return
        name, version = distribution.metadata["Name"], distribution.version
        requires = tuple(distribution.requires or ())
        for entry in _ENTRY_POINTS.__get__(distribution).select(group=group):
            yield Offer(entry.name, entry.value, group, name or folder, version or "unknown", requires)
    except Exception as error:
        yield Offer(folder, "", group, folder, "unknown", problem=f"its metadata is damaged ({error})")


@contextmanager
def damage_survived() -> Iterator[None]:
    """Within, a distribution whose entry points cannot be read has none, for whoever reads those of all.

    pydantic and torch do so as they are imported, so that one damaged file of anybody's would end every command.
    """

    def entry_points(distribution: metadata.Distribution) -> metadata.EntryPoints:
        try:
            found: metadata.EntryPoints = _ENTRY_POINTS.__get__(distribution)
            return found
        except Exception:
            return metadata.EntryPoints()

    metadata.Distribution.entry_points = property(entry_points)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        metadata.Distribution.entry_points = _ENTRY_POINTS  # type: ignore[method-assign]
