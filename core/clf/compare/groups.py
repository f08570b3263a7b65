"""Runs that differ in nothing but their seed are one group; groups are named by what they differ in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from clf.compare.reading import Member

MISSING = "(none)"
"""The value of a key that a group does not have: another method's setting."""
MOST_IN_NAME = 3
HEADLINES = ("data.name", "data.train_images", "data.image_size", "backbone.name", "train.epochs", "train.batch_size")
"""Keys that are named whenever groups differ in them; others only where they tell groups of one method apart."""


@dataclass(frozen=True)
class Group:
    name: str
    style: int
    """Its place among the groups, which its colour and dashes follow."""
    members: tuple[Member, ...]
    """One for each seed, in the order given."""
    duplicates: Mapping[str, str]
    """Runs left out -> the run of equal settings and seed that counts."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.members[0].settings

    @property
    def seeds(self) -> list[int]:
        return [member.seed for member in self.members]


def make_groups(members: Sequence[Member]) -> list[Group]:
    """Groups in the order of their first run."""
    sets: dict[Any, list[Member]] = {}
    for member in members:
        sets.setdefault(_frozen(member.settings), []).append(member)
    implied = frozenset.intersection(*(member.derived for member in members))
    names = _told_apart(name_groups([each[0].settings for each in sets.values()], implied))
    return [_group(name, i, each) for i, (name, each) in enumerate(zip(names, sets.values(), strict=True))]


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names by which each group can be found: those of values that look alike in words get a number."""
    found: list[str] = []
    for name in names:
        rivals = chain([name], (f"{name} ({i})" for i in count(2)))
        found.append(next(each for each in rivals if each not in found))
    return found


def _group(name: str, style: int, members: Iterable[Member]) -> Group:
    """Of several runs of a seed the complete one with most steps counts, the first of equals."""
    by_seed: dict[int, list[Member]] = {}
    for member in members:
        by_seed.setdefault(member.seed, []).append(member)
    kept = [max(each, key=lambda m: (m.state == "complete", m.step)) for each in by_seed.values()]
    counted = {member.seed: member for member in kept}
    left_out = {m.name: counted[m.seed].name for each in by_seed.values() for m in each if m is not counted[m.seed]}
    return Group(name, style, tuple(kept), left_out)


def varying(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each group, of the keys that differ between groups."""
    keys = list(dict.fromkeys(key for each in settings for key in each))
    rows = {key: [each.get(key, MISSING) for each in settings] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def name_groups(settings: Sequence[Mapping[str, Any]], implied: Collection[str] = ()) -> list[str]:
    """The plugin, then the settings in which groups of this plugin differ, at most three where that is enough.

    Args:
        implied: keys whose values follow from others in all groups, and so need no mention.

    >>> name_groups([{"plugin": "simclr", "train.batch_size": 32}, {"plugin": "simclr", "train.batch_size": 64}])
    ['simclr, batch_size 32', 'simclr, batch_size 64']
    >>> name_groups([{"plugin": "simclr", "optimizer.lr": 0.1}, {"plugin": "dcl", "optimizer.lr": 0.2}])
    ['simclr', 'dcl']
    """
    everywhere = [key for key in varying(settings) if key in HEADLINES]
    names: list[str] = []
    for own in settings:
        rivals = [each for each in settings if each["plugin"] == own["plugin"]]
        inside = [key for key in varying(rivals) if key not in everywhere and key not in implied]
        keys = [*everywhere, *sorted(inside, key=_rank)]
        names.append(_name(own, keys, rivals))
    return names


def _name(own: Mapping[str, Any], keys: Sequence[str], rivals: Sequence[Mapping[str, Any]]) -> str:
    """As few keys as tell a group from its rivals, but three where they differ in more."""
    others = [each for each in rivals if each is not own]
    least = next((n for n in range(len(keys) + 1) if not any(_same(own, each, keys[:n]) for each in others)), len(keys))
    shown = keys[: max(least, MOST_IN_NAME)]
    last = [key.rpartition(".")[2] for key in shown]
    words = [
        f"{short if last.count(short) == 1 else key} {value_text(own.get(key, MISSING))}"
        for key, short in zip(shown, last, strict=True)
    ]
    more = len(keys) - len(shown)
    return ", ".join([str(own["plugin"]), *words, *([f"and {more} more"] if more else [])])


def _same(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return all(a.get(key, MISSING) == b.get(key, MISSING) for key in keys)


def _rank(key: str) -> int:
    """Settings of the method first, then of the training; versions and images last."""
    order = ("method.", "train.", "optimizer.", "schedule.", "augment.", "backbone.")
    return next((i for i, start in enumerate(order) if key.startswith(start)), len(order))


def value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else f"{value:.12g}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(value_text, value))}]" if isinstance(value, list | tuple) else str(value)


def _frozen(value: Any) -> Any:
    """The same for equal settings, and usable as a key."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _frozen(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
