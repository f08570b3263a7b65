"""One comparison of a folder with a gallery, and what follows from it, committed step by step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from clf.manifest import sha256_file
from clf_serve.cores import usable_cores
from clf_serve.files import Skipped, ahead
from clf_serve.gallery import Known
from clf_serve.place import AnyPlace, Place
from clf_serve.stores import AnyGallery
from clf_serve.sync.comparing import Plan, compare, match
from clf_serve.sync.failures import Failures
from clf_serve.sync.scanning import File, root_of
from clf_serve.sync.sidecar import Sidecar, apply_metadata, read_sidecar

if TYPE_CHECKING:
    from clf_serve.engine import Engine

Begin = Callable[[str, int], None]
Advance = Callable[[int], None]
Writing = Callable[[], AbstractContextManager[AnyGallery]]


@dataclass
class IndexReport:
    """What a run did, in numbers of files."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    renamed: int = 0
    """Renamed or moved: the entry keeps its id and metadata."""
    touched: int = 0
    """Another time of modification, the same bytes."""
    copied: int = 0
    """Of those added and updated: not embedded, since the vector of equal bytes was there."""
    described: int = 0
    """Entries whose metadata the metadata file changed, beside those that were added and updated."""
    kept: int = 0
    """Gone, and left in the gallery because so many are; see ``allow_removals``."""
    resting: int = 0
    """Left for the next run: they may still be written."""
    skipped: list[Skipped] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    """Names in the metadata file that are no image of the folder."""

    @property
    def changed(self) -> bool:
        """Whether the gallery is another than before."""
        return any((self.added, self.updated, self.removed, self.renamed, self.touched, self.described))

    def counts(self) -> dict[str, int]:
        """All numbers by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.type == "int"}

    def __str__(self) -> str:
        copies = f" ({self.copied} of them copies)" if self.copied else ""
        parts = [f"{self.added} added", f"{self.updated} updated{copies}", f"{self.unchanged} unchanged"]
        more = {"renamed": self.renamed, "touched": self.touched, "removed": self.removed}
        more |= {"gone and kept": self.kept, "described": self.described, "still being written": self.resting}
        parts += [f"{count} {word}" for word, count in more.items() if count or word == "removed"]
        return ", ".join([*parts, f"{len(self.skipped)} skipped"])


@dataclass(frozen=True)
class Settings:
    """How a folder is indexed."""

    batch_size: int = 32
    """Images decoded and committed together."""
    allow_removals: bool = False
    """Remove entries even when more than half of the folder's are gone."""
    metadata: Path | None = None
    """File with metadata of the images; see :mod:`clf_serve.sync.sidecar`."""
    exif: bool = False
    """Take the time and the camera of new and changed photos into their metadata."""
    places: bool = False
    """Their coordinates too."""


class Sync:
    """Brings a gallery in line with a folder, once.

    Args:
        reader: the gallery as it is read; the one that is written, or another on the same folder.
        writing: gives the gallery opened for writing, for one commit at a time.
        engine: or what makes it, which is called when there is something to embed.
        begin: called with the name of a stage, ``comparing`` or ``embedding``, and its number of files.
        advance: called with the number of files done since the last call.
        rests: whether a new or changed file is complete.
        stopped: asked after each commit; what is left then waits for the next run.
    """

    def __init__(
        self,
        reader: AnyGallery,
        writing: Writing,
        engine: Engine | Callable[[], Engine],
        source: Path,
        settings: Settings,
        *,
        begin: Begin = lambda stage, total: None,
        advance: Advance = lambda done: None,
        rests: Callable[[File], bool] = lambda file: True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.report = IndexReport()
        """What is committed so far."""
        self._reader, self._writing, self._engine = reader, writing, engine
        self._source, self._settings = source, settings
        self._begin, self._advance, self._rests, self._stopped = begin, advance, rests, stopped

    def run(self) -> IndexReport:
        """Raises as :func:`clf_serve.sync.indexing.index_images`."""
        sidecar = read_sidecar(self._settings.metadata, self._source)
        failures = Failures(self._reader.place.notes, root_of(self._source))
        known = self._reader.listing()
        plan = compared(
            self._source, known, failures, self._settings, sidecar, self._begin, self._advance, rests=self._rests
        )
        report = self.report
        report.unchanged, report.kept, report.resting = plan.unchanged, plan.kept, plan.resting
        report.skipped += plan.skipped
        self._rearrange(plan)
        broken = self._embed(plan, known, failures, sidecar) if plan.files else set()
        if sidecar is not None:
            found = apply_metadata(self._reader, self._writing, sidecar, plan.names)
            report.described, report.unmatched = found
        report.skipped.sort(key=lambda skipped: skipped.path)  # threads come to an end in any order
        failures.save(plan.failed | broken)
        return report

    def _rearrange(self, plan: Plan) -> None:
        """Renames first: killed in between, the next run removes what is gone."""
        if plan.moves:
            with self._writing() as gallery:
                gallery.relocate(plan.moves)
        self.report.renamed, self.report.touched, self.report.removed = plan.renamed, plan.touched, plan.replaced
        if plan.gone:
            with self._writing() as gallery:
                self.report.removed += gallery.delete([entry.id for entry in plan.gone.values()])

    def _embed(self, plan: Plan, known: dict[str, Known], failures: Failures, sidecar: Sidecar | None) -> set[str]:
        """The keys of the files that turned out to be broken."""
        from clf_serve.sync.intake import Intake

        engine = self._engine() if callable(self._engine) else self._engine
        sources = _sources(plan, known)
        ids = {file.key: known[file.key].id for file in plan.files if file.key in known}
        intake = Intake(engine.image_size, plan.files, ids, sources, self._settings, sidecar, self.report)
        self._begin("embedding", len(plan.files))
        with closing(engine.stream(intake.paths, intake.load, self._settings.batch_size)) as chunks:
            for chunk in chunks:
                with self._writing() as gallery:
                    intake.commit(chunk, gallery)
                self._advance(len(chunk.items) + len(chunk.skipped))
                if self._stopped():
                    break
        for file, reason in intake.broken.values():
            failures.remember(file, reason)
        return set(intake.broken)


def rehearse(source: Path, gallery: AnyPlace, known: dict[str, Known], settings: Settings) -> IndexReport:
    """What a run would do, without doing any of it. Copies of new images count as added or updated.

    Args:
        gallery: its place, where there need not be one yet.
        known: its entries.
    """
    sidecar = read_sidecar(settings.metadata, source)
    plan = compared(source, known, Failures(Place.of(gallery).notes, root_of(source)), settings, sidecar)
    report = IndexReport(unchanged=plan.unchanged, renamed=plan.renamed, touched=plan.touched, kept=plan.kept)
    report.updated = sum(file.key in known for file in plan.files)
    report.added = len(plan.files) - report.updated
    report.removed = len(plan.gone) + plan.replaced
    report.skipped = plan.skipped
    report.unmatched = [name for name in sidecar.rows if name not in plan.names] if sidecar is not None else []
    return report


def compared(
    source: Path,
    known: dict[str, Known],
    failures: Failures,
    settings: Settings,
    sidecar: Sidecar | None,
    begin: Begin = lambda stage, total: None,
    advance: Advance = lambda done: None,
    *,
    rests: Callable[[File], bool] = lambda file: True,
) -> Plan:
    """What there is to do. Raises as :func:`clf_serve.sync.comparing.compare`."""
    names = sidecar.__contains__ if sidecar is not None else None
    plan = compare(source, known, failures, names=names, rests=rests)
    match(plan, known, lambda files: _hash(files, begin, advance), allow_removals=settings.allow_removals)
    return plan


def _hash(files: list[File], begin: Begin, advance: Advance) -> dict[str, str]:
    """SHA-256 by key, without the files that cannot be read: they are met again where they are decoded."""
    if not files:
        return {}
    begin("comparing", len(files))
    digests = {}
    paths = {Path(file.uri): file.key for file in files}
    workers = usable_cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="clf-hash") as pool:
        for path, future in ahead(pool, _digest, paths, depth=16 * workers):
            digest = future.result()
            if digest is not None:
                digests[paths[path]] = digest
            advance(1)
    return digests


def _digest(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None


def _sources(plan: Plan, known: dict[str, Known]) -> dict[str, int]:
    """Entries whose vector a copy may take, ids by SHA-256: those that this run does not change."""
    moved = {move.id for move in plan.moves}
    lost = {entry.id for entry in plan.gone.values()}
    lost |= {known[file.key].id for file in plan.files if file.key in known}
    lost |= {known[move.key].id for move in plan.moves if move.key in known}
    lost -= moved
    return {entry.sha256: entry.id for entry in known.values() if entry.sha256 and entry.id not in lost}
