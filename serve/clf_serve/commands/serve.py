"""``clf serve``. Heavy packages are imported inside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clf_serve.commands.options import Provider, ProviderOption, Variant, VariantOption
from clf_serve.log_format import LogFormat
from clf_serve.place import Place

_LIMITS, _ACCESS, _LOGS = "Limits", "Access", "Logs"


class Decoding(StrEnum):
    exact = "exact"
    fast = "fast"


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Folders of clf export; the first is the default.", show_default=False),
    ],
    gallery: Annotated[
        list[Place] | None,
        typer.Option(
            "--gallery",
            "-g",
            metavar="GALLERY",
            help="Folder made by clf index, or the URL of a store; may be repeated, one for each model.",
            parser=Place.of,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="The web page at /.")] = True,
    writable: Annotated[
        bool, typer.Option("--writable", help="Callers may change the galleries.", rich_help_panel=_ACCESS)
    ] = False,
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
        writable=writable,
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
