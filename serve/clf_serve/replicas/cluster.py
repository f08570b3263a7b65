"""Ray, and Ray Serve on it: a cluster of one's own on this machine's loopback, or one that runs already."""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from clf.errors import ServeError, missing_extra
from clf_serve import ray_start
from clf_serve.replicas.board import Board
from clf_serve.replicas.ingress import check_haproxy, haproxy_environment
from clf_serve.replicas.replica import Calls, Front, Plan
from clf_serve.replicas.scale import Scale
from clf_serve.runtime import usable_cores

NAME = "clf"
"""Of the application in Ray Serve, and of Ray's namespace for the board."""
BOARD = "clf-board"
_WHAT = "clf serve --engine ray"
_OLDEST = (2, 60)
_STORE = 80 * 2**20  # bytes of shared memory; images do not travel through Ray
_KEEP_ALIVE = 75
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
_ENDING = 30.0  # seconds


def require_ray() -> None:
    """Raises MissingExtraError or ServeError: there is no Ray, or one too old. Imports nothing of it."""
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("ray", "ray", _WHAT)
    version = metadata.version("ray")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise ServeError(f"{_WHAT} cannot use Ray {version}; pip install -U 'clf-vision[ray]'")


@contextmanager
def own_cluster(scale: Scale, threads: int, *, repeatable: bool) -> Iterator[None]:
    """Ray on this machine, which ends with the block and leaves nothing.

    All of it listens on 127.0.0.1 and asks for a secret of its own.

    Raises:
        ServeError: Ray could not be started, or lacks what was asked for.
    """
    options = {
        "namespace": NAME,
        "num_cpus": max(usable_cores(), scale.most * threads),
        "num_gpus": None if scale.gpus else 0,
        "object_store_memory": _STORE,
    }
    with ray_start.own_folder() as folder, ray_start.environment(_settings(scale, folder, repeatable=repeatable)):
        if scale.ingress == "haproxy":
            check_haproxy()
        _serve()
        with ray_start.started(ServeError, "ray.serve", folder, **options):
            yield


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """A cluster that runs and goes on running.

    Raises:
        ServeError: there is none, or another ``clf serve`` or another application is in it.
    """
    _check_reached(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _serve()
    hint = " (is RAY_AUTH_TOKEN that of the cluster?)"
    with ray_start.joined(ServeError, "ray.serve", address, hint, namespace=NAME) as ray:
        _check_unused(ray, address)
        yield


def _check_reached(address: str) -> None:
    """Raises ServeError when nothing listens there, for which Ray would wait a minute. ``auto`` is left to Ray."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        text = "give the address that ray start has printed (HOST:6379), or auto on a machine of the cluster"
        raise ServeError(f"no Ray cluster answers at {address}: {error.strerror or error}; {text}") from error


def _settings(scale: Scale, folder: Path, *, repeatable: bool) -> dict[str, str]:
    """The environment of every process of a cluster of one's own."""
    settings = ray_start.own_settings(folder) | {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",  # whoever set it for other clusters may have asked for the other ingress here
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # a hop less for each message of each request
    }
    if scale.ingress == "haproxy":
        settings |= haproxy_environment(folder, usable_cores(), repeatable=repeatable)
    return settings


def _serve() -> Any:
    """Ray Serve; as Any, for its functions are typed only in part. Raises MissingExtraError: Ray is there without."""
    try:
        return importlib.import_module("ray.serve")
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "ray.serve", "ray", _WHAT) from None


def _check_unused(ray: Any, address: str) -> None:
    serve = _serve()
    try:
        ray.get_actor(BOARD, namespace=NAME)
    except ValueError:
        pass
    else:
        raise ServeError(f"another clf serve runs in the Ray cluster {address}; end it first, or use another cluster")
    if others := sorted(set(serve.status().applications) - {NAME}):
        raise ServeError(
            f"the Ray cluster {address} serves {', '.join(others)} already, at an address of its own; "
            "use a cluster without Ray Serve"
        )
    if NAME in serve.status().applications:  # a clf serve has left it that was killed
        serve.shutdown()
    _wait_for_the_end_of_serve(ray)


def _wait_for_the_end_of_serve(ray: Any) -> None:
    """Of one that is being shut down, or the next would take it for its own. Raises ServeError when it does not end."""
    deadline = time.monotonic() + _ENDING
    while any(actor["name"] == _CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True)):
        if time.monotonic() > deadline:
            raise ServeError("Ray Serve runs in this cluster and does not end; end it there (serve shutdown)")
        time.sleep(0.2)


class Post:
    """The board, from the command; it ends with the command."""

    def __init__(self) -> None:
        self._ray: Any = importlib.import_module("ray")
        self.actor: Any = self._ray.remote(num_cpus=0)(Board).options(name=BOARD, namespace=NAME).remote()

    def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        """What a method of the board returns. Raises ServeError: the cluster is gone."""
        with explained("the Ray cluster does not answer any more"):
            return self._ray.get(getattr(self.actor, method).remote(*args, **options), timeout=60)


def deploy(plan: Plan, scale: Scale, threads: int, host: str, port: int, board: Post) -> None:
    """Starts Ray Serve with its ingress at an address, and the replicas; returns at once.

    Raises:
        ServeError: Serve does not work.
    """
    serve = _serve()
    logs = {"log_level": "ERROR", "enable_access_log": False}
    options = {"host": host, "port": port, "keep_alive_timeout_s": _KEEP_ALIVE}
    with explained("Ray Serve could not be started"):
        serve.start(proxy_location="EveryNode", http_options=options, logging_config=logs)
        deployment = serve.deployment(
            serve.ingress(_builder(plan, board.actor, alone=plan.loopback or scale.address is None))(_Replica)
        ).options(
            name="Replica",
            max_ongoing_requests=10_000,  # the server refuses by itself, sooner and in its own words
            graceful_shutdown_timeout_s=plan.limits.timeout + 5,
            graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=5,
            health_check_timeout_s=30,
            ray_actor_options=_actor(scale, threads),
            logging_config=logs,
            **_number(scale, threads),
        )
        serve.run_many(
            [serve.RunTarget(deployment.bind(), NAME, "/", logs)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def why_failed() -> str | None:
    """What Ray Serve says of an application that it has given up."""
    serve = _serve()
    with explained("the Ray cluster does not answer any more"):
        found = serve.status().applications.get(NAME)
    if found is None or found.status not in ("DEPLOY_FAILED", "UNHEALTHY"):
        return None
    return ray_start.cause(RuntimeError(found.message)).partition(": ")[2]


def withdraw() -> None:
    """Takes the application and Ray Serve out of a cluster that goes on.

    Raises:
        ServeError: the cluster is gone.
    """
    serve = _serve()
    with explained("the replicas could not be ended in order"):
        serve.delete(NAME)
        serve.shutdown()


def _number(scale: Scale, threads: int) -> dict[str, Any]:
    if not scale.scales:
        return {"num_replicas": scale.least}
    target = scale.target_of(threads)
    return {
        "autoscaling_config": {
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": target,
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 60.0,
            "look_back_period_s": 10.0,
            "metrics_interval_s": 2.0,
        }
    }


def _actor(scale: Scale, threads: int) -> dict[str, Any]:
    """What a replica takes of its machine."""
    actor: dict[str, Any] = {"num_cpus": threads, "num_gpus": scale.gpus}
    if scale.address is not None:
        actor["runtime_env"] = {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}
    return actor


class _Replica:
    """What Ray asks for health; ``app`` is put there by Ray's wrapper."""

    app: Front

    async def check_health(self) -> None:
        await self.app.check()


def _builder(plan: Plan, board: Any, *, alone: bool) -> Callable[[], Front]:
    """What makes the application within the replica, to which it is sent.

    Args:
        alone: whether all replicas are on one machine.
    """

    def build() -> Front:
        os.environ |= plan.environment
        if alone:
            _keep_to_loopback()
        _reply_in_one_piece()
        return Front(plan, calls(board), _serve().get_replica_context().replica_id.unique_id)

    return build


def calls(board: Any) -> Calls:
    """The board's methods, to be awaited."""

    async def call(method: str, *args: Any) -> Any:
        return await asyncio.wrap_future(getattr(board, method).remote(*args).future())

    return call


def _keep_to_loopback() -> None:
    """Ray Serve's port for calls between deployments, of which there is one, is open to all interfaces otherwise."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    original = getattr(replica, "add_port_to_grpc_server", None)
    if original is None:  # a Ray without that port, or with another
        return

    @functools.wraps(original)
    def add(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = add


def _reply_in_one_piece() -> None:
    """Of a replica that is killed a reply that has begun cannot be asked of another; see ``clf_serve.http.whole``."""
    from uvicorn.protocols.http import auto

    from clf_serve.http.whole import with_whole_replies

    auto.AutoHTTPProtocol = with_whole_replies(auto.AutoHTTPProtocol)  # Ray lets uvicorn choose


def explained(what: str) -> AbstractContextManager[None]:
    """Raises ServeError with the cause in a sentence, for whatever Ray raises."""
    return ray_start.explained(what, ServeError)
