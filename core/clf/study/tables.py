"""The tables of a study, made of its records alone: scores, differences to the reference row, times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from clf.spread import Spread, paired, spread
from clf.study.evidence import Evidence
from clf.study.records import Record
from clf.study.spec import Study

NAMES = {"knn": "k-NN", "linear": "Linear probe"}
Column = tuple[str, int | None]
"""A column of the study, and an epoch of ``after_epochs`` or None for the end."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The name of the row and a word for each column."""


def tables(study: Study, records: Sequence[Record]) -> list[Table]:
    """Scores in percent, mean ± standard deviation over seeds; differences by seed; times. Cells without a record are
    ``-``, and such as the study does not have are empty."""
    own = [record for record in records if study.has(record.row, record.column)]
    made = []
    for score in NAMES:
        if any(score in record.scores for record in own):
            made += _scores(study, own, score)
    made.append(_times(study, own, "Training, minutes (median)", lambda record: record.wall_seconds / 60))
    if any(record.preparation_seconds is not None for record in own):
        made.append(_times(study, own, "Preparation before the training, minutes (median)", _preparation))
    return [table for table in made if table.rows]


def markdown(study: Study, records: Sequence[Record]) -> str:
    """The tables as a Markdown page, with how they were measured."""
    lines = [f"# {study.title}", "", *filter(None, [study.question, study.paper and f"Paper: {study.paper}."]), ""]
    lines += [summary(study, records), ""]
    for table in tables(study, records):
        lines += [f"## {table.title}", "", _line(("", *table.columns)), _line(["---"] * (1 + len(table.columns)))]
        lines += [_line(row) for row in table.rows] + [""]
    protocols = {(name, words): None for record in records for name, words in record.protocol.items()}
    if protocols:
        lines += ["## Protocol", "", *(f"- {name}: {words}" for name, words in protocols), ""]
    return "\n".join(lines)


def summary(study: Study, records: Sequence[Record]) -> str:
    """How much is done, and on what machines with which versions."""
    own = [record for record in records if study.has(record.row, record.column)]
    cells = replace(study, seeds=_seeds(study, own)).cells()
    words = [f"{len({record.key for record in own})} of {len(cells)} cells are done."]
    if len(own) < len(records):
        others = _counted(len(records) - len(own), "record")
        words.append(f"Left out: {others} of rows or columns that the study no longer has.")
    if own:
        machines = _listed(f"{record.device}, {_counted(record.threads, 'thread')}" for record in own)
        sources = _listed(f"{record.clf_version} ({record.commit or 'installed'})" for record in own)
        data = _listed(f"{record.data.name} ({record.data.split})" for record in own)
        words.append(f"Data: {data}. Device: {machines}. clf {sources}.")
        if given := Evidence(study, tuple(own), len(records) - len(own)).given:
            words.append(f"Settings other than the file's: {', '.join(given)}.")
    return " ".join(words)


def cell_values(records: Sequence[Record], row: str, column: str, score: str, after: int | None) -> dict[int, float]:
    """A score of one cell by seed, at the end or after an epoch."""
    mine = [record for record in records if (record.row, record.column) == (row, column)]
    scores = {record.seed: record.scores if after is None else record.after.get(str(after), {}) for record in mine}
    return {seed: found[score] for seed, found in scores.items() if score in found}


def _seeds(study: Study, records: Sequence[Record]) -> tuple[int, ...]:
    """The study's, and others that were asked for when it ran."""
    return tuple(sorted({*study.seeds, *(record.seed for record in records)}))


def _scores(study: Study, records: Sequence[Record], score: str) -> list[Table]:
    name = NAMES[score] + (f" (k = {study.evaluate.knn_k})" if score == "knn" else "")
    columns = columns_of(study)
    seeds = len(_seeds(study, records))

    def values(row: str, column: Column) -> dict[int, float]:
        return cell_values(records, row, column[0], score, column[1])

    def word(row: str, column: Column) -> str:
        found = values(row, column)
        return _word(spread(list(found.values())), seeds) if found else _absent(study, row, column)

    def difference(row: str, column: Column) -> str:
        found = paired(values(row, column), values(study.reference, column))
        return _difference(found, seeds) if found else _absent(study, row, column)

    less = [row for row in study.rows if row != study.reference]
    title = f"{name}: difference to {study.reference}, points, by seed, with 95 % interval"
    return [
        Table(f"{name}, %, mean ± standard deviation over seeds", *_filled(study, study.rows, columns, word)),
        Table(title, *_filled(study, less, columns, difference)),
    ]


def _times(study: Study, records: Sequence[Record], title: str, of: Callable[[Record], float | None]) -> Table:
    def word(row: str, column: Column) -> str:
        mine = [of(record) for record in records if (record.row, record.column) == (row, column[0])]
        values = [value for value in mine if value is not None]
        return _minutes(statistics.median(values)) if values else ("" if mine else _absent(study, row, column))

    return Table(title, *_filled(study, study.rows, [(column, None) for column in study.columns], word))


def _filled(
    study: Study, rows: Iterable[str], columns: Sequence[Column], word: Callable[[str, Column], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Names of the columns, and the rows with their words; rows and columns with nothing in them are left out."""
    words = {row: [word(row, column) for column in columns] for row in rows}
    kept = [i for i in range(len(columns)) if any(line[i] for line in words.values())]
    names = tuple(column_name(study, columns[i]) for i in kept)
    return names, tuple((row, *(line[i] for i in kept)) for row, line in words.items() if any(line))


def columns_of(study: Study) -> list[Column]:
    """Each column's epochs, rising, then its end."""
    epochs = sorted({epoch for row in study.rows for epoch in study.after_epochs(row)})
    return [(column, after) for column in study.columns for after in (*epochs, None)]


def column_name(study: Study, column: Column) -> str:
    """``batch 32``, ``epoch 2`` or ``batch 32, epoch 2``"""
    name, after = column
    if after is None:
        return name
    return f"epoch {after}" if len(study.columns) == 1 else f"{name}, epoch {after}"


def _absent(study: Study, row: str, column: Column) -> str:
    name, after = column
    measured = study.has(row, name) and (after is None or after in study.after_epochs(row))
    return "-" if measured else ""


def _word(found: Spread, seeds: int) -> str:
    return found.text() + _count(found, seeds)


def _difference(found: Spread, seeds: int) -> str:
    interval = found.interval
    within = "" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    return found.text(signed=True) + within + _count(found, seeds)


def _count(found: Spread, seeds: int) -> str:
    return "" if found.n == seeds else f" (n = {found.n})"


def _preparation(record: Record) -> float | None:
    return None if record.preparation_seconds is None else record.preparation_seconds / 60


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2f}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _listed(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
