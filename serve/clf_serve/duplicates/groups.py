"""Images that belong together, how strongly, and which of them one would keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How much alike two images are, strongest first."""

    bytes = "bytes"
    picture = "picture"
    near = "near"


_ORDER = list(Level)


class File(NamedTuple):
    """What the gallery knows of an image's file."""

    id: int
    uri: str
    key: str
    sha256: str
    width: int
    height: int
    size: int
    mtime_ns: int

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Sorts what one would keep first: most pixels, then most bytes, then oldest."""
        return -self.width * self.height, -self.size, self.mtime_ns, self.id


class Member(NamedTuple):
    """An image that could go. ``level`` is what it has in common with the image to keep; ``spare`` is the strongest
    level at which a better image of the group stands for it, which may be another one."""

    file: File
    level: Level
    spare: Level
    picture: int
    """Id of the best file of the same picture; members of one number are one picture."""
    cosine: float | None = None
    """At the near level: of its picture and the one to keep."""


@dataclass(frozen=True)
class Group:
    keep: File
    others: tuple[Member, ...]
    """At least one; strongest level first, then highest cosine."""

    @property
    def level(self) -> Level:
        """The weakest that is needed to hold the group together."""
        return max((member.level for member in self.others), key=_ORDER.index)

    @property
    def freed(self) -> int:
        """Bytes of all but the one to keep."""
        return sum(member.file.size for member in self.others)


@dataclass(frozen=True)
class Progress:
    """What is told while duplicates are looked for; the default says nothing."""

    begin: Callable[[str, int, str], None] = lambda stage, total, unit: None
    advance: Callable[[int], None] = lambda done: None


class Partition:
    """Positions 0..n-1 in groups; at first each is one by itself. A group is named after one of its positions."""

    def __init__(self, n: int) -> None:
        self._of = list(range(n))
        self._members: dict[int, list[int]] = {}
        self._first: dict[int, int] = {}

    def of(self, position: int) -> int:
        """The group that holds it."""
        return self._of[position]

    def members(self, group: int) -> list[int]:
        return self._members.get(group, [group])

    def first(self, position: int) -> int:
        """The least position of its group."""
        group = self.of(position)
        return self._first.get(group, group)

    def merge(self, one: int, other: int) -> tuple[int, int]:
        """Merges two different groups; the name that stays and the one that goes."""
        first = min(self.first(one), self.first(other))
        stays, goes = (one, other) if len(self.members(one)) >= len(self.members(other)) else (other, one)
        moved = self._members.pop(goes, [goes])
        self._members.setdefault(stays, [stays]).extend(moved)
        self._first[stays] = first
        for position in moved:
            self._of[position] = stays
        return stays, goes

    def join(self, found: Sequence[Sequence[int]]) -> None:
        """Puts the positions of each list into one group."""
        for first, *rest in found:
            for position in rest:
                if self.of(first) != self.of(position):
                    self.merge(self.of(first), self.of(position))

    def several(self) -> list[list[int]]:
        """The groups of two or more, each rising."""
        return [sorted(members) for members in self._members.values()]


class Pictures:
    """Files by position, the best to keep first, and what was found to belong together."""

    def __init__(self, files: Sequence[File]) -> None:
        self.files = sorted(files, key=lambda file: file.rank)
        self.exact = Partition(len(files))
        self._near: list[list[int]] = []
        self._copies: dict[str, list[int]] = {}
        for position, file in enumerate(self.files):
            if file.sha256:
                self._copies.setdefault(file.sha256, []).append(position)

    def join(self, found: Sequence[Sequence[int]]) -> None:
        """Positions of one picture: of the same bytes, or re-encoded."""
        self.exact.join(found)

    def join_near(self, found: Sequence[Sequence[int]]) -> None:
        """Near pictures, each by the position that :meth:`kept` gives."""
        self._near.extend(map(list, found))

    def kept(self) -> list[int]:
        """Of each picture the position to keep, rising."""
        return [position for position in range(len(self.files)) if self.exact.first(position) == position]

    def same_bytes(self) -> Iterator[list[int]]:
        """Positions of equal files, where there are two or more."""
        yield from (positions for positions in self._copies.values() if len(positions) > 1)

    def groups(self, cosines: dict[tuple[int, int], float]) -> list[Group]:
        """Strongest level first, then by bytes that could be freed.

        Args:
            cosines: of two near pictures, by the positions to keep, the lower first.
        """
        everything = Partition(len(self.files))
        everything.join(self.exact.several())
        everything.join(self._near)
        found = [self._group(positions, cosines) for positions in everything.several()]
        return sorted(found, key=lambda group: (_ORDER.index(group.level), -group.freed, group.keep.id))

    def _group(self, positions: list[int], cosines: dict[tuple[int, int], float]) -> Group:
        keep, *rest = positions
        members = [self._member(keep, position, cosines) for position in rest]
        members.sort(key=lambda member: (_ORDER.index(member.level), -(member.cosine or 1.0), member.file.rank))
        return Group(self.files[keep], tuple(members))

    def _member(self, keep: int, position: int, cosines: dict[tuple[int, int], float]) -> Member:
        file, first = self.files[position], self.exact.first(position)
        picture = self.files[first].id
        spare = Level.near if first == position else Level.picture
        if file.sha256 and self._copies[file.sha256][0] != position:
            spare = Level.bytes
        if file.sha256 and file.sha256 == self.files[keep].sha256:
            return Member(file, Level.bytes, spare, picture)
        if self.exact.of(keep) == self.exact.of(position):
            return Member(file, Level.picture, spare, picture)
        return Member(file, Level.near, spare, picture, cosines.get((keep, first)))
