"""``clf embed``, ``clf index``, ``clf search`` and ``clf serve``. Heavy packages are imported inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf.errors import DataError
from clf_serve.log_format import LogFormat

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from clf_serve.engine import Engine, Skipped
    from clf_serve.gallery import Gallery
    from clf_serve.gallery.store import Hit


class Provider(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    openvino = "openvino"


class Variant(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Decoding(StrEnum):
    exact = "exact"
    fast = "fast"


Model = Annotated[Path, typer.Argument(help="Folder made by clf export.", show_default=False)]
Images = Annotated[Path, typer.Argument(help="An image, or a folder of images.", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, max=4096, help="Images decoded and committed together.")]
ProviderOption = Annotated[Provider, typer.Option(help="What runs the model; auto: a GPU that works, else the CPU.")]
VariantOption = Annotated[Variant, typer.Option(help="Which of the model's graphs; see clf export --variants.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SHOWN = 10
_LIMITS, _ACCESS, _LOGS = "Limits", "Access", "Logs"


def embed(
    model: Model,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.npz, FILE.npy (+ FILE.json) or FILE.jsonl.")],
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Turn images into vectors and write them to a file."""
    from clf_serve.indexing import list_images
    from clf_serve.output import writer

    write = writer(output)
    engine = _engine(model, provider, variant)
    paths = list_images(images)
    with _progress("embedding") as bar:
        bar.begin(len(paths))
        vectors, kept, skipped = engine.embed_files(paths, batch_size, bar.advance)
    write(vectors, kept, engine.manifest)
    if as_json:
        _print_json({"embedded": len(kept), "dim": engine.dim, "output": str(output), "skipped": _reasons(skipped)})
        return
    console = _console()
    console.print(f"{len(kept)} images, {engine.dim} numbers each → {output}")
    _list_skipped(console, skipped)


def index(
    model: Model,
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the gallery; made or updated.")],
    batch_size: BatchSize = 32,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Make a searchable gallery of images, or bring one up to date.

    Only new and changed files are embedded; files that are gone are removed. It can be stopped and run again.
    """
    from clf_serve.gallery import Gallery, Identity
    from clf_serve.indexing import index_images, list_images

    list_images(images)  # a misspelled path shows before the model is loaded
    engine = _engine(model, provider, variant)
    with Gallery.open_or_create(output, Identity.of(engine.manifest), model) as gallery:
        with _progress("indexing") as bar:
            report = index_images(gallery, engine, images, batch_size=batch_size, begin=bar.begin, progress=bar.advance)
        total = len(gallery)
        if gallery.cache_note:
            _console(stderr=True).print(gallery.cache_note)
    if as_json:
        counts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "removed")}
        _print_json({**counts, "total": total, "gallery": str(output), "skipped": _reasons(report.skipped)})
        return
    console = _console()
    console.print(f"{output}: {total} images ({report})")
    _list_skipped(console, report.skipped)


def search(
    gallery: Annotated[Path, typer.Argument(help="Folder made by clf index.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="The image to look for.", show_default=False)],
    model: Annotated[
        Path | None, typer.Option(help="Folder made by clf export; by default the one the gallery was made with.")
    ] = None,
    k: Annotated[int, typer.Option("--neighbours", "-k", min=1, max=10_000, help="Number of neighbours.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures to this file.")] = None,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    as_json: AsJson = False,
) -> None:
    """Find the images of a gallery that are most like one image."""
    from clf_serve.gallery import Gallery, Identity

    with Gallery(gallery) as opened:
        engine = _engine(model or opened.model_path, provider, variant, warm_up=False)
        opened.require(Identity.of(engine.manifest))
        hits = opened.search(engine.embed(engine.prepare(image)[None])[0], k)
        if opened.cache_note:
            _console(stderr=True).print(opened.cache_note)
        if html is not None:
            _write_page(html, image, opened, hits)
    if as_json:
        rows = [{"id": hit.id, "uri": hit.uri, "score": hit.score, "metadata": hit.metadata} for hit in hits]
        _print_json({"query": str(image), "hits": rows})
        return
    _print_table(hits)


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Folders of clf export; the first is the default.", show_default=False),
    ],
    gallery: Annotated[
        list[Path] | None,
        typer.Option("--gallery", "-g", help="Folder made by clf index; may be repeated, one for each model."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="The web page at /.")] = True,
    provider: ProviderOption = Provider.auto,
    variant: VariantOption = Variant.fp32,
    decoding: Annotated[
        Decoding, typer.Option(help="fast: large JPEGs at reduced size, which changes vectors a little.")
    ] = Decoding.exact,
    samples: Annotated[
        Path | None, typer.Option(help="Folder of photos on which the effect of fast decoding is measured.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model; all cores by default.")] = None,
    max_mib: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.", rich_help_panel=_LIMITS)] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Most images of one request.", rich_help_panel=_LIMITS)] = 256,
    queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait; more are refused with 429.", rich_help_panel=_LIMITS)
    ] = 1024,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds a request may take.", rich_help_panel=_LIMITS)
    ] = 30.0,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CLF_API_KEYS",
            help="Key that callers must send; may be repeated.",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with a key on each line; read again at SIGHUP.", rich_help_panel=_ACCESS)
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Origin of pages that may use the API, or '*'; may be repeated.", rich_help_panel=_ACCESS),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", rich_help_panel=_ACCESS)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", rich_help_panel=_ACCESS)] = None,
    tls_key_password_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key's password.", rich_help_panel=_ACCESS)
    ] = None,
    allow_urls: Annotated[
        bool,
        typer.Option(
            "--allow-urls",
            help="Fetch images named by URL, from public addresses.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of the log on standard error.", rich_help_panel=_LOGS)
    ] = LogFormat.text,
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log",
            help="A line for each request; by default where the log is JSON.",
            show_default=False,
            rich_help_panel=_LOGS,
        ),
    ] = None,
    log_clients: Annotated[
        bool, typer.Option("--log-clients", help="Name the clients' addresses in it.", rich_help_panel=_LOGS)
    ] = False,
    otlp: Annotated[
        str | None,
        typer.Option(help="OpenTelemetry collector to send traces to (extra otel).", rich_help_panel=_LOGS),
    ] = None,
) -> None:
    """Serve embeddings and search over HTTP, with a web page. SIGHUP reloads models and galleries."""
    from clf_serve.limits import ServeLimits
    from clf_serve.server import Options, run

    limits = ServeLimits(
        max_bytes=max_mib * 2**20,
        max_images=min(max_images, queue),
        queue=queue,
        timeout=timeout,
        allow_urls=allow_urls,
    )
    options = Options(
        host=host,
        port=port,
        ui=ui,
        api_keys=tuple(api_key or ()),
        api_key_file=api_key_file,
        provider=provider.value,
        threads=threads,
        variant=variant.value,
        decoding=decoding.value,
        samples=samples,
        limits=limits,
        origins=tuple(cors or ()),
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_key_password_env=tls_key_password_env,
        log_format=log_format,
        access_log=log_format is LogFormat.json if access_log is None else access_log,
        log_clients=log_clients,
        otlp=otlp,
    )
    run(models, gallery or (), options)


def _engine(folder: Path, provider: Provider, variant: Variant, *, warm_up: bool = True) -> Engine:
    from clf_serve.engine import Engine

    engine = Engine(folder, provider.value, variant=variant.value)
    if engine.note:
        _console(stderr=True).print(engine.note)
    if warm_up:
        engine.warm_up()
    return engine


class _Bar:
    """Images done, images a second and time left, on the terminal."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=None)

    def begin(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, done: int) -> None:
        self._progress.update(self._task, advance=done)


@contextmanager
def _progress(label: str) -> Iterator[_Bar]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} images/s" if speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=_console(stderr=True), transient=True) as progress:
        yield _Bar(progress, label)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


def _reasons(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in skipped]


def _list_skipped(console: Console, skipped: Sequence[Skipped]) -> None:
    if not skipped:
        return
    console.print(f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped:")
    for _, reason in skipped[:_SHOWN]:
        console.print(f"  {reason}")
    if len(skipped) > _SHOWN:
        console.print(f"  and {len(skipped) - _SHOWN} more; --json lists them all")


def _print_table(hits: Sequence[Hit]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "image", box=None, header_style="bold")
    for rank, hit in enumerate(hits, 1):
        table.add_row(str(rank), f"{hit.score:.4f}", Text(hit.uri))
    _console().print(table if hits else "the gallery is empty")


def _write_page(path: Path, image: Path, gallery: Gallery, hits: Sequence[Hit]) -> None:
    from clf import images
    from clf_serve.indexing import thumbnail
    from clf_serve.report import result_page

    pictures = []
    for hit in hits:
        stored = gallery.thumbnail(hit.id)
        pictures.append((hit, stored.data if stored else b""))
    about = f"{len(hits)} nearest of {len(gallery)} images in {gallery.folder}, by {gallery.model}"
    try:
        path.write_text(result_page(str(image), thumbnail(images.decode(image)), pictures, about), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error
