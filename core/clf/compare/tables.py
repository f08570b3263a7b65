"""The tables of a comparison as text, for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from clf.compare.comparison import (
    WHILE_TRAINING,
    Column,
    Comparison,
    Difference,
    difference,
    group_spread,
    verdict,
)
from clf.compare.groups import MISSING, Group, value_text
from clf.compare.reading import Member
from clf.compare.scores import LOSS, SECONDS, Measure

NOTHING = "-"
MOST_FOREIGN = 6


@dataclass(frozen=True)
class TextTable:
    """Names of columns and rows of text under a title and a sentence."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: str = ""
    """The evaluated set, or ``training``."""


def headline(found: Comparison) -> str:
    """How many runs in how many groups, and on what data."""
    runs, groups = len(found.members), len(found.groups)
    words = f"{runs} run{'s' if runs > 1 else ''} in {groups} group{'s' if groups > 1 else ''}"
    data = list(dict.fromkeys(member.data.words for member in found.members))
    return f"{words} on {data[0]}" if len(data) == 1 else f"{words} on different data: {'; '.join(data)}"


def score_tables(found: Comparison, minor: bool = False) -> list[TextTable]:
    """One table for each evaluated set, and one of what the trainings recorded."""
    tables = []
    for data in [*found.sets, WHILE_TRAINING]:
        columns = [column for column in found.of_set(data) if minor or not column.measure.minor]
        if not columns:
            continue
        units = [unit_of(column, found) for column in columns]
        header = ["group", "seeds", *(column.measure.label for column in units)]
        rows = [
            [group.name, str(len(group.members)), *(cell(group, column) for column in units)] for group in found.groups
        ]
        tables.append(TextTable(_title(data), _note(data), header, rows, data))
    return tables


def _title(data: str) -> str:
    return "While training" if data == WHILE_TRAINING else f"On {data}"


def _note(data: str) -> str:
    start = "Mean ± standard deviation over seeds; accuracies in percent. "
    if data == WHILE_TRAINING:
        return start + "The last values that were recorded: a glance, where clf evaluate is the measurement."
    return start + "Encoders of the last checkpoint, never the best of several."


def unit_of(column: Column, found: Comparison) -> Column:
    """Wall times in the unit that suits the longest."""
    if column.measure is not SECONDS:
        return column
    name, seconds = time_unit(found.members)
    return Column(Measure(SECONDS.key, name, "neither", 1 / seconds, 1), column.data, column.identity, column.protocol)


def time_unit(members: Sequence[Member]) -> tuple[str, float]:
    """Name and seconds of the unit that suits the longest training."""
    longest = max(member.wall_seconds or 0.0 for member in members)
    return next((unit for unit in (("hours", 3600.0), ("minutes", 60.0)) if longest >= 2 * unit[1]), ("seconds", 1.0))


def cell(group: Group, column: Column) -> str:
    """``84.1 ± 0.3``, with the number of values where some seeds have none."""
    found = group_spread(group, column)
    if found is None:
        return NOTHING
    words = found.text(column.measure.scale, column.measure.digits)
    return words if found.n == len(group.members) else f"{words} (n = {found.n})"


def told(found: Comparison) -> list[Column]:
    """Columns whose differences are worth a row: accuracies, and without any the label-free figures."""
    scored = [c for c in found.columns if c.measure.better == "higher" and not c.measure.minor]
    evaluated = [column for column in scored if column.data != WHILE_TRAINING]
    return evaluated or scored or [c for c in found.columns if c.measure.key not in (LOSS.key, SECONDS.key)]


def difference_table(found: Comparison) -> TextTable | None:
    """Each group less the reference; None where there is nothing to take differences of."""
    rows = []
    for column in told(found):
        for group in found.others:
            each = difference(group, found.reference, column)
            if each is not None:
                rows.append(_difference_row(group, column, each))
    if not rows:
        return None
    title = f"Difference to {found.reference.name}"
    return TextTable(title, _about(rows), ["group", "score", "difference", "95 % interval", "by", "verdict"], rows)


def _difference_row(group: Group, column: Column, each: Difference) -> list[str]:
    measure = column.measure
    low, high = (measure.text(value, signed=True) for value in each.interval) if each.interval else ("", "")
    by = {"paired": f"{each.n} paired seeds", "unpaired": f"{each.n} runs, unpaired", "single": "one seed"}[each.kind]
    return [
        group.name,
        f"{measure.label}, {column.data}",
        measure.text(each.mean, signed=True),
        f"{low} to {high}" if each.interval else NOTHING,
        by,
        verdict(each, measure),
    ]


def _about(rows: Sequence[Sequence[str]]) -> str:
    words = (
        "Accuracies in points. Paired by seed where seeds match (Student's t), else of two means (Welch). Seeds are "
        "all that the interval knows of: other test images, data or settings may turn the order round."
    )
    tested = sum(row[3] != NOTHING for row in rows)
    if tested < 10:
        return words
    return f"{words} Of {tested} such intervals about {max(1, round(tested / 20))} leave out zero by chance."


def settings_table(found: Comparison) -> TextTable | None:
    """The keys that differ, a column for each group; None where nothing does.

    A key that some groups do not have is a setting of another method: it has a row only where groups that have it
    differ in it.
    """
    if not found.settings:
        return None
    foreign = [key for key, row in found.settings.items() if MISSING in row and len(_present(row)) == 1]
    rows = [[key, *map(value_text, row)] for key, row in found.settings.items() if key not in foreign]
    note = "All others that can change what is learned are equal."
    if foreign:
        more = "" if len(foreign) <= MOST_FOREIGN else f" and {len(foreign) - MOST_FOREIGN} more, all in --json"
        note += f" Left out: settings that only some of the methods have ({', '.join(foreign[:MOST_FOREIGN])}{more})."
    return TextTable("Settings that differ", note, ["key", *(group.name for group in found.groups)], rows)


def _present(row: Sequence[object]) -> set[str]:
    return {value_text(value) for value in row if value != MISSING}


def run_table(found: Comparison) -> TextTable:
    """A row for each run, with what is missing of it."""
    rows = []
    for group in found.groups:
        for member in found.members:
            repeats = group.duplicates.get(member.name)
            if member not in group.members and repeats is None:
                continue
            measured = ", ".join(each.data for each in member.evaluated) or f"no: clf evaluate {member.address}"
            state = member.state + (f", repeats {repeats}" if repeats else "")
            device = str(member.manifest.get("device", NOTHING))
            rows.append([member.name, group.name, str(member.seed), state, f"{member.step:,}", measured, device])
    return TextTable("Runs", "", ["run", "group", "seed", "state", "steps", "evaluated on", "device"], rows)


def protocols(found: Comparison) -> list[tuple[str, str]]:
    """How each column was measured, columns of one protocol together."""
    rows = [(column, column.protocol) for column in found.columns if column.protocol]
    return [
        (f"{', '.join(dict.fromkeys(column.measure.label for column, _ in same))} ({data})", words)
        for (data, words), same in (
            (key, list(each)) for key, each in groupby(rows, key=lambda row: (row[0].data, row[1]))
        )
    ]
