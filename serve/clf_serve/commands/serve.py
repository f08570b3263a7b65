"""``clf serve``. Heavy packages are imported inside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clf_serve.commands.options import Provider, ProviderOption, Variant, VariantOption
from clf_serve.log_format import LogFormat
from clf_serve.place import Place

if TYPE_CHECKING:
    from clf_serve.replicas.scale import Scale

_LIMITS, _ACCESS, _LOGS, _REPLICAS = "Limits", "Access", "Logs", "Replicas"


class Decoding(StrEnum):
    exact = "exact"
    fast = "fast"


class ServeEngine(StrEnum):
    local = "local"
    ray = "ray"


class Ingress(StrEnum):
    haproxy = "haproxy"
    python = "python"


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
    ui: Annotated[
        bool | None,
        typer.Option("--ui/--no-ui", help="The web page at /; by default there, with one replica.", show_default=False),
    ] = None,
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
    drain: Annotated[
        float,
        typer.Option(
            min=0,
            max=3600,
            help="Seconds after SIGTERM in which requests are still taken and /health/ready says 503.",
            rich_help_panel=_LIMITS,
        ),
    ] = 0.0,
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
    engine: Annotated[
        ServeEngine, typer.Option(help="ray: replicas under Ray Serve (extra ray).", rich_help_panel=_REPLICAS)
    ] = ServeEngine.local,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="How many servers; 1 by default.", rich_help_panel=_REPLICAS)
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option(min=1, help="Fewest servers, instead of a fixed number.", rich_help_panel=_REPLICAS)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most servers, under load.", rich_help_panel=_REPLICAS)
    ] = None,
    target_requests: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Requests inside a server at which another is started; by default twice its threads, 64 with a GPU.",
            show_default=False,
            rich_help_panel=_REPLICAS,
        ),
    ] = None,
    replica_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each server; a fraction shares.", rich_help_panel=_REPLICAS)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster to join, or auto (also RAY_ADDRESS); by default one is started on this machine.",
            show_default=False,
            rich_help_panel=_REPLICAS,
        ),
    ] = None,
    ingress: Annotated[
        Ingress | None,
        typer.Option(help="What stands before the servers: HAProxy by default.", rich_help_panel=_REPLICAS),
    ] = None,
) -> None:
    """Serve embeddings and search over HTTP, with a web page. SIGHUP reloads models and galleries."""
    from clf_serve.limits import ServeLimits
    from clf_serve.server import Options, run

    scaling = {
        "--replicas": replicas,
        "--min-replicas": min_replicas,
        "--max-replicas": max_replicas,
        "--target-requests": target_requests,
        "--replica-gpus": replica_gpus,
        "--address": address,
        "--ingress": ingress,
    }
    scale = _scale(engine, scaling)
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
        ui=(scale is None or scale.most == 1) if ui is None else ui,
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
        drain=drain,
    )
    if scale is None:
        run(models, gallery or (), options)
        return
    from clf_serve.replicas.scale import check_options

    check_options(options, gallery or (), scale)
    from clf_serve.replicas.running import run_replicas

    run_replicas(models, gallery or (), options, scale)


def _scale(engine: ServeEngine, given: dict[str, Any]) -> Scale | None:
    """None for one server in this process. Raises ServeError: options of the other engine, or a contradiction."""
    from clf.errors import ServeError

    if engine is ServeEngine.local:
        if stray := next((name for name, value in given.items() if value is not None), None):
            raise ServeError(f"{stray} is about replicas and needs --engine ray")
        return None
    from clf_serve.replicas.scale import Scale

    return Scale.of(
        given["--replicas"],
        given["--min-replicas"],
        given["--max-replicas"],
        target=given["--target-requests"],
        gpus=given["--replica-gpus"],
        address=given["--address"],
        ingress=given["--ingress"] and given["--ingress"].value,
    )
