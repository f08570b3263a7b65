"""Galleries made of what bulk embedding wrote: ``clf embed MODEL SOURCE -o OUT/``, then a search."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from clf import images
from clf.errors import DataError, GalleryError, ImageError
from clf.manifest import read_manifest, variant_sha256
from clf_serve.bulk import parts
from clf_serve.bulk.folders import Folder, is_url
from clf_serve.bulk.plan import PLAN, Plan
from clf_serve.bulk.sources import Images, Listed, find_source
from clf_serve.copying.sides import About, Side, in_parts
from clf_serve.copying.work import SILENT, Copied, Steps, carry_over, command
from clf_serve.cores import usable_cores
from clf_serve.gallery import Entry, Identity
from clf_serve.gallery.vectors import Vectors, is_unit
from clf_serve.place import Place
from clf_serve.stores.rows import row_from
from clf_serve.stores.vector_store import Row
from clf_serve.sync.scanning import root_of
from clf_serve.sync.thumbnails import thumbnail
from clf_serve.transfer.parquet import load_pyarrow

_ROWS = 1_000


def is_shards(named: str) -> bool:
    """Whether there is what ``clf embed`` writes in shards. Raises DataError, MissingExtraError: it cannot be told."""
    return (is_url(named) or Path(named).is_dir()) and Folder.of(named).has(PLAN)


def import_shards(named: str, place: Place, model: Path, *, thumbnails: bool = False, steps: Steps = SILENT) -> Copied:
    """Makes a gallery of vectors that were embedded in bulk, and compares it with them; ids follow their order.

    Keys of files of a local folder are those that ``clf index`` gives, which finds them known and unchanged; of others
    their addresses.

    Args:
        named: the folder or URL of the shards.
        thumbnails: read the images once more (twice in all, as the gallery is compared with them) for small pictures;
            one that cannot be read, or has changed, gets none.

    Raises:
        DataError: the shards are not all there, or damaged; thumbnails are wanted of images in tars.
        GalleryError: they are of another model, or two have the same key; else as :func:`clf_serve.copying.copy`.
    """
    folder = Folder.of(named)
    plan = Plan.of(folder.read(PLAN), f"{folder.shown}/{PLAN}")
    manifest = read_manifest(model)
    settings = plan.settings
    own = variant_sha256(manifest, settings.variant) if settings.variant in ("fp32", *manifest.variants) else ""
    if (own, manifest.dim) != (settings.model_sha256, settings.dim):
        wrong = f"{settings.model} ({settings.variant}, SHA-256 {settings.model_sha256[:12]})"
        raise GalleryError(f"{folder.shown} holds vectors of model {wrong}, not of {model}; name its own model")
    if thumbnails and plan.tars:
        raise DataError(
            f"{folder.shown} was made of tar files, whose images are not read again; leave out --thumbnails"
        )
    found = _parts(folder, plan)
    source = find_source(plan.source) if thumbnails else None
    assert source is None or isinstance(source, Images)
    side = ShardsSide(folder, plan, found, Identity.of(manifest), model, source)
    words: list[Place | Path | str] = [
        folder.shown,
        "-o",
        place,
        "--model",
        model,
        *(["--thumbnails"] if thumbnails else []),
    ]
    return carry_over(side, place, command("clf gallery import", *words), steps, suffix="importing")


def _parts(folder: Folder, plan: Plan) -> list[parts.About]:
    """All, in order. Raises DataError: one is missing or damaged."""
    names = folder.names()
    found = []
    for shard in plan.shards():
        own = parts.done(folder, plan, shard, names.__contains__)
        if not (own and own[-1].last):
            missing = parts.part_name(plan, shard.number, len(own))
            again = "run the same clf embed again, which makes what is missing"
            raise DataError(f"{folder.shown} is not whole: {missing} is missing or damaged; {again}")
        found += own
    return found


class ShardsSide(Side):
    """Args: source: to read thumbnails from; None: there are to be none."""

    def __init__(
        self,
        folder: Folder,
        plan: Plan,
        found: Sequence[parts.About],
        model: Identity,
        model_path: Path,
        source: Images | None,
    ) -> None:
        self.place = Place.of(folder.shown)
        self.images = sum(about.images for about in found)
        self._about = About(model, model_path.resolve(), self.images)
        self._folder, self._plan, self._found, self._source = folder, plan, found, source
        self._local = not plan.tars and not is_url(plan.source[0])

    @property
    def about(self) -> About:
        return self._about

    @property
    def generation(self) -> int:
        return 0

    def rows(self) -> Iterator[list[Row]]:
        with ThreadPoolExecutor(usable_cores()) as threads:
            yield from in_parts(self._rows(threads))

    def sample(self, n: int) -> list[Vectors]:
        """Of the first part that has any: what is searched for does not matter, what is found is of all."""
        for about in self._found:
            if about.images:
                _, vectors = self._read(about)
                return [vectors[i * len(vectors) // n] for i in range(min(n, len(vectors)))]
        return []

    def _rows(self, threads: ThreadPoolExecutor) -> Iterator[Row]:
        id_ = 0
        for about in self._found:
            facts, vectors = self._read(about)
            for start in range(0, len(facts), _ROWS):
                some = facts[start : start + _ROWS]
                for small, row, vector in zip(threads.map(self._small, some), some, vectors[start:], strict=False):
                    id_ += 1
                    yield row_from(id_, self._entry(row, vector, small), vector)

    def _entry(self, row: parts.Row, vector: Vectors, small: bytes) -> Entry:
        key, folder = row.uri, row.key.rpartition("/")[0]
        if self._local:
            directory, _, name = row.uri.rpartition(os.sep)
            key = _real(directory or os.sep) + name
        size = (row.width, row.height)
        return Entry(key, row.uri, vector, small, row.size, row.mtime_ns, row.sha256, *size, folder=folder)

    def _small(self, row: parts.Row) -> bytes:
        if self._source is None:
            return b""
        try:
            data = self._source.read(Listed(row.key, row.size, row.mtime_ns))
            if hashlib.sha256(data).hexdigest() != row.sha256:
                return b""
            return thumbnail(images.decode(data, name=row.uri))
        except ImageError:
            return b""

    def _read(self, about: parts.About) -> tuple[list[parts.Row], Vectors]:
        """Facts, and vectors (n, D). Raises DataError: the part is damaged."""
        name = parts.part_name(self._plan, about.shard, about.slice)
        try:
            facts, vectors = (self._parquet if name.endswith(".parquet") else self._npy)(name)
            if vectors.shape != (about.images, self._plan.settings.dim) or len(facts) != about.images:
                raise ValueError(f"{len(facts)} images, vectors of shape {vectors.shape}")
            right = is_unit(vectors)
            if not right.all():
                raise ValueError(f"the vector of {facts[int(right.argmin())].key} is not of unit length")
        except (OSError, ValueError, KeyError, TypeError) as error:
            again = "delete it, and run the same clf embed again"
            raise DataError(f"{self._folder.shown}/{name} is damaged ({error}); {again}") from error
        return facts, vectors

    def _parquet(self, name: str) -> tuple[list[parts.Row], Vectors]:
        pa, pq = load_pyarrow()
        with self._folder.open(name) as file:
            try:
                table = pq.read_table(file, columns=[*parts.COLUMNS, "vector"], page_checksum_verification=True)
            except pa.ArrowException as error:
                raise ValueError(str(error)) from error
        vectors = table.column("vector").combine_chunks().flatten().to_numpy()
        columns = [table.column(each).to_pylist() for each in parts.COLUMNS]
        rows = [parts.Row(*row) for row in zip(*columns, strict=True)]
        return rows, vectors.reshape(len(rows), self._plan.settings.dim)

    def _npy(self, name: str) -> tuple[list[parts.Row], Vectors]:
        facts: dict[str, Any] = json.loads(self._folder.read(name))
        found = np.load(io.BytesIO(self._folder.read(name.removesuffix(".json") + ".npy")), allow_pickle=False)
        rows = [parts.Row(*row) for row in zip(*(facts[each] for each in parts.COLUMNS), strict=True)]
        vectors: Vectors = np.ascontiguousarray(found, "<f4")
        return rows, vectors


@lru_cache(4096)
def _real(directory: str) -> str:
    return root_of(Path(directory))
