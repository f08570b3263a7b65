"""What an engine runs: shards in, parts out. Opened once in each process that works."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import numpy as np

from clf.errors import DataError, ImageError, ModelError, in_one_line
from clf_serve.backends.base import Vectors
from clf_serve.bulk.encoder import Encoder, OpenEncoder
from clf_serve.bulk.folders import Folder
from clf_serve.bulk.parts import About, Row, Unused, done, write_part
from clf_serve.bulk.pipeline import Bad, Begin, Content, Decoded, End, Image, Known, Step, decoded
from clf_serve.bulk.plan import PLAN, Plan, Shard, read_listing
from clf_serve.bulk.sources import Images, Listed, RefusedError, Source, Tars
from clf_serve.bulk.tars import DamagedTarError, Sample, read_samples
from clf_serve.cores import usable_cores


@dataclass(frozen=True)
class ShardReport:
    """What became of one shard."""

    shard: int
    images: int
    """In all its parts."""
    skipped: int
    provider: str
    made: int = 0
    """Images that were embedded or skipped now; the rest was there."""
    process: tuple[str, int] = ("", 0)
    """Host and process that did it."""
    note: str = ""
    """What is worth knowing of the model as it runs there."""


@dataclass(frozen=True)
class Work:
    """All that a worker needs. Can be pickled, and sent to another machine that has clf-vision installed."""

    output: str
    """Folder or URL; every machine that works must see it."""
    plan: Plan
    source: Source
    encoder: OpenEncoder
    provider: str = ""
    """What must run the model, because what is there was made by it; empty: whatever it is asked for."""

    def open(self, threads: int | None = None) -> Worker:
        """To be called once in each process.

        Args:
            threads: for decoding, and for the model; all cores unless given.

        Raises:
            ModelError: the model cannot be opened here.
            DataError: the output or the source cannot be seen from here.
        """
        folder = Folder.of(self.output)
        if not folder.has(PLAN) or Plan.of(folder.read(PLAN), f"{folder.shown}/{PLAN}").id != self.plan.id:
            raise DataError(
                f"{folder.shown} does not hold this work on {_host()}; name a folder that all machines see, or a URL, "
                "with -o"
            )
        self.source.check()
        encoder = self.encoder(threads)
        if self.provider and encoder.provider != self.provider:
            found = encoder.provider
            encoder.close()
            raise ModelError(
                f"{folder.shown} was begun with the model on {self.provider}, and {_host()} runs it on {found}, whose "
                "vectors differ in their last bits; use the same --provider, or begin anew with --restart"
            )
        return Worker(self, folder, encoder, threads or usable_cores())


@dataclass
class _Part:
    """A part while it is made."""

    shard: int
    slice: int
    rows: list[Row] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)
    skipped: list[Unused] = field(default_factory=list)
    refused: int = 0
    """Of the skipped, how many the source refused."""
    answered: Callable[[], bytes] | None = None
    """Asks again for an image that it did not refuse."""
    loaded: list[Decoded] = field(default_factory=list)
    """The batch that is being gathered."""
    waiting: int = 0
    """Images of that batch, those that cannot be used among them."""

    def take(self, step: Bad | Image, future: Future[Decoded] | None) -> None:
        self.waiting += 1
        if isinstance(step, Bad) or future is None:
            self.skipped.append(Unused(step.key, step.reason if isinstance(step, Bad) else ""))
            return
        try:
            self.loaded.append(future.result())
        except RefusedError as error:
            self.refused += 1
            self.skipped.append(Unused(step.key, str(error)))
            return
        except ImageError as error:
            self.skipped.append(Unused(step.key, str(error)))
        self.answered = step.fetch


class Worker:
    """Does shards, one after another, in order. Of one thread."""

    def __init__(self, work: Work, folder: Folder, encoder: Encoder, threads: int) -> None:
        self._work, self._folder, self._encoder, self._threads = work, folder, encoder, threads
        self.provider = encoder.provider
        self._answered: Callable[[], bytes] | None = None  # the last of the parts' own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._encoder.close()

    def do(self, shard: Shard) -> ShardReport:
        """One shard. What is there of it is not made again. Raises as :meth:`each`."""
        return next(iter(list(self.each([shard]))))

    def each(
        self, shards: Iterable[Shard], progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[ShardReport]:
        """Does shards and reports each when all of it is written; the next one is read meanwhile.

        Args:
            progress: called with the number of images embedded or skipped since the last call.

        Raises:
            DataError: the source cannot be read, or refuses what it gave before; or the output cannot be written. What
                is whole is kept.
            ModelError: the model fails.
        """
        batch = self._work.plan.settings.batch_size
        depth = 2 * batch + self._threads
        reports: dict[int, ShardReport] = {}
        with (
            ThreadPoolExecutor(1, thread_name_prefix="clf-write") as writer,
            closing(
                decoded(lambda: self._steps(shards, reports), self._encoder.image_size, self._threads, depth)
            ) as it,
        ):
            writing: Future[ShardReport | None] | None = None
            part = _Part(0, 0)
            for step, future in it:
                if writing is not None and writing.done():
                    if (report := writing.result()) is not None:
                        yield report
                    writing = None
                if isinstance(step, Begin):
                    part = _Part(step.shard, step.slice)
                elif isinstance(step, (Bad, Image)):
                    part.take(step, future)
                    if part.waiting >= batch:
                        progress(self._embed(part))
                else:
                    if writing is not None and (report := writing.result()) is not None:
                        yield report
                    if isinstance(step, Known):
                        yield reports[step.shard]
                        writing = None
                    else:
                        progress(self._embed(part))
                        self._check_refusals(part)
                        writing = writer.submit(self._write, part, step, reports)
            if writing is not None and (report := writing.result()) is not None:
                yield report

    def _embed(self, part: _Part) -> int:
        """Embeds what waits; how many images are done with."""
        count, loaded = part.waiting, part.loaded
        part.waiting, part.loaded = 0, []
        if loaded:
            vectors = self._encoder.embed(np.stack([each.pixels for each in loaded]))
            good = np.asarray(np.isfinite(vectors).all(axis=1))
            part.vectors.append(vectors[good])
            for each, ok in zip(loaded, good, strict=True):
                if ok:
                    part.rows.append(each.row)
                else:
                    part.skipped.append(Unused(each.row.key, f"{each.row.uri} has no finite embedding"))
        return count

    def _check_refusals(self, part: _Part) -> None:
        """Raises DataError where not a few images but all are kept from us: credentials are wrong, or have expired."""
        self._answered = part.answered or self._answered
        if part.refused and not self._still_answers():
            images = len(part.rows) + len(part.skipped)
            raise DataError(
                f"{self._work.source.shown[0]} refused {part.refused} of {images} images, and now refuses all; see to "
                f"the credentials and rights. The last of them: {part.skipped[-1].reason}"
            )

    def _still_answers(self) -> bool:
        if self._answered is None:
            return False
        try:
            self._answered()
        except RefusedError:
            return False
        except ImageError:  # as it said before
            return True
        return True

    def _write(self, part: _Part, end: End, reports: dict[int, ShardReport]) -> ShardReport | None:
        """Writes a part; the report of its shard, if it is the last."""
        plan = self._work.plan
        vectors = np.concatenate([np.empty((0, plan.settings.dim), np.float32), *part.vectors])
        n, skipped = len(part.rows), len(part.skipped)
        about = About(plan.id, part.shard, part.slice, n, skipped, end.left_out, end.next, self.provider)
        write_part(self._folder, plan, about, part.rows, vectors, part.skipped)
        report = reports[part.shard]
        report = replace(
            report, images=report.images + n, skipped=report.skipped + skipped, made=report.made + n + skipped
        )
        reports[part.shard] = report
        return report if about.last else None

    def _steps(self, shards: Iterable[Shard], reports: dict[int, ShardReport]) -> Iterator[Step]:
        """What there is to do, in order; in a thread that reads ahead."""
        plan, source = self._work.plan, self._work.source
        for shard in shards:
            there = done(self._folder, plan, shard)
            reports[shard.number] = ShardReport(
                shard.number,
                sum(about.images for about in there),
                sum(about.skipped for about in there),
                self.provider,
                process=(_host(), os.getpid()),
                note=self._encoder.note,
            )
            listed = read_listing(self._folder, shard)
            if there and there[-1].last:
                yield Known(shard.number)
            elif isinstance(source, Tars):
                yield from self._tar(source, shard.number, len(there), (there[-1].next or 0) if there else 0, listed[0])
            else:
                assert isinstance(source, Images)
                source.check()
                yield Begin(shard.number, 0)
                for file in listed:
                    yield Image(file.key, source.uri(file.key), file.size, file.mtime_ns, _Reading(source, file))
                yield End(None)

    def _tar(self, source: Tars, shard: int, slice_: int, start: int, tar: Listed) -> Iterator[Step]:
        """The images of a tar from a slice on, which begins at the byte ``start``."""
        size, count, left_out = self._work.plan.settings.shard_size, 0, 0
        uri = source.uri(tar.key)
        yield Begin(shard, slice_)
        try:
            with source.open(tar) as file:
                for sample in read_samples(file, start):
                    if count == size:
                        yield End(sample.offset, left_out)
                        slice_, count, left_out = slice_ + 1, 0, 0
                        yield Begin(shard, slice_)
                    count, left_out = count + 1, left_out + sample.left_out
                    yield _image(f"{tar.key}/{sample.key}", f"{uri}/{sample.name}", sample)
        except DamagedTarError as error:
            yield Bad(tar.key, f"{uri}: {error}")
        except DataError:
            raise
        except Exception as error:  # file systems' exceptions share no base class
            reason = getattr(error, "strerror", None) or in_one_line(error) or type(error).__name__
            raise DataError(f"{uri} cannot be read on {_host()}: {reason}") from error
        yield End(None, left_out)


def _image(key: str, uri: str, sample: Sample) -> Step:
    if sample.reason:
        return Bad(key, f"{uri} {sample.reason}")
    return Image(key, uri, sample.size, sample.mtime_ns, Content(sample.data))


@dataclass(frozen=True)
class _Reading:
    """Reads an image of a folder, in the thread that decodes it."""

    source: Images
    file: Listed

    def __call__(self) -> bytes:
        return self.source.read(self.file)


def _host() -> str:
    return socket.gethostname()
