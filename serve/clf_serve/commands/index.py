"""``clf index``. Heavy packages are imported inside."""

from __future__ import annotations

import time
from contextlib import nullcontext
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf.errors import DataError
from clf_serve.commands.options import (
    AsJson,
    BatchSize,
    Images,
    Model,
    Provider,
    ProviderOption,
    Variant,
    VariantOption,
    open_engine,
)
from clf_serve.commands.skipped import list_skipped, reasons
from clf_serve.commands.terminal import Bar, bar, console, print_json, size_in_bytes
from clf_serve.place import Place

if TYPE_CHECKING:
    from clf_serve.engine import Engine
    from clf_serve.gallery import Identity
    from clf_serve.stores import AnyGallery
    from clf_serve.sync.syncing import IndexReport, Settings
    from clf_serve.sync.watching import Resting, Stop

Wishes = tuple[str | None, int | None, float | None]
"""Kind, bytes and recall of the search index, where the user named them."""

_SYNC, _INDEX, _DATA = "What changed", "Search index", "Metadata"
_INTERRUPTED = 130
_SHOWN = 5


class Kind(StrEnum):
    auto = "auto"
    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"


def index(
    model: Model,
    images: Images,
    output: Annotated[
        Place,
        typer.Option(
            "--output",
            "-o",
            "--store",
            metavar="GALLERY",
            help="Folder of the gallery, or the URL of a store (SCHEME://...); made or updated.",
            parser=Place.of,
        ),
    ],
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and follow the folder until Ctrl-C.", rich_help_panel=_SYNC)
    ] = False,
    watch_interval: Annotated[
        float | None,
        typer.Option(
            min=0.2,
            help="Look every so many seconds, without events of the file system; for network drives.",
            show_default=False,
            rich_help_panel=_SYNC,
        ),
    ] = None,
    allow_removals: Annotated[
        bool,
        typer.Option("--allow-removals", help="Remove what is gone, even most images.", rich_help_panel=_SYNC),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.", rich_help_panel=_SYNC)
    ] = False,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="FILE.csv, .tsv, .jsonl, .json or .parquet; its column 'file' names images relative to the folder.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    exif: Annotated[
        bool,
        typer.Option("--exif", help="Take time and camera of new and changed photos.", rich_help_panel=_DATA),
    ] = False,
    exif_places: Annotated[
        bool, typer.Option("--exif-places", help="Take their coordinates too.", rich_help_panel=_DATA)
    ] = False,
    kind: Annotated[
        Kind | None,
        typer.Option("--index", help="Kind of index; auto goes by size.", show_default=False, rich_help_panel=_INDEX),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="What the index may take, like 700MiB.", show_default=False, rich_help_panel=_INDEX),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=1.0, help="recall@10 to tune an index for.", show_default=False, rich_help_panel=_INDEX
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a searchable gallery of images, or bring one up to date.

    Only new and changed files are embedded, renamed ones are recognised, and files that are gone are removed. It can be
    stopped and run again.
    """
    from clf_serve.sync.syncing import Settings

    settings = Settings(batch_size, allow_removals, metadata, exif or exif_places, exif_places)
    wishes = (kind.value if kind else None, size_in_bytes(memory) if memory else None, recall)
    job = _Job(model, images, output, provider, variant, settings, as_json)
    if dry_run:
        job.rehearse()
    elif watch or watch_interval is not None:
        job.watch(watch_interval, wishes)
    else:
        job.once(wishes)


class _Job:
    """One call of the command."""

    def __init__(
        self,
        model: Path,
        source: Path,
        output: Place,
        provider: Provider,
        variant: Variant,
        settings: Settings,
        as_json: bool,
    ) -> None:
        self._model, self._source, self._output = model, source, output
        self._provider, self._variant = provider, variant
        self._settings, self._as_json = settings, as_json

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(self._model, self._provider, self._variant)

    @cached_property
    def _identity(self) -> Identity:
        from clf.manifest import read_manifest
        from clf_serve.gallery import Identity

        return Identity.of(read_manifest(self._model))

    def _open(self) -> AnyGallery:
        """For writing. Where there is no gallery yet, the model is tried before one is made."""
        from clf_serve.stores import is_there, open_or_create

        self._check_source()
        if not is_there(self._output):
            _ = self._engine
        return open_or_create(self._output, self._identity, self._model)

    def _check_source(self) -> None:
        """A misspelled path, or a folder without images, shows before anything is loaded or made."""
        from clf import images
        from clf_serve.sync.scanning import Scan

        if next(iter(Scan(self._source)), None) is None:
            raise DataError(f"{self._source} holds no images ({', '.join(sorted(images.SUFFIXES))})")

    def rehearse(self) -> None:
        from clf_serve.stores import is_there, open_gallery
        from clf_serve.sync.syncing import rehearse

        known = {}
        if is_there(self._output):
            with open_gallery(self._output, self._identity) as gallery:
                known = gallery.listing()
        report = rehearse(self._source, self._output, known, self._settings)
        if self._as_json:
            print_json({"dry_run": True, **_facts(report), "gallery": str(self._output)})
            return
        out = console()
        out.print(f"{self._output} would have: {report}; nothing was changed")
        self._explain(report)

    def once(self, wishes: Wishes) -> None:
        from clf_serve.sync.syncing import Sync

        with self._open() as gallery, bar("comparing") as shown:
            sync = Sync(
                gallery,
                lambda: nullcontext(gallery),
                lambda: self._engine,
                self._source,
                self._settings,
                begin=shown.begin_stage,
                advance=shown.advance,
            )
            try:
                report = sync.run()
                _save(gallery, wishes, shown)
            except KeyboardInterrupt:
                console(stderr=True).print(
                    f"stopped: {sync.report}. That is kept; run the same command again to go on from there"
                )
                raise typer.Exit(_INTERRUPTED) from None
            total, note = len(gallery), gallery.cache_note
        self._print(report, total, note)
        if report.kept:
            raise DataError(_kept(report, self._source))

    def watch(self, interval: float | None, wishes: Wishes) -> None:
        """Returns when it is asked to stop."""
        from clf_serve.sync.watching import Events, Resting, follow, stopped_by_signals

        self._open().close()  # it is there, ours to write, and of this model
        _ = self._engine
        resting, also = Resting(), self._settings.metadata
        with stopped_by_signals() as stop, self._reader() as reader:
            events = Events(self._source, stop, also=also, ignored=self._output.folder, interval=interval)
            try:
                report, note = self._round(reader, resting, stop, wishes)
                self._print(report, len(reader), note)
                if report.kept:
                    self._say(_kept(report, self._source))
                self._say(events.note or f"following {self._source}; Ctrl-C ends it")
                follow(
                    lambda: self._round(reader, resting, stop)[0],
                    report,
                    events,
                    stop,
                    lambda report, error: self._tell(report, error, reader),
                    resting,
                )
            finally:
                events.close()
        self._say("stopped; what was found so far is in the gallery")

    def _reader(self) -> AnyGallery:
        from clf_serve.stores import open_gallery

        return open_gallery(self._output, self._identity)

    def _writer(self) -> AnyGallery:
        """Opened for each commit and closed after it, so that others may write in between."""
        from clf_serve.stores import open_gallery

        return open_gallery(self._output, self._identity, write=True)

    def _round(
        self, reader: AnyGallery, resting: Resting, stop: Stop, wishes: Wishes | None = None
    ) -> tuple[IndexReport, str | None]:
        """The report, and what there is to say of the index."""
        from clf_serve.sync.syncing import Sync

        with bar("comparing") as shown:
            report = Sync(
                reader,
                self._writer,
                self._engine,
                self._source,
                self._settings,
                begin=shown.begin_stage,
                advance=shown.advance,
                rests=resting,
                stopped=stop,
            ).run()
            if not (report.changed or wishes):
                return report, None
            with self._writer() as gallery:
                _save(gallery, wishes or (None, None, None), shown)
                return report, gallery.cache_note

    def _tell(self, report: IndexReport | None, error: str | None, reader: AnyGallery) -> None:
        now = time.strftime("%H:%M:%S")
        if report is None:
            self._say(f"{now} {error}; it is tried again")
        elif self._as_json:
            print_json({"time": now, **_facts(report), "total": len(reader)})
        else:
            console().print(f"{now} {report}; {len(reader)} images")
            self._explain(report)

    def _print(self, report: IndexReport, total: int, note: str | None) -> None:
        if note:
            self._say(note)
        if self._as_json:
            print_json({**_facts(report), "total": total, "gallery": str(self._output)})
            return
        console().print(f"{self._output}: {total} images ({report})")
        self._explain(report)

    def _explain(self, report: IndexReport) -> None:
        out = console()
        list_skipped(out, report.skipped)
        if report.unmatched:
            some = ", ".join(report.unmatched[:_SHOWN])
            more = ", ..." if len(report.unmatched) > _SHOWN else ""
            rows = f"{len(report.unmatched)} row{'s' if len(report.unmatched) > 1 else ''}"
            out.print(f"{rows} of {self._settings.metadata} name no image below {self._source}: {some}{more}")

    def _say(self, text: str) -> None:
        console(stderr=True).print(text)


def _save(gallery: AnyGallery, wishes: Wishes, shown: Bar) -> None:
    """Saves the index. It is built as the user wants it, unless that was chosen before."""
    shown.begin_stage("saving the search index", len(gallery))
    if all(wish in (None, chosen) for wish, chosen in zip(wishes, gallery.wishes, strict=True)):
        gallery.save_index(progress=shown.building)
    else:
        kind, memory, recall = wishes
        gallery.optimize(kind, memory=memory, recall=recall, progress=shown.building)


def _kept(report: IndexReport, source: Path) -> str:
    return (
        f"{report.kept} images below {source}, more than half of those in the gallery, are gone. They were left in the "
        "gallery, in case a disk is missing, and all else was done; --allow-removals removes them"
    )


def _facts(report: IndexReport) -> dict[str, Any]:
    return {**report.counts(), "unmatched": report.unmatched, "skipped": reasons(report.skipped)}
