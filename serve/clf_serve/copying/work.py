"""``clf gallery copy`` and ``clf gallery diff``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from clf.errors import GalleryError
from clf_serve.copying.comparing import Compared, Difference, Progress, bring, compare
from clf_serve.copying.drafts import Draft, drafting
from clf_serve.copying.searches import QUERIES, Nearest
from clf_serve.copying.sides import Side, reading
from clf_serve.gallery.following import Progress as Building
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import open_gallery

_PASSES = 6  # over a gallery to which others write
Stage = Callable[[str, int], None]
"""Called with what is done from now on, and the number of rows."""


@dataclass
class Copied:
    """What was copied and compared."""

    images: int = 0
    resumed: int = 0
    """Of them, written by an earlier run that was stopped."""
    caught_up: int = 0
    """Rows that others changed in the source meanwhile, and were written again."""
    compared: Compared = field(default_factory=Compared)
    """Of the last reading of both, after everything was written: nothing differs."""
    searches: int = 0
    """Exact searches of the copy that found what comparing every vector of the source finds."""
    note: str | None = None
    """What was wrong with the saved index of the copy, in a sentence."""


@dataclass(frozen=True)
class Steps:
    """What is told while it is done."""

    stage: Stage = lambda label, rows: None
    progress: Progress = lambda rows: None
    building: Building = lambda stage, done: None


SILENT = Steps()


@dataclass
class Diff:
    """Of two galleries."""

    images: tuple[int, int]
    compared: Compared
    searches: int
    """Exact searches, each of both galleries."""

    @property
    def same(self) -> bool:
        return not self.compared.different


def copy(source: AnyPlace, new: AnyPlace, steps: Steps = SILENT) -> Copied:
    """Makes the gallery ``new`` of the same ids, keys, facts, metadata, vectors and thumbnails, and compares the two.

    ``new`` is there when every row of it has been read again and is equal, bit for bit, and searches of it find what
    they must. Stopped or killed, the same command goes on. A folder is copied as it was when this began; what others
    write to a store meanwhile is copied too.

    Raises:
        GalleryError: one of the two fails, ``new`` is another gallery, or the unfinished one of another command, or
            does not give back what was written to it, or others write to a source in a store all the time.
        DataError: a folder that cannot be written.
        PluginError: no usable store of a scheme is installed.
    """
    old, place = Place.of(source), Place.of(new)
    with reading(old) as side:
        return carry_over(side, place, command("clf gallery copy", old, place), steps)


def command(words: str, *named: Place | Path | str) -> str:
    """As one would type it, the same for all names of a folder; passwords are not shown."""
    paths = [each.folder if isinstance(each, Place) and each.folder else each for each in named]
    return " ".join([words, *(quote(str(each.resolve() if isinstance(each, Path) else each)) for each in paths)])


def carry_over(side: Side, place: Place, work: str, steps: Steps, *, suffix: str = "copying") -> Copied:
    """The same from whatever can be read as rows. Args: work: the command, as it is told to people."""
    with drafting(place, side.about, work, suffix=suffix) as draft:
        report = Copied(resumed=_count(draft))
        nearest = _write(side, draft, report, steps)
        draft.settle(side.about)
        with draft.gallery() as gallery:
            gallery.save_index(progress=steps.building)
            report.note = gallery.cache_note
            steps.stage("searching", len(nearest.queries))
            if wrong := nearest.differs(gallery):
                raise GalleryError(f"{wrong}; {_kept(draft)}")
        report.searches = len(nearest.queries)
        report.images = report.compared.rows
        draft.publish()
    return report


def _write(side: Side, draft: Draft, report: Copied, steps: Steps) -> Nearest:
    """Until a whole reading of both shows no difference, while nobody wrote to the source."""
    before, label = side.generation, "copying"
    for each in range(_PASSES):
        nearest = Nearest(side.sample(QUERIES))
        steps.stage(label, side.images)
        found = bring(side, draft, fresh=each == 0 and not report.resumed, nearest=nearest, progress=steps.progress)
        after = side.generation
        if each and not found.different and after == before:
            report.compared = found
            return nearest
        if each and found.different and after == before and label == "comparing":
            raise GalleryError(
                f"{draft.place} does not give back what was written to it: {found.first[0].text}; {_kept(draft)}"
            )
        report.caught_up += found.different if each else 0
        label = "comparing" if after == before else "catching up"
        before = after
    raise GalleryError(
        f"{side.place} is written to all the time; end what writes to it, and run this again to go on from here"
    )


def _count(draft: Draft) -> int:
    with draft.side() as side:
        return side.images


def _kept(draft: Draft) -> str:
    whom = f"tell the authors of the store {draft.place.scheme!r}" if draft.place.folder is None else "see to the disk"
    return f"it is left unfinished; {whom}"


def diff(first: AnyPlace, second: AnyPlace, steps: Steps = SILENT) -> Diff:
    """Compares two galleries row by row, and what exact searches of both find. Nothing is written.

    Raises:
        GalleryError: one of them is missing or damaged, or in a store and written to meanwhile.
        PluginError: no usable store of a scheme is installed.
    """
    with reading(first) as a, reading(second) as b:
        generations = a.generation, b.generation
        nearest = Nearest(a.sample(QUERIES))
        steps.stage("comparing", a.images)
        found = compare(a, b, nearest, steps.progress)
        models = a.about.model, b.about.model
        if (models[0].sha256, models[0].dim) != (models[1].sha256, models[1].dim):
            found.note(Difference(0, "about", f"the models are {models[0]} and {models[1]}"))
        for side, before in zip((a, b), generations, strict=True):
            if side.generation != before:
                raise GalleryError(f"{side.place} was written to while it was read; run this again")
        images = a.images, b.images
    return Diff(images, found, 0 if found.different else _search(first, second, nearest, found))


def _search(first: AnyPlace, second: AnyPlace, nearest: Nearest, found: Compared) -> int:
    """How many searches of each find what they must."""
    for place in (first, second):
        with open_gallery(place) as gallery:
            if wrong := nearest.differs(gallery):
                found.note(Difference(0, "about", wrong))
    return len(nearest.queries)
