"""Runs side by side: groups over seeds, their scores, and differences to a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clf.compare.checks import Note, common_sets, data_differences, monitor_protocol, named, notes, trained_on_test
from clf.compare.groups import Group, make_groups, varying
from clf.compare.reading import Member, read_members
from clf.compare.scores import LOSS, SECONDS, TRAINING, Evaluated, Identity, Measure
from clf.errors import RunError, did_you_mean
from clf.runs import Run
from clf.spread import Spread, paired, spread, t_975

WHILE_TRAINING = "training"
OWN_DATA: Identity = ("", 0, 0)
"""In place of a set: the one that each run was trained on, where these differ."""


@dataclass(frozen=True)
class Column:
    """A measure on one set of images, or while training."""

    measure: Measure
    data: str
    """Name of the set; :data:`WHILE_TRAINING` for what the training recorded."""
    identity: Identity | None
    protocol: str

    @property
    def key(self) -> str:
        return f"{self.data}/{self.measure.key}"

    def value(self, member: Member) -> float | None:
        if self.identity is None:
            return member.curves.last.get(self.measure)
        found = next((each for each in member.evaluated if _is(each, self.identity, member)), None)
        return None if found is None else found.scores.get(self.measure)


def _is(each: Evaluated, identity: Identity, member: Member) -> bool:
    return each.fingerprint == member.data.fingerprint if identity == OWN_DATA else each.identity == identity


@dataclass(frozen=True)
class Difference:
    """A group less the reference."""

    mean: float
    interval: tuple[float, float] | None
    """95 %; None for single seeds, and for pairs that all differ by the same, whose spread is not known."""
    kind: Literal["paired", "unpaired", "single"]
    """By seeds that both have (Student), of two means (Welch), or of single seeds."""
    n: int
    """Pairs, or the runs of both."""
    std: float | None = None
    """Of the paired differences."""

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves zero out, else 0."""
        if self.interval is None:
            return 0
        return (self.interval[0] > 0) - (self.interval[1] < 0)


@dataclass(frozen=True)
class Comparison:
    groups: tuple[Group, ...]
    reference: Group
    columns: tuple[Column, ...]
    notes: tuple[Note, ...]
    settings: Mapping[str, Sequence[Any]]
    """Key -> its value in each group, of the keys that differ."""
    comparable: bool
    """False where runs on different images were compared anyway."""
    same_training_data: bool
    members: tuple[Member, ...]
    """All runs, also those that repeat others."""

    def of_set(self, data: str) -> list[Column]:
        return [column for column in self.columns if column.data == data]

    @property
    def sets(self) -> list[str]:
        """Names of the evaluated sets that have columns."""
        return [name for name in dict.fromkeys(column.data for column in self.columns) if name != WHILE_TRAINING]

    @property
    def others(self) -> list[Group]:
        return [group for group in self.groups if group is not self.reference]


def compare(runs: Sequence[Run], reference: str | None = None, anyway: bool = False) -> Comparison:
    """Reads runs and puts them side by side.

    Args:
        reference: name of a group or of a run in it; default: that of the first run.
        anyway: compare runs on different images too, and flag it.

    Raises:
        RunError: there is no run, one is damaged, the reference is unknown, or runs on different images share no set
            that all of them were evaluated on.
        ConfigError: the configuration of a run is not valid.
    """
    members = read_members(runs)
    if not members:
        raise RunError("no run is given: name one or more run folders, for example clf compare runs/*")
    apart, common = data_differences(members), common_sets(members)
    if apart and not common and not anyway:
        raise RunError(
            f"{apart}, so their figures do not mean the same: evaluate all of them on one set with clf evaluate RUN "
            "--on DATA, or add --anyway, which compares them and says so in every output"
        )
    groups = make_groups(members)
    strict = bool(apart) and not anyway
    sets = _set_names(members, common if strict else None, own=bool(apart) and anyway)
    columns = [*_evaluated_columns(groups, sets), *([] if strict else _training_columns(groups))]
    words = [*_about_data(members, apart, sets, strict), *notes(groups, sets), *_about_loss(groups, columns)]
    return Comparison(
        groups=tuple(groups),
        reference=_find(groups, reference),
        columns=tuple(columns),
        notes=tuple(words),
        settings=varying([group.settings for group in groups]),
        comparable=apart is None or strict,
        same_training_data=apart is None,
        members=tuple(members),
    )


def values(group: Group, column: Column) -> dict[int, float]:
    """Seed -> value, of the runs that have one."""
    found = {member.seed: column.value(member) for member in group.members}
    return {seed: value for seed, value in found.items() if value is not None}


def group_spread(group: Group, column: Column) -> Spread | None:
    found = values(group, column)
    return spread(list(found.values())) if found else None


def difference(group: Group, reference: Group, column: Column) -> Difference | None:
    """Ours less the reference's, in pairs where two seeds or more match, else of the means; None without values."""
    ours, theirs = values(group, column), values(reference, column)
    if not ours or not theirs:
        return None
    found = paired(ours, theirs)
    if found is not None and found.n > 1:
        return Difference(found.mean, found.interval if _varies(found) else None, "paired", found.n, found.std)
    a, b = spread(list(ours.values())), spread(list(theirs.values()))
    if a.std is not None and b.std is not None:
        return Difference(a.mean - b.mean, welch(a, b) if _varies(a) or _varies(b) else None, "unpaired", a.n + b.n)
    return Difference(a.mean - b.mean if found is None else found.mean, None, "single", 1)


def _varies(values: Spread) -> bool:
    """Whether the values differ by more than their last digits."""
    return values.std is not None and values.std > 1e-12


def welch(a: Spread, b: Spread) -> tuple[float, float]:
    """95 % interval of the difference of two means with variances of their own (Welch 1947).

    The degrees of freedom are Satterthwaite's, rounded down, which widens the interval. One of the two must vary.
    """
    assert a.std is not None
    assert b.std is not None
    u, v = a.std**2 / a.n, b.std**2 / b.n
    freedom = (u + v) ** 2 / (u**2 / (a.n - 1) + v**2 / (b.n - 1))
    half = t_975(max(1, math.floor(freedom))) * math.sqrt(u + v)
    return a.mean - b.mean - half, a.mean - b.mean + half


def verdict(found: Difference, measure: Measure) -> str:
    """In words, whether a difference can be told."""
    if found.interval is None:
        same = "the same in every pair" if found.kind == "paired" else "no seed differs in either group"
        return "cannot be told from one seed" if found.kind == "single" else f"{same}: cannot be told"
    if found.sign == 0:
        return "no difference can be told"
    if measure.better == "neither":
        return "higher" if found.sign > 0 else "lower"
    return "better" if (found.sign > 0) == (measure.better == "higher") else "worse"


def _find(groups: Sequence[Group], name: str | None) -> Group:
    if name is None:
        return groups[0]
    for group in groups:
        if name == group.name:
            return group
    for group in groups:
        if name in (*(m.name for m in group.members), *group.duplicates):
            return group
    for group in groups:
        if Path(name).resolve() in [m.path.resolve() for m in group.members]:
            return group
    names = [group.name for group in groups]
    raise RunError(
        f"--reference {name!r} is neither a group nor a run of this comparison.{did_you_mean(name, names)} "
        f"Groups: {'; '.join(names)}"
    )


def _set_names(members: Sequence[Member], only: Sequence[Identity] | None, own: bool) -> dict[Identity, str]:
    """The evaluated sets under names that differ.

    Args:
        only: those asked for; None for all that any run was evaluated on.
        own: take each run's own data, which differ, for one set.
    """
    found: dict[Identity, Evaluated] = {}
    for member, each in ((m, e) for m in members for e in m.evaluated):
        if (only is None or each.identity in only) and not (own and _is(each, OWN_DATA, member)):
            found.setdefault(each.identity, each)
    names = {OWN_DATA: "own data"} if own and any(_is(e, OWN_DATA, m) for m in members for e in m.evaluated) else {}
    for identity, each in found.items():
        alone = sum(other.data == each.data for other in found.values()) == 1
        name = each.data if alone else f"{each.data} ({each.bank:,} / {each.queries:,} images)"
        names[identity] = name if name not in names.values() else f"{name} {each.fingerprint[:8]}"
    return names


def _evaluated_columns(groups: Sequence[Group], sets: Mapping[Identity, str]) -> list[Column]:
    members = [member for group in groups for member in group.members]
    columns = []
    for identity, name in sets.items():
        found = [each for member in members for each in member.evaluated if _is(each, identity, member)]
        measures = dict.fromkeys(measure for each in found for measure in each.scores)
        columns += [Column(m, name, identity, _protocol(m, found)) for m in measures]
    return columns


def _protocol(measure: Measure, found: Sequence[Evaluated]) -> str:
    """The entry of the protocol that tells how a measure was made; empty where none does."""
    entries = next(each.protocol for each in found if measure in each.scores)
    start = measure.told_by.lower()
    return next((words for name, words in entries.items() if start and name.lower().startswith(start)), "")


def _training_columns(groups: Sequence[Group]) -> list[Column]:
    members = [member for group in groups for member in group.members]
    columns = []
    for measure in TRAINING:
        having = [member for member in members if measure in member.curves.last]
        if not having:
            continue
        alike = {monitor_protocol(member) for member in having}
        words = {
            LOSS.key: "mean over the last optimiser steps that were recorded",
            SECONDS.key: "training, preparation and measurements; not what was lost to a kill",
            "knn": f"last measurement of the training; {'; '.join(sorted(alike))}",
        }.get(measure.key, "last measurement of the training, on training images")
        columns.append(Column(measure, WHILE_TRAINING, None, words))
    return columns


def _about_data(members: Sequence[Member], apart: str | None, sets: Mapping[Identity, str], strict: bool) -> list[Note]:
    names = tuple(member.name for member in members)
    found = []
    if apart and strict:
        text = (
            f"{apart[0].upper()}{apart[1:]}. They are compared on {', '.join(sets.values())} only, which all were "
            "evaluated on; what was measured while training is left out."
        )
        found.append(Note("other_training_data", text, names, True))
    elif apart:
        found.append(Note("not_comparable", f"Not comparable: {apart}. Compared anyway, as asked.", names, True))
    for each in {e.identity: e for m in members for e in m.evaluated if e.identity in sets}.values() if apart else ():
        leaked = trained_on_test(members, each)
        if leaked:
            text = f"Test images of {sets[each.identity]} may be among the training images of {named(leaked)}"
            found.append(Note("trained_on_test", f"{text}, which had another split of it.", tuple(leaked), True))
    if not any(m.data.labelled or any(e.labelled for e in m.evaluated) for m in members):
        text = "The images have no labels: only label-free figures can be compared. Measure accuracy with --on DATA."
        found.append(Note("unlabelled", text, names))
    return found


def _about_loss(groups: Sequence[Group], columns: Sequence[Column]) -> list[Note]:
    """Values of a loss mean something within one method, batch size and temperature only."""
    own = {
        tuple((k, str(v)) for k, v in g.settings.items() if k == "plugin" or k.startswith(("method.", "train.batch")))
        for g in groups
    }
    if len(own) < 2 or not any(column.measure is LOSS for column in columns):
        return []
    plugins = len({group.settings["plugin"] for group in groups}) > 1
    what = "methods" if plugins else "settings of the method or batch sizes"
    text = f"Losses of different {what} are not comparable: a lower one is not a better one."
    return [Note("loss", text, tuple(m.name for g in groups for m in g.members))]
