"""How many replicas there are and where, and what cannot be had with them. Imports no Ray."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from clf.errors import ServeError
from clf_serve.place import AnyPlace, Place

if TYPE_CHECKING:
    from clf_serve.server import Options

Ingress: TypeAlias = Literal["haproxy", "python"]
_PER_THREAD = 2  # requests: one being computed or decoded on each core, and one behind it


@dataclass(frozen=True)
class Scale:
    """What the options under "Replicas" say."""

    least: int = 1
    most: int = 1
    target: float | None = None
    """Requests inside a replica at which another is started; None lets :meth:`target_of` decide."""
    gpus: float = 0.0
    """Of each replica; a fraction shares one."""
    address: str | None = None
    """Of a Ray cluster that runs; None starts one for this command."""
    ingress: Ingress = "haproxy"

    @classmethod
    def of(
        cls,
        replicas: int | None = None,
        least: int | None = None,
        most: int | None = None,
        *,
        target: float | None = None,
        gpus: float | None = None,
        address: str | None = None,
        ingress: Ingress | None = None,
    ) -> Scale:
        """From what was typed; ``RAY_ADDRESS`` stands for a missing address, as everywhere in Ray.

        Raises:
            ServeError: they contradict each other.
        """
        if replicas is not None and (least is not None or most is not None):
            raise ServeError("--replicas is a fixed number; give it, or --min-replicas and --max-replicas")
        if least is not None and most is None:
            raise ServeError("--min-replicas needs --max-replicas, up to which more are started under load")
        if target is not None and most is None:
            raise ServeError("--target-requests says when to start another replica; it needs --max-replicas")
        least = replicas or least or 1
        most = replicas or most or 1
        if least > most:
            raise ServeError(f"--min-replicas {least} is more than --max-replicas {most}")
        if target is not None and not math.isfinite(target):
            raise ServeError(f"--target-requests {target:g} is no number of requests; give one such as 4")
        if gpus is not None and not (math.isfinite(gpus) and (gpus <= 1 or gpus == int(gpus))):
            raise ServeError(f"--replica-gpus {gpus:g} is no share of GPUs; give a fraction up to 1, or a whole number")
        address = address or os.environ.get("RAY_ADDRESS") or None
        if address and address.startswith("ray://"):
            text = (
                "is that of a Ray client; run this command on a machine of the cluster and give its address HOST:6379"
            )
            raise ServeError(f"--address {address} {text}, or auto")
        address = None if address == "local" else address
        if address and ingress:
            text = "start it with RAY_SERVE_ENABLE_HA_PROXY=1 in its environment for HAProxy, and leave --ingress out"
            raise ServeError(f"--ingress is the cluster's choice where one is joined: {text}")
        return cls(least, most, target, gpus or 0.0, address, ingress or "haproxy")

    @property
    def scales(self) -> bool:
        return self.most > self.least

    def target_of(self, threads: int) -> float:
        """Requests inside one replica from which on the next one is wanted.

        A replica on a CPU is busy with as many as it has threads, which a batch does not change; what comes on top
        waits. On a GPU a batch of 32 takes little longer than one image, so twice that may be inside.
        """
        return self.target or (64.0 if self.gpus else float(_PER_THREAD * threads))


def check_options(options: Options, galleries: Sequence[AnyPlace], scale: Scale) -> None:
    """What one server can do and replicas cannot.

    Raises:
        ServeError: with the option, the reason, and what to do instead.
    """
    if options.tls_cert is not None or options.tls_key is not None or options.tls_key_password_env is not None:
        text = "Ray's ingress speaks plain HTTP; put a proxy that speaks TLS before it"
        raise ServeError(f"--tls-cert and --tls-key cannot be used with --engine ray: {text}")
    if options.log_clients:
        text = "the ingress in front of the replicas does not say who its clients are"
        raise ServeError(f"--log-clients cannot be used with --engine ray: {text}")
    if options.provider == "cuda" and not scale.gpus:
        text = "Ray hides GPUs from replicas that ask for none; give 1, or a fraction such as 0.5 for two on one GPU"
        raise ServeError(f"--provider cuda with --engine ray needs --replica-gpus: {text}")
    if options.ui and scale.most > 1:
        text = "the page keeps what a visitor is doing in one process, and his next request may reach another"
        raise ServeError(f"--ui cannot be used with more than one replica: {text}; use --replicas 1, or leave --ui out")
    folders = [place for place in map(Place.of, galleries) if place.folder is not None]
    if options.writable and folders and (scale.most > 1 or scale.address):
        text = "one process at a time writes a gallery in a folder"
        raise ServeError(
            f"--writable cannot be used with several replicas of {folders[0]}: {text}; use one replica, "
            "or keep the gallery in a store (clf index -o postgresql://...)"
        )
