"""A study at one scale in Markdown: how it was measured, its scores, its differences and its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from clf.spread import Spread, paired, spread
from clf.study.evidence import Cost, Evidence, costs, data_set, machine
from clf.study.records import Record
from clf.study.spec import Claim, Study
from clf.study.tables import Column, cell_values, column_name, columns_of
from clf.study.verdicts import Verdict, judge

SCORES = ("knn", "linear")
Rows = Collection[str] | None
"""Rows to show; None: all."""


def settings(evidence: Evidence) -> list[str]:
    """What was trained on what, in a paragraph and the commands that repeat it."""
    study, records = evidence.study, evidence.records
    data = records[0].data
    words = [
        f"{_range(r.data.train_images for r in records)} training images of {data_set(records[0])} "
        f"({data.image_size} px, {data.channels} channels; {_listed(r.data.split for r in records)}), without labels.",
        f"{_listed(f'{r.backbone}, {r.parameters / 1e6:.3g} M parameters' for r in records)}.",
        f"Batch {_range(r.batch_size for r in records)}, {_range(r.epochs for r in records)} epochs, "
        f"{_range(r.steps for r in records)} steps.",
        f"Seeds {', '.join(map(str, sorted({r.seed for r in records})))}.",
    ]
    lines = [
        " ".join(words),
        "",
        *protocol(records),
        "",
        *provenance(evidence),
        "",
        "All cells, and one of them by hand:",
        "",
    ]
    given = " ".join(word for word in evidence.given if " " not in word)
    first = f"clf study {place(study)} --scale {study.scale} {given}".rstrip()
    return [*lines, "```sh", first, records[0].command, "```"]


def place(study: Study) -> str:
    """``configs/studies/dcl.yaml``, wherever the repository lies."""
    return "/".join(study.path.resolve().parts[-3:])


def protocol(records: Sequence[Record]) -> list[str]:
    """How scores were measured, one line for each part."""
    parts = dict.fromkeys((name, words) for record in records for name, words in record.protocol.items())
    return [f"- {name}: {words}" for name, words in parts]


def provenance(evidence: Evidence) -> list[str]:
    """Machines, versions and commits, and a warning where there are several, or settings other than the file's."""
    records = evidence.records
    versions = [
        f"clf {r.clf_version}, Python {r.python}, " + ", ".join(f"{name} {v}" for name, v in sorted(r.packages.items()))
        for r in records
    ]
    found = {
        "machines": _distinct(machine(r) for r in records),
        "commits": _distinct(r.commit or "an installed package" for r in records),
        "versions": _distinct(versions),
    }
    lines = [f"- {name}: {'; '.join(each)}" for name, each in found.items()]
    mixed = [f"{len(each)} {name}" for name, each in found.items() if len(each) > 1]
    if mixed:
        lines.append(f"- **mixed: measured on or with {', '.join(mixed)}.** Times are kept apart by machine.")
    if any((r.commit or "").endswith("+") for r in records):
        lines.append("- `+`: the source tree had changes that were not committed")
    if evidence.given:
        lines.append(f"- settings other than the file's: `{'`, `'.join(evidence.given)}`")
    if evidence.strays:
        lines.append(f"- left out: {evidence.strays} records of cells that the file does not have")
    return lines


def score_table(evidence: Evidence, rows: Rows = None) -> list[str]:
    """k-NN / linear probe of each cell in percent, mean ± standard deviation over seeds."""

    def word(row: str, column: Column) -> str:
        found = [_spread(evidence, row, column, score) for score in SCORES]
        return " / ".join(each.text() if each else "-" for each in found) + _count(found, evidence.study)

    return _table(evidence, _shown(evidence.study.rows, rows), word)


def difference_table(evidence: Evidence, rows: Rows = None) -> list[str]:
    """Each row less the reference of the same seed, in points with 95 % interval; empty where nothing is paired."""
    study = evidence.study

    def word(row: str, column: Column) -> str:
        found = [_difference(evidence, row, column, score) for score in SCORES]
        return " / ".join(difference(each) for each in found) + _count(found, study) if any(found) else ""

    return _table(evidence, [row for row in _shown(study.rows, rows) if row != study.reference], word)


def difference(found: Spread | None) -> str:
    """``+0.9 (0.2 to 1.6)``, bold where the interval leaves zero out.

    >>> difference(Spread(0.009, 0.003, 3))
    '**+0.9** (+0.2 to +1.6)'
    """
    if found is None:
        return "-"
    mean = f"{100 * found.mean:+.1f}"
    within = "" if found.interval is None else f" ({_interval(found)})"
    return f"**{mean}**{within}" if found.sign else f"{mean}{within}"


def verdicts(evidence: Evidence, rows: Rows = None) -> list[str]:
    """One line for each claim: what was found, the numbers, and what would be needed to tell."""
    every = judge(evidence.study, evidence.records)
    return [
        _verdict(evidence, each) for each in every if rows is None or {each.claim.row, each.claim.against} <= set(rows)
    ]


def numbers(verdict: Verdict) -> str:
    """``linear +0.9 points, 95 % interval +0.2 to +1.6, 3 seeds``"""
    found = verdict.difference
    if found is None:
        return ""
    name = "k-NN" if verdict.claim.score == "knn" else "linear"
    seeds = f"{found.n} seed{'s' * (found.n > 1)}"
    interval = "no interval" if found.interval is None else f"95 % interval {_interval(found)}"
    return f"{name} {100 * found.mean:+.1f} points, {interval}, {seeds}"


def block(evidence: Evidence, rows: Rows = None) -> list[str]:
    """The study in short, for the README of a plugin."""
    study, records = evidence.study, evidence.records
    if not records:
        return [f"Not measured yet at scale {study.scale}: `clf study {place(study)} --scale {study.scale}`"]
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    head = (
        f"{study.title}, scale {study.scale}. k-NN (k = {records[0].evaluate['knn_k']}) / linear probe, %, mean ± "
        f"standard deviation over seeds {seeds}, the last epoch where no other is named:"
    )
    lines = [head, "", *score_table(evidence, rows)]
    if less := difference_table(evidence, rows):
        lines += ["", f"Less {study.reference} of the same seed, points, with the 95 % interval:", "", *less]
    if told := verdicts(evidence, rows):
        lines += ["", *told]
    times = _times(evidence, rows)
    return [*lines, "", f"{times} How it was measured: [RESULTS.md](../RESULTS.md)."]


def duration(seconds: float) -> str:
    """
    >>> [duration(36.2), duration(754), duration(8000)]
    ['36 s', '12.6 min', '2.2 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def line(words: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def heading(words: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(words), "|" + "---|" * len(words)]


def apart(parts: Sequence[Cost], word: Callable[[Cost], str]) -> str:
    """What each machine took; its name is told where there are several."""
    return "; ".join(f"{word(each)} ({each.machine})" if len(parts) > 1 else word(each) for each in parts)


def wall(cost: Cost) -> str:
    """``41 s``, ``41 s + 2.0 min before``, or ``41 s, after static`` where it starts from a run of that row."""
    if cost.builds_on:
        return f"{duration(cost.wall_seconds)}, after {cost.builds_on}"
    before = "" if cost.preparation_seconds is None else f" + {duration(cost.preparation_seconds)} before"
    return f"{duration(cost.wall_seconds)}{before}"


def _verdict(evidence: Evidence, verdict: Verdict) -> str:
    claim = verdict.claim
    found = numbers(verdict)
    text = f"- {claim.text}: **{verdict.outcome}**" + (f"; {found}." if found else ".") + _both_times(evidence, claim)
    if verdict.outcome == "no difference was seen":
        text += " Differences inside the interval stay possible."
    return text if verdict.outcome == "confirmed" or not claim.to_tell else f"{text} To tell: {claim.to_tell}."


def _both_times(evidence: Evidence, claim: Claim) -> str:
    """What the two sides of a claim took, for each machine that has both: equal epochs are seldom equal times."""
    ours, theirs = ({each.machine: each for each in costs(_until(evidence, *side))} for side in claim.sides)
    shared = [name for name in ours if name in theirs]
    parts = [
        f"{wall(ours[name])}, against {wall(theirs[name])}" + (f" on {name}" if len(shared) > 1 else "")
        for name in shared
    ]
    return f" Wall time: {'; '.join(parts)}." if parts else ""


def _until(evidence: Evidence, row: str, column: str, after: int | None) -> list[Record]:
    """The records of a cell, with the time until the end of an epoch as their time."""
    if after is None:
        return evidence.of(row, column)
    return [
        record.model_copy(update={"wall_seconds": record.after[str(after)]["wall_seconds"]})
        for record in evidence.of(row, column)
        if "wall_seconds" in record.after.get(str(after), {})
    ]


def _times(evidence: Evidence, rows: Rows) -> str:
    """The shortest and the longest of the cells' medians, for each machine."""
    found: dict[str, list[float]] = {}
    for row, column in evidence.cells:
        if rows is None or row in rows:
            for each in costs(evidence.of(row, column)):
                found.setdefault(each.machine, []).append(each.wall_seconds)
    parts = []
    for name, times in sorted(found.items()):
        ends = dict.fromkeys(duration(each(times)) for each in (min, max))
        parts.append(f"{' to '.join(ends)} on {name}")
    return f"A training took {'; '.join(parts)}." if parts else ""


def _spread(evidence: Evidence, row: str, column: Column, score: str) -> Spread | None:
    values = cell_values(evidence.records, row, column[0], score, column[1])
    return spread(list(values.values())) if values else None


def _difference(evidence: Evidence, row: str, column: Column, score: str) -> Spread | None:
    ours, theirs = (
        dict(cell_values(evidence.records, each, column[0], score, column[1]))
        for each in (row, evidence.study.reference)
    )
    return paired(ours, theirs)


def _table(evidence: Evidence, rows: Sequence[str], word: Callable[[str, Column], str]) -> list[str]:
    """Rows and columns that have something in them."""
    columns = columns_of(evidence.study)
    words = {
        row: {column: word(row, column) if _spread(evidence, row, column, SCORES[0]) else "" for column in columns}
        for row in rows
    }
    kept = [column for column in columns if any(cells[column] for cells in words.values())]
    if not kept:
        return []
    names = [column_name(evidence.study, column) for column in kept]
    lines = [line([row, *(cells[column] for column in kept)]) for row, cells in words.items() if any(cells.values())]
    return [*heading(["", *names]), *lines]


def _shown(rows: Iterable[str], wanted: Rows) -> list[str]:
    return [row for row in rows if wanted is None or row in wanted]


def _count(found: Sequence[Spread | None], study: Study) -> str:
    """The number of seeds, where it is not that of the study."""
    numbers_of_seeds = [each.n for each in found if each]
    if not numbers_of_seeds or set(numbers_of_seeds) == {len(study.seeds)}:
        return ""
    return f" (n = {_range(numbers_of_seeds)})"


def _interval(found: Spread) -> str:
    low, high = found.interval or (found.mean, found.mean)
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _range(values: Iterable[int]) -> str:
    """``128``, ``32, 128 or 512`` or ``90 to 1,560``."""
    distinct = [f"{value:,}" for value in sorted(set(values))]
    if len(distinct) > 3:
        return f"{distinct[0]} to {distinct[-1]}"
    return ", ".join(distinct[:-1]) + " or " + distinct[-1] if len(distinct) > 1 else distinct[0]


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _listed(words: Iterable[str]) -> str:
    return "; ".join(_distinct(words))
