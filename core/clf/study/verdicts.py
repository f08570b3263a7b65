"""What the records of a study say of the paper's claims: differences paired by seed, with their 95 % interval.

A claim that one is higher than the other is confirmed where the whole interval says so. A claim that two are equal is
never confirmed: an interval says which differences are left, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from clf.spread import Spread, paired
from clf.study.records import Record
from clf.study.spec import Claim, Study
from clf.study.tables import cell_values

Outcome: TypeAlias = Literal[
    "confirmed",
    "not confirmed: no difference could be told",
    "the opposite was found",
    "no difference was seen",
    "not confirmed: a difference was found",
    "not measured yet",
]
_SIGN = {"higher": 1, "lower": -1}


@dataclass(frozen=True)
class Verdict:
    """A claim, and what the records say of it."""

    claim: Claim
    outcome: Outcome
    difference: Spread | None
    """Of the claimed row less the one that it is compared with, seed by seed; None where no seed has both."""


def judge(study: Study, records: Sequence[Record]) -> list[Verdict]:
    """A verdict on each claim of the study that its scale can tell, in their order."""
    return [_verdict(claim, records) for claim in study.claims]


def _verdict(claim: Claim, records: Sequence[Record]) -> Verdict:
    ours, theirs = (cell_values(records, row, column, claim.score, after) for row, column, after in claim.sides)
    difference = paired(ours, theirs)
    return Verdict(claim, _outcome(claim, difference), difference)


def _outcome(claim: Claim, difference: Spread | None) -> Outcome:
    if difference is None:
        return "not measured yet"
    if claim.expect == "equal" and difference.interval is not None:
        return "not confirmed: a difference was found" if difference.sign else "no difference was seen"
    if not difference.sign:
        return "not confirmed: no difference could be told"
    return "confirmed" if difference.sign == _SIGN[claim.expect] else "the opposite was found"
