"""Whether runs can be compared, and what a reader must know before trusting that they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clf.compare.groups import Group
from clf.compare.reading import Data, Member
from clf.compare.scores import Evaluated, Identity

MOST_NAMED = 3


@dataclass(frozen=True)
class Note:
    """Something to know about the comparison."""

    kind: str
    text: str
    runs: tuple[str, ...] = ()
    serious: bool = False
    """The figures do not mean the same thing."""


def common_sets(members: Sequence[Member]) -> list[Identity]:
    """The images that every run was evaluated on."""
    found = [[each.identity for each in member.evaluated] for member in members]
    return [identity for identity in found[0] if all(identity in each for each in found)] if found else []


def data_differences(members: Sequence[Member]) -> str | None:
    """In words, how the images of the first run differ from those of another; None where all have the same."""
    if len(members) > 1 and (unknown := [member.name for member in members if not member.data.fingerprint]):
        return f"the manifest of run {unknown[0]!r}{_and_more(unknown)} does not tell what images it was trained on"
    first = members[0]
    others = [member for member in members if _images(member.data) != _images(first.data)]
    if not others:
        return None
    other = others[0]
    more = _and_more(others)
    return f"run {first.name!r} and run {other.name!r}{more} were trained on {_apart(first.data, other.data)}"


def _and_more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def _images(data: Data) -> tuple[Any, ...]:
    return data.fingerprint, data.split, data.train_images, data.test_images, data.image_size, data.channels


def _apart(a: Data, b: Data) -> str:
    if a.fingerprint != b.fingerprint:
        same = f" (fingerprints {a.fingerprint[:12]} and {b.fingerprint[:12]})" if a.name == b.name else ""
        return f"other images, {a.name} and {b.name}{same}"
    if a.split != b.split or a.test_images != b.test_images:
        return f"other splits of {a.name}, {a.split} ({a.test_images:,} test images) and {b.split} ({b.test_images:,})"
    if a.train_images != b.train_images:
        return f"other parts of {a.name}, {a.train_images:,} and {b.train_images:,} training images"
    if a.image_size != b.image_size:
        return f"images of other sizes, {a.image_size} and {b.image_size} px"
    return f"images of {a.channels} and of {b.channels} channels"


def notes(groups: Sequence[Group], sets: Mapping[Identity, str]) -> list[Note]:
    """What is said beside every comparison of these groups, the gravest first.

    Args:
        sets: the images that scores are shown for, with their names.
    """
    members = [member for group in groups for member in group.members]
    found = [
        *_trained_otherwise(members),
        *_other_protocols(members, sets),
        *_unfinished(members),
        *_cut_off(members),
        *_stale(members),
        *_duplicates(groups),
        *_other_code(members),
        *_other_devices(members),
        *_unevaluated(members),
        *_evaluated_apart(members, sets),
        *_few_seeds(groups),
    ]
    return sorted(found, key=lambda note: not note.serious)


def _trained_otherwise(members: Sequence[Member]) -> list[Note]:
    """Other backbones and other amounts of training are legitimate to compare, and easily overlooked."""
    wanted: list[tuple[str, Callable[[Member], object], str]] = [
        ("backbone", lambda m: m.config["backbone.name"], "The backbones differ: {}. Their sizes and costs do too."),
        (
            "pretrained",
            lambda m: "pretrained" if m.config["backbone.pretrained"] else "not pretrained",
            "Some runs start from pretrained weights: {}. What those have learned counts for the method here.",
        ),
        ("epochs", lambda m: m.config["train.epochs"], "The epochs differ: {}. Compare over wall time or steps too."),
        ("max_steps", lambda m: m.config["train.max_steps"], "train.max_steps differs: {}."),
        ("batch_size", lambda m: m.config["train.batch_size"], "The batch sizes differ: {}, and so do the steps."),
    ]
    return [
        Note(kind, words.format(_shares(members, value)), tuple(m.name for m in members))
        for kind, value, words in wanted
        if len({value(member) for member in members}) > 1
    ]


def _other_protocols(members: Sequence[Member], sets: Mapping[Identity, str]) -> list[Note]:
    """Entries of the protocol that differ between runs which were evaluated on the same images."""
    found = []
    for identity, name in sets.items():
        rows = [(m, each) for m in members for each in m.evaluated if each.identity == identity]
        entries = dict.fromkeys(key for _, each in rows for key in each.protocol if key not in NOT_COMPARED)
        for entry in entries:
            words = {m.name: each.protocol[entry] for m, each in rows if entry in each.protocol}
            if len(set(words.values())) > 1:
                found.append(_protocol_note(name, entry, words))
    ks = {m.config["monitor.knn_k"] for m in members if m.curves.knn}
    banks = {m.curves.bank for m in members if m.curves.knn}
    if len(ks) > 1 or len(banks) > 1:
        shares = _shares([m for m in members if m.curves.knn], monitor_protocol)
        text = f"k-NN while training was not measured alike: {shares}. Do not compare those figures."
        found.append(Note("protocol", text, tuple(m.name for m in members), True))
    return found


NOT_COMPARED = {"encoder", "sampling error"}
"""Entries of a protocol that tell of one run."""


def _protocol_note(name: str, entry: str, words: Mapping[str, str]) -> Note:
    first, one = next(iter(words.items()))
    second, other = next((run, each) for run, each in words.items() if each != one)
    text = (
        f"On {name}, the protocols of {entry!r} differ: {one!r} for {first}, {other!r} for {second}. "
        "Evaluate all of them again with one version of clf and the same settings."
    )
    return Note("protocol", text, tuple(words), True)


def monitor_protocol(member: Member) -> str:
    """How k-NN was measured while training, in words."""
    bank = f", bank of {member.curves.bank:,} training images" if member.curves.bank else ""
    return f"k = {member.config['monitor.knn_k']}{bank}"


def _unfinished(members: Sequence[Member]) -> list[Note]:
    rows = [m for m in members if m.state != "complete"]
    if not rows:
        return []
    words = "; ".join(f"{m.name} is {m.state} at step {m.step:,}" for m in rows[:MOST_NAMED])
    more = f"; and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    text = f"Not finished, and counted as they are: {words}{more}. Go on with clf train --resume RUN."
    return [Note("unfinished", text, tuple(m.name for m in rows), True)]


def _cut_off(members: Sequence[Member]) -> list[Note]:
    """A record is written at the last step of every training; reading ends at the first line that is not whole."""
    rows = [m for m in members if m.state == "complete" and m.curves.step < m.step]
    if not rows:
        return []
    names = [m.name for m in rows]
    text = (
        f"The records end before the training did: {named(names)} (step {rows[0].curves.step:,} of "
        f"{rows[0].step:,}). Curves and last values are of the part that can be read."
    )
    return [Note("records", text, tuple(names), True)]


def _stale(members: Sequence[Member]) -> list[Note]:
    rows = [(m, each) for m in members for each in m.evaluated if m.step and each.step != m.step]
    if not rows:
        return []
    member, each = rows[0]
    names = tuple(dict.fromkeys(m.name for m, _ in rows))
    text = (
        f"Evaluated at another step than the run's last: {named(names)} ({each.data} at step {each.step:,} of "
        f"{member.step:,}). Evaluate again: clf evaluate {member.address}"
    )
    return [Note("stale_evaluation", text, names, True)]


def _duplicates(groups: Sequence[Group]) -> list[Note]:
    pairs = [(name, kept) for group in groups for name, kept in group.duplicates.items()]
    if not pairs:
        return []
    words = "; ".join(f"{name} repeats {kept}" for name, kept in pairs[:MOST_NAMED])
    more = f"; and {len(pairs) - MOST_NAMED} more" if len(pairs) > MOST_NAMED else ""
    text = f"Equal settings and seed, so left out of every mean: {words}{more}."
    return [Note("duplicate", text, tuple(name for name, _ in pairs))]


def _other_code(members: Sequence[Member]) -> list[Note]:
    by_plugin: dict[str, set[str]] = {}
    for member in members:
        by_plugin.setdefault(member.plugin, set()).add(member.code)
    own = {(m.manifest.get("clf_version"), m.manifest.get("commit")) for m in members}
    if len(own) < 2 and all(len(each) < 2 for each in by_plugin.values()):
        return []
    words = _shares(members, lambda m: m.code)
    return [Note("code", f"Made by different versions of the code: {words}.", tuple(m.name for m in members))]


def _other_devices(members: Sequence[Member]) -> list[Note]:
    def where(member: Member) -> str:
        processes = member.manifest.get("world_size", 1)
        threads = f", {member.manifest['threads']} threads" if "threads" in member.manifest else ""
        return f"{member.manifest.get('device', 'unknown')}{threads}" + (f" x {processes}" if processes > 1 else "")

    if len({where(member) for member in members}) < 2:
        return []
    text = f"Wall times are of different machines or threads: {_shares(members, where)}."
    return [Note("device", text, tuple(m.name for m in members))]


def _unevaluated(members: Sequence[Member]) -> list[Note]:
    rows = [m for m in members if not m.evaluated]
    if not rows:
        return []
    text = f"Not evaluated yet: {named([m.name for m in rows])}. Make it with: clf evaluate {rows[0].address}"
    return [Note("not_evaluated", text, tuple(m.name for m in rows))]


def _evaluated_apart(members: Sequence[Member], sets: Mapping[Identity, str]) -> list[Note]:
    """Figures that stand in different tables, so that no difference can be taken of them."""
    rows = [m for m in members if any(each.identity in sets for each in m.evaluated)]
    first = {each.identity for each in rows[0].evaluated} if rows else set()
    apart = [m for m in rows if first.isdisjoint(each.identity for each in m.evaluated)]
    if not apart:
        return []
    text = (
        f"Evaluated on other images than {rows[0].name} ({_sets(rows[0], sets)}): {named([m.name for m in apart])} "
        f"({_sets(apart[0], sets)}). Evaluate all of them alike: clf evaluate RUN --on DATA"
    )
    return [Note("evaluated_apart", text, tuple(m.name for m in apart))]


def _sets(member: Member, sets: Mapping[Identity, str]) -> str:
    return ", ".join(sets[each.identity] for each in member.evaluated if each.identity in sets)


def _few_seeds(groups: Sequence[Group]) -> list[Note]:
    if len(groups) < 2:
        return []
    single = [group for group in groups if len(group.members) == 1]
    if not single:
        return []
    text = (
        f"One seed only: {named([group.name for group in single], '; ')}. What another seed would change is unknown; "
        "three or more of each group tell."
    )
    return [Note("one_seed", text, tuple(g.members[0].name for g in single))]


def _shares(members: Iterable[Member], value: Callable[[Member], object]) -> str:
    """``200 (3 runs), 400 (1 run)``."""
    counts = Counter(value_words(value(member)) for member in members)
    return ", ".join(f"{words} ({count} run{'s' if count > 1 else ''})" for words, count in counts.items())


def value_words(value: object) -> str:
    return "not set" if value is None else str(value)


def named(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more


def trained_on_test(members: Sequence[Member], each: Evaluated) -> list[str]:
    """Runs whose training images may hold test images of an evaluation: other splits of the same source."""
    return [m.name for m in members if m.data.fingerprint == each.fingerprint and not _of_own_split(each, m.data)]


def _of_own_split(each: Evaluated, data: Data) -> bool:
    """Whether the test images are of the split that a run had: by its words, as a study takes only some of them."""
    words = each.protocol.get("split")
    return each.queries == data.test_images if words is None else words.partition(";")[0] == data.split
