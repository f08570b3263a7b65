"""The routes ``/v2/...`` of the Open Inference Protocol, and those of Triton's that its clients call."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clf import __version__
from clf_serve.call import Call
from clf_serve.deployment import Deployment
from clf_serve.http import kserve
from clf_serve.http.attend import Attended, attended, off_loop
from clf_serve.http.replies import JsonReply
from clf_serve.problems import Problem
from clf_serve.service import Service

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_MODEL = "/v2/models/{model:path}"
_VERSION = _MODEL + "/versions/{version}"


def add(router: APIRouter, service: Service) -> None:
    """Adds the routes. A model's name may hold slashes, so longer paths come first."""
    v2 = _V2(service)
    fixed: list[tuple[str, Endpoint, str]] = [
        ("/v2", v2.server, "GET"),
        ("/v2/health/live", v2.live, "GET"),
        ("/v2/health/ready", v2.ready, "GET"),
        ("/v2/repository/index", v2.index, "POST"),
        ("/v2/models/stats", v2.all_stats, "GET"),
    ]
    of_model: list[tuple[str, Endpoint, str]] = [
        ("/ready", v2.model_ready, "GET"),
        ("/config", v2.config, "GET"),
        ("/stats", v2.stats, "GET"),
        ("/infer", v2.infer, "POST"),
        ("", v2.model, "GET"),
    ]
    for path, endpoint, method in fixed:
        router.add_route(path, endpoint, methods=[method])
    for base in (_VERSION, _MODEL):
        for path, endpoint, method in of_model:
            router.add_route(base + path, endpoint, methods=[method])


@dataclass
class _Tally:
    """What Triton's statistics of a model say, over the calls of ``/infer``. Times are in nanoseconds."""

    images: int = 0
    calls: int = 0
    last: int = 0
    """Milliseconds since 1970."""
    counts: dict[str, int] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self.times[name] = self.times.get(name, 0) + int(seconds * 1e9)

    def succeeded(self, seconds: float, call: Call, images: int) -> None:
        stages = call.seconds
        self.images += images
        self.calls += 1
        self.last = int(time.time() * 1000)
        self.add("success", seconds)
        for name, stage in (("queue", "queue"), ("compute_input", "decode"), ("compute_infer", "inference")):
            self.add(name, stages.get(stage, 0.0))
        self.add("compute_output", 0.0)

    def json(self, name: str) -> dict[str, Any]:
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        stats = {key: {"count": self.counts.get(key, 0), "ns": self.times.get(key, 0)} for key in names}
        return {
            "name": name,
            "version": kserve.VERSION,
            "last_inference": self.last,
            "inference_count": self.images,
            "execution_count": self.calls,
            "inference_stats": stats,
            "batch_stats": [],
        }


class _V2:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._tallies: dict[str, _Tally] = {}

    async def server(self, _: Request) -> Response:
        return JsonReply({"name": "clf", "version": __version__, "extensions": _EXTENSIONS})

    async def live(self, _: Request) -> Response:
        alive = self._service.alive
        return JsonReply({"live": alive}, 200 if alive else 503)

    async def ready(self, _: Request) -> Response:
        ready = await self._service.ready() is None
        return JsonReply({"ready": ready}, 200 if ready else 503)

    async def index(self, _: Request) -> Response:
        models = self._service.models.values()
        state = [
            {
                "name": model.name,
                "version": kserve.VERSION,
                "state": "READY" if model.warm else "UNAVAILABLE" if model.failed else "LOADING",
                "reason": "",
            }
            for model in models
        ]
        return JsonReply(state)

    async def model(self, request: Request) -> Response:
        with self._using(request) as deployment:
            engine = deployment.engine
            facts = {"name": deployment.name, "versions": [kserve.VERSION], "platform": "clf"}
            return JsonReply(facts | kserve.tensors(engine.image_size, engine.dim))

    async def model_ready(self, request: Request) -> Response:
        with self._using(request) as deployment:
            ready = await deployment.why_not_ready() is None
            return JsonReply({"name": deployment.name, "ready": ready}, 200 if ready else 503)

    async def config(self, request: Request) -> Response:
        with self._using(request) as deployment:
            engine = deployment.engine
            most = self._service.limits.max_images
            return JsonReply(kserve.config(deployment.name, engine.image_size, engine.dim, most))

    async def stats(self, request: Request) -> Response:
        with self._using(request) as deployment:
            return JsonReply({"model_stats": [self._tally(deployment.name).json(deployment.name)]})

    async def all_stats(self, _: Request) -> Response:
        return JsonReply({"model_stats": [self._tally(name).json(name) for name in self._service.models]})

    async def infer(self, request: Request) -> Response:
        length = request.headers.get(kserve.LENGTH)

        async def work(job: Attended) -> Response:
            with self._using(request) as deployment:
                size, most = deployment.engine.image_size, self._service.limits.max_images
                asked = await off_loop(len(job.body), kserve.parse_infer, job.body, length, size, most)
                job.keep(asked.blobs or [])
                if asked.pixels is not None:
                    vectors = await deployment.embed_pixels(list(asked.pixels), job.call)
                else:
                    vectors = await deployment.embed(asked.blobs or [], job.call)
            timing = {"Server-Timing": job.call.header}
            return kserve.infer_reply(vectors, deployment.name, asked, timing)

        start = time.monotonic()
        with self._using(request) as deployment:  # an unknown model is told before the body is read
            tally = self._tally(deployment.name)
        try:
            reply = await attended(request, self._service, work)
        except BaseException:
            tally.add("fail", time.monotonic() - start)
            raise
        call = Call.of(request.scope)
        tally.succeeded(time.monotonic() - start, call, call.images)
        return reply

    @contextmanager
    def _using(self, request: Request) -> Iterator[Deployment]:
        version = request.path_params.get("version", kserve.VERSION)
        with self._service.using(request.path_params["model"]) as deployment:
            if version != kserve.VERSION:
                text = f"the model {deployment.name!r} has no version {version!r}; there is {kserve.VERSION!r}"
                raise Problem(404, "version_not_found", text, param="version")
            yield deployment

    def _tally(self, name: str) -> _Tally:
        return self._tallies.setdefault(name, _Tally())
