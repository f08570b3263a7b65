"""Tars, folders on the web, and outputs of bulk embedding."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

from web_helpers import Silent, answering

from clf.manifest import read_manifest
from clf_serve.bulk import LocalEngine, OpenModel, Options, Settings, find_source, prepare, run
from clf_serve.bulk.running import Bulk, BulkReport


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> Path:
    mode: Any = f"w:{path.suffix[1:]}" if path.suffix in (".gz", ".bz2", ".xz") else "w"
    with tarfile.open(path, mode, format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return path


@contextmanager
def on_the_web(folder: Path, statuses: Mapping[str, int]) -> Iterator[str]:
    """The address of a folder's files and lists. Args: statuses: of paths that are refused; may change meanwhile."""

    class Files(Silent, SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if status := statuses.get(self.path):
                self.send_error(status)
            else:
                super().do_GET()

    with answering(partial(Files, directory=str(folder))) as url:
        yield url


def planned(model: Path, source: object, out: object, *, restart: bool = False, **settings: Any) -> Bulk:
    """Shards of four images, batches of two, unless settings say else."""
    manifest = read_manifest(model)
    facts = {"batch_size": 2, "shard_size": 4, "form": "npy", "provider": "cpu"} | settings
    chosen = Settings(manifest.name, manifest.sha256, manifest.dim, "fp32", manifest.preprocessing, **facts)
    names = [str(each) for each in (source if isinstance(source, list) else [source])]
    opened = OpenModel(model, manifest.sha256, "fp32", "cpu", chosen.batch_size)
    return prepare(find_source(names), str(out), chosen, opened, restart=restart)


def embedded(model: Path, source: object, out: object, **settings: Any) -> BulkReport:
    return run(planned(model, source, out, **settings), LocalEngine(Options()), "local")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
