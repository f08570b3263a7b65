"""The one point that says what of a collection counts, and the filters that follow from it.

Each write has a number, given out when it begins; numbers rise. A version of a row counts if the number it is *from*
was committed, and the number it ends at (*to*) was not. All numbers up to ``committed`` count, but for those in
``failed``: of writes that were given up, some of whose points may be there, or may still arrive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qdrant_client import models

from clf_serve.stores.qdrant.points import FOR_EVER, LEDGER

FORMAT = 1
_FAILED_KEPT = 1000  # numbers; requests of a write that was given up do not arrive a thousand such writes later


@dataclass(frozen=True)
class Ledger:
    """A state of the gallery, as the payload of its point."""

    generation: int
    images: int
    about: Mapping[str, str] = field(repr=False)
    committed: int = 0
    """The greatest number of a write that came to its end."""
    begun: int = 0
    """The greatest number that was given out."""
    writer: str = ""
    """A text that is new for each write; empty while nobody writes."""
    beat: int = 0
    """Rises while the writer lives."""
    failed: tuple[int, ...] = ()
    old: int = 0
    """Versions that ended at a committed number up to this may be removed once ``old_since`` is long past."""
    old_since: float = 0.0
    """Seconds since 1970, by the clock of a writer."""

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Ledger:
        """Raises KeyError, TypeError or ValueError for what is none."""
        if payload["clf"] != "gallery":
            raise ValueError("it is marked otherwise")
        about = json.loads(payload["about"])
        numbers = {name: int(payload[name]) for name in ("generation", "images", "committed", "begun", "beat", "old")}
        failed = tuple(map(int, payload["failed"]))
        return cls(
            about=about, failed=failed, writer=str(payload["writer"]), old_since=float(payload["old_since"]), **numbers
        )

    def payload(self) -> dict[str, Any]:
        return {
            "clf": "gallery",
            "format": FORMAT,
            "generation": self.generation,
            "images": self.images,
            "about": json.dumps(dict(self.about)),
            "committed": self.committed,
            "begun": self.begun,
            "writer": self.writer,
            "beat": self.beat,
            "failed": list(self.failed),
            "old": self.old,
            "old_since": self.old_since,
        }

    def claimed(self, writer: str) -> Ledger:
        """For a new write. One that had begun and is not committed is given up."""
        failed = self.failed
        if self.begun > self.committed and self.begun not in failed:
            failed = (*failed, self.begun)[-_FAILED_KEPT:]
        return replace(self, begun=self.begun + 1, writer=writer, beat=0, failed=failed)

    def released(self) -> Ledger:
        """Without the write that had begun, which is given up."""
        return replace(self, writer="", failed=(*self.failed, self.begun)[-_FAILED_KEPT:])

    def has_committed(self, number: int) -> bool:
        return number <= self.committed and number not in self.failed

    def visible(self, *more: models.Condition) -> models.Filter:
        """The versions that make up this state. Args: more: conditions that hold as well."""
        there = models.FieldCondition(key="from", range=models.Range(lte=self.committed))
        return models.Filter(must=[there, *self._not_ended(), *more], must_not=self._from_failed())

    def unended(self, ids: Sequence[int]) -> models.Filter:
        """Of these rows the versions that this state holds, and that no other write has ended since."""
        return self.visible(_any("id", ids), _any("to", [FOR_EVER, *self.failed]))

    def dead(self) -> models.Filter:
        """Versions that no state from ``old`` on holds."""
        ended = models.FieldCondition(key="to", range=models.Range(lte=self.old))
        keep = [_any("to", self.failed)] if self.failed else None
        return models.Filter(must=[ended], must_not=keep)

    def given_up(self) -> models.Filter:
        """Versions from writes that failed."""
        return models.Filter(must=[_any("from", self.failed)])

    def unmarked(self) -> models.Filter:
        """Versions that only a failed write has ended."""
        return models.Filter(must=[_any("to", self.failed)])

    def _not_ended(self) -> list[models.Condition]:
        later = models.FieldCondition(key="to", range=models.Range(gt=self.committed))
        if not self.failed:
            return [later]
        return [models.Filter(should=[later, _any("to", self.failed)])]

    def _from_failed(self) -> list[models.Condition] | None:
        return [_any("from", self.failed)] if self.failed else None


def _any(name: str, values: Sequence[Any]) -> models.FieldCondition:
    return models.FieldCondition(key=name, match=models.MatchAny(any=list(values)))


def is_ledger(**values: Any) -> models.Filter:
    """The ledger's point, if these of its values are so."""
    conditions: list[models.Condition] = [models.HasIdCondition(has_id=[LEDGER])]
    for name, value in values.items():
        conditions.append(models.FieldCondition(key=name, match=models.MatchValue(value=value)))
    return models.Filter(must=conditions)
