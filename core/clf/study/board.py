"""``plugins/RESULTS.md`` and the tables in the plugins' READMEs, made of records, studies and published figures only.

The text holds no date and no place: the same records give the same text, and a test holds it against them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clf.errors import ConfigError, RunError, did_you_mean
from clf.runs import replace_text
from clf.spread import spread
from clf.study import sections
from clf.study.evidence import Cost, Evidence, costs, data_set, read_evidence
from clf.study.published import Source, read_published
from clf.study.records import Record
from clf.study.sections import apart, block, heading, line, numbers, place, wall
from clf.study.spec import read_studies
from clf.study.speedrun import speedrun
from clf.study.verdicts import Verdict, judge

PUBLISHED = "published.yaml"
_BLOCK = re.compile(r"(<!-- results: (.*?) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
_MARK = re.compile(r"<!-- (?:results: .*?|end of results) -->")
_COMMAND = "clf board plugins/results -o plugins/RESULTS.md --studies configs/studies --readmes plugins"
_ABOUT = f"""\
# Results

Made of the records in [results](results), the studies in [configs/studies](../configs/studies) and the published
figures in [results/published.yaml](results/published.yaml), by

    {_COMMAND}

Every number of ours is computed from the records, and a test fails when this text and they differ: do not edit it.

Scores are top-1 on test images in percent, k-NN / linear probe on the frozen encoder, mean ± standard deviation over
seeds, after the last epoch unless another is named. Differences are taken seed by seed, in points, with the 95 %
interval of their mean by Student's t; bold where it leaves zero out. A claim is *confirmed* when the whole interval is
on its side. Two are never found equal: an interval says which differences stay possible. The interval takes differences
of seeds to be normally distributed, which so few seeds cannot show. One interval in twenty misses by chance, and
nothing here, neither verdicts nor bold figures, is corrected for their number.

A verdict holds for the scale that it was measured at. Scale `cpu` is made for two cores: a small network, few epochs
and mostly a part of the images, far from what the papers did. Scale `gpu` is ResNet-18 on all images but those of the
test split. Each study below says what it trained on what.

Wall times are of the training alone, on machines that may have done other work at the same time, which a record does
not tell. Times of machines with different names are never put together; the name of a CPU says its kind and the number
of cores, no more. None of ours is to be set beside those of others."""

_ABOUT_CLAIMS = """\
Of the papers, at our scales and in our words, beside controls and questions of our own. With each study below stand the
wall times of both sides and what it would take to tell."""


@dataclass(frozen=True)
class Board:
    """Everything that the board is made of."""

    evidence: tuple[Evidence, ...]
    published: tuple[Source, ...]

    @property
    def measured(self) -> list[Evidence]:
        return [each for each in self.evidence if each.records]


def read_board(results: Path, studies: Path) -> Board:
    """
    Raises:
        ConfigError: a folder is missing, or a study or the published figures are wrong.
        RunError: records are damaged, belong to no study, or cannot be compared with each other.
    """
    for folder in (results, studies):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: give the one with the records, and --studies with the studies")
    every = read_studies(studies)
    published = read_published(results / PUBLISHED)
    names = {study.name: None for study in every}
    for source in published:
        for name in source.beside:
            if name not in names:
                raise ConfigError(f"{results / PUBLISHED}: there is no study {name!r}.{did_you_mean(name, names)}")
    return Board(tuple(read_evidence(results, every)), published)


def results_text(board: Board) -> str:
    """The whole of ``RESULTS.md``."""
    parts = [
        [_ABOUT],
        ["## The claims", "", _ABOUT_CLAIMS, "", *_claims(board)],
        ["## Studies", "", *_studies(board)],
        ["## Methods", "", *_methods(board)],
        ["## Speedrun: least wall time to a linear accuracy on CIFAR-10, without labels", "", *_speedrun(board)],
        ["## Published figures", "", *_published(board)],
        ["## Not measured yet", "", *_missing(board)],
    ]
    return "\n\n".join("\n".join(part).strip() for part in parts) + "\n"


def readme_text(text: str, board: Board, place: Path) -> str:
    """A README with its blocks between ``<!-- results: NAME-SCALE -->`` and ``<!-- end of results -->`` made anew.

    ``<!-- results: NAME-SCALE, rows: ROW | ROW -->`` shows some rows of the study, and the claims about them.

    Raises:
        ConfigError: a block names no study or row, or has no end.
    """
    by_name = {str(each): each for each in board.evidence}

    def made(match: re.Match[str]) -> str:
        name, _, words = match[2].partition(", rows: ")
        if name not in by_name:
            raise ConfigError(
                f"{place}: results of {name!r} are asked for, and there is none.{did_you_mean(name, by_name)}"
            )
        known = by_name[name].study.rows
        rows = [row.strip() for row in words.split("|")] if words else None
        for row in rows or ():
            if row not in known:
                raise ConfigError(f"{place}: study {name} has no row {row!r}.{did_you_mean(row, known)}")
        return f"{match[1]}\n" + "\n".join(block(by_name[name], rows)) + f"\n\n{match[4]}"

    if len(_MARK.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise ConfigError(f"{place}: a block '<!-- results: ... -->' needs a line '<!-- end of results -->' behind it")
    return _BLOCK.sub(made, text)


def texts(board: Board, out: Path, readmes: Path | None) -> dict[Path, str]:
    """Every file that the board fills, with its text.

    Raises:
        ConfigError: a README cannot be read, or a block in it is wrong.
    """
    found = {out: results_text(board)}
    for path in sorted(readmes.glob("*/README.md")) if readmes else ():
        try:
            old = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        new = readme_text(old, board, path)
        if _BLOCK.search(old):
            found[path] = new
    return found


def write(found: Mapping[Path, str]) -> list[Path]:
    """Writes the files whose text is another one; which they were."""
    changed = [path for path, text in found.items() if _read(path) != text]
    return [replace_text(path, found[path]) for path in changed]


def first_difference(found: Mapping[Path, str]) -> str | None:
    """Where a file's text is not what the records give, in a sentence; None where all agree."""
    for path, text in found.items():
        old = _read(path)
        if old is None:
            return f"{path} does not exist"
        ours, theirs = text.splitlines(), old.splitlines()
        for i in range(max(len(ours), len(theirs))):
            new, written = (lines[i] if i < len(lines) else "(the end)" for lines in (ours, theirs))
            if new != written:
                return f"{path}, line {i + 1}, is\n  {written}\nand the records give\n  {new}"
        if old != text:
            return f"{path} differs in its line ends"
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error


def _claims(board: Board) -> Iterator[str]:
    """Each claim with what each scale says of it."""
    scales = list(dict.fromkeys(each.study.scale for each in board.evidence))
    yield from heading(["study", "claim", *scales])
    by_claim: dict[tuple[str, str], dict[str, list[str]]] = {}
    told: dict[str, list[Verdict]] = {scale: [] for scale in scales}
    for each in board.evidence:
        for verdict in judge(each.study, each.records):
            found = numbers(verdict)
            word = f"{verdict.outcome} ({found})" if found else verdict.outcome
            by_scale = by_claim.setdefault((each.study.name, verdict.claim.text), {})
            by_scale.setdefault(each.study.scale, []).append(word)
            told[each.study.scale].append(verdict)
    for (name, text), words in by_claim.items():
        yield line([name, text, *("; ".join(words.get(scale, ())) for scale in scales)])
    for scale, every in told.items():
        yield from _tally(scale, every)


def _tally(scale: str, every: Sequence[Verdict]) -> Iterator[str]:
    """How the claims of a scale came out, and how many of their intervals would leave zero out by chance."""
    outcomes = Counter(verdict.outcome for verdict in every if verdict.difference)
    intervals = sum(verdict.difference is not None and verdict.difference.interval is not None for verdict in every)
    if not outcomes:
        return
    counts = "; ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    chance = (
        f" Were none of these differences real, about {0.05 * intervals:.2g} of {intervals} intervals would leave zero "
        "out all the same."
    )
    yield ""
    yield f"Scale {scale}, {outcomes.total()} of {len(every)} measured: {counts}.{chance if intervals else ''}"


def _studies(board: Board) -> Iterator[str]:
    for name in dict.fromkeys(each.study.name for each in board.evidence):
        mine = [each for each in board.evidence if each.study.name == name]
        study = mine[0].study
        yield f"### {name}: {study.title}"
        yield ""
        paper = f" Paper: {study.paper}." if study.paper else ""
        yield f"{study.question}{paper}".strip()
        yield ""
        beside = [source.source.partition(" (")[0] for source in board.published if name in source.beside]
        if beside:
            yield f"[Published figures](#published-figures) that stand beside it: {'; '.join(beside)}."
            yield ""
        for each in mine:
            yield from [f"#### {name} at scale {each.study.scale}", "", *_study(each), ""]


def _study(evidence: Evidence) -> list[str]:
    study = evidence.study
    cells = len(study.cells())
    if not evidence.records:
        return [f"Not measured yet: {cells} cells, `clf study {place(study)} --scale {study.scale}`."]
    lines = [f"{cells - evidence.missing} of {cells} cells are measured.", "", *sections.settings(evidence), ""]
    lines += ["k-NN / linear probe, %:", "", *sections.score_table(evidence), ""]
    if less := sections.difference_table(evidence):
        lines += [f"Less {study.reference} of the same seed, points, with the 95 % interval:", "", *less, ""]
    return lines + sections.verdicts(evidence)


def _methods(board: Board) -> Iterator[str]:
    """A table for each data set and scale, with all that is measured of each method."""
    found: dict[tuple[str, str], list[tuple[Evidence, list[Record]]]] = {}
    for each in board.measured:
        for row, column in each.cells:
            records = each.of(row, column)
            found.setdefault((data_set(records[0]), each.study.scale), []).append((each, records))
    if not found:
        yield "Nothing is measured yet."
    for (name, scale), cells in sorted(found.items()):
        yield from [f"### {name}, scale {scale}", "", *heading(list(_COLUMNS)), *_ledger(cells), ""]
        yield from ["<details><summary>Commands, of the first seed of each line</summary>", "", "```sh"]
        yield from dict.fromkeys(records[0].command for _, records in _by_method(cells))
        yield from ["```", "", "</details>", ""]


def _by_method(cells: Iterable[tuple[Evidence, list[Record]]]) -> list[tuple[Evidence, list[Record]]]:
    return sorted(cells, key=lambda cell: cell[1][0].plugin)


def _ledger(cells: Iterable[tuple[Evidence, list[Record]]]) -> Iterator[str]:
    for evidence, records in _by_method(cells):
        yield line([word(evidence, records) for word in _COLUMNS.values()])


def _score(name: str) -> Callable[[Evidence, Sequence[Record]], str]:
    def word(_: Evidence, records: Sequence[Record]) -> str:
        values = [record.scores[name] for record in records if name in record.scores]
        return spread(values).text() if values else "-"

    return word


def _each(value: Callable[[Record], object]) -> Callable[[Evidence, Sequence[Record]], str]:
    return lambda _, records: ", ".join(dict.fromkeys(str(value(record)) for record in records))


def _cost(word: Callable[[Cost], str]) -> Callable[[Evidence, Sequence[Record]], str]:
    return lambda _, records: apart(costs(records), word)


_COLUMNS: Mapping[str, Callable[[Evidence, Sequence[Record]], str]] = {
    "method": _each(lambda record: record.plugin),
    "study": lambda evidence, _: evidence.study.name,
    "row": _each(lambda record: record.row),
    "column": _each(lambda record: record.column),
    "seeds": lambda _, records: str(len(records)),
    "k-NN": _score("knn"),
    "linear": _score("linear"),
    "epochs": _each(lambda record: record.epochs),
    "batch": _each(lambda record: record.batch_size),
    "images": _each(lambda record: f"{record.data.train_images:,}"),
    "wall time": _cost(wall),
    "images/s": _cost(lambda cost: f"{cost.images_per_second:,.0f}"),
    "device": lambda _, records: "; ".join(cost.machine for cost in costs(records)),
    "commit": _each(lambda record: record.commit or "installed"),
}


def _speedrun(board: Board) -> list[str]:
    about = (
        "The time of the first evaluation that reaches the mark, with the method's preparation, without evaluations, "
        "median over seeds where all of them reach it. Reaching it is read from the test images, and so is the best of "
        "a training's evaluations in the last column: both flatter a little, and the more evaluations the more. A row "
        "that starts from another cell's run is left out. Rows of other studies are here when all their seeds reach "
        "the first mark; whether the machine was idle meanwhile is not recorded."
    )
    return [about, "", *speedrun(board.measured)]


def _published(board: Board) -> Iterator[str]:
    yield "By others, with their own protocols and on their own machines. None was measured here."
    for source in board.published:
        yield from [
            "",
            f"### {source.source}",
            "",
            f"Beside: {', '.join(source.beside)}. Differs from ours: {source.differs}.",
            "",
        ]
        if source.figures:
            yield from heading(["method", "set", "backbone", "epochs", "batch", "metric", "%", "time"])
        for each in source.figures:
            words = each.method, each.set, each.backbone, each.epochs, each.batch, each.metric, each.value, each.time
            yield line([word or "not stated" if i < 5 else word for i, word in enumerate(words)])


def _missing(board: Board) -> Iterator[str]:
    """How many cells of each study have no record."""
    for each in board.evidence:
        if each.missing:
            study = each.study
            command = f"clf study {place(study)} --scale {study.scale}"
            yield f"- {study.name} at scale {study.scale}: {each.missing} of {len(study.cells())} cells (`{command}`)"
    if not any(each.missing for each in board.evidence):
        yield "Every cell of every study has a record."
