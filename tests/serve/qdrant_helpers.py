"""A stand-in for a Qdrant server: the requests that clf sends, answered by Qdrant's engine in process (qdrant-edge).

There is no package of the server itself to install. What is kept, found, filtered and changed on a condition is done by
the real engine; the wire between is real HTTP, written here after Qdrant's description of its REST API. Each collection
is one shard in a folder of its own, so one that is killed finds them again. A server builds its index by itself, and
this one when it is asked to: ``POST /collections/NAME/optimize``.

``python qdrant_helpers.py FOLDER [--key KEY] [--version 1.17.0] [--port 0]`` prints its port.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import qdrant_edge as edge

_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
_OPTIMIZERS = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
_DISTANCES = {"Dot": edge.Distance.Dot, "Cosine": edge.Distance.Cosine}


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words


class Shards:
    """Collections by name. Updates of one take turns, as in a shard of the server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[edge.EdgeShard, threading.Lock]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> tuple[edge.EdgeShard, threading.Lock]:
        with self._lock:
            if name not in self._open:
                if not self._config(name).exists():
                    raise RefusedError(404, f"Not found: Collection `{name}` doesn't exist!")
                self._open[name] = edge.EdgeShard.load(str(self._folder / name)), threading.Lock()
            return self._open[name]

    def create(self, name: str, config: dict[str, Any]) -> None:
        with self._lock:
            if self._config(name).exists():
                raise RefusedError(409, f"Wrong input: Collection `{name}` already exists!")
            vectors = config["vectors"]
            if "size" in vectors:
                made: Any = _vector(vectors)
            else:
                made = {each: _vector(params) for each, params in vectors.items()}
            (self._folder / name).mkdir()
            shard = edge.EdgeShard.create(str(self._folder / name), edge.EdgeConfig(vectors=made))
            self._open[name] = shard, threading.Lock()
            self._config(name).write_text(json.dumps(config))

    def delete(self, name: str) -> None:
        with self._lock:
            self._config(name).unlink(missing_ok=True)
            if name in self._open:
                self._open.pop(name)[0].close()
            (self._folder / name).rename(self._folder / f"{name}.gone-{threading.get_ident()}-{id(name)}")

    def config(self, name: str) -> dict[str, Any]:
        self.get(name)
        found: dict[str, Any] = json.loads(self._config(name).read_text())
        return found

    def _config(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _vector(params: dict[str, Any]) -> edge.EdgeVectorParams:
    return edge.EdgeVectorParams(size=params["size"], distance=_DISTANCES[params["distance"]])


def to_filter(value: dict[str, Any] | None) -> edge.Filter | None:
    if value is None:
        return None
    parts = {
        name: [to_condition(each) for each in value[name]]
        for name in ("must", "should", "must_not")
        if value.get(name) is not None
    }
    return edge.Filter(**parts)


def to_condition(value: dict[str, Any]) -> Any:
    if "has_id" in value:
        return edge.HasIdCondition(set(value["has_id"]))
    if "key" not in value:
        return to_filter(value)
    if (match := value.get("match")) is not None:
        if "any" in match:
            return edge.FieldCondition(value["key"], match=edge.MatchAny(match["any"]))
        return edge.FieldCondition(value["key"], match=edge.MatchValue(match["value"]))
    bounds = {name: bound for name, bound in value["range"].items() if bound is not None}
    return edge.FieldCondition(value["key"], range=edge.RangeFloat(**bounds))


def _payload_of(wanted: Any) -> Any:
    return wanted if isinstance(wanted, bool) or wanted is None else edge.PayloadSelector.Include(wanted)


def _record(point: Any, **more: Any) -> dict[str, Any]:
    found = {"id": str(point.id), **more}
    if point.payload is not None:
        found["payload"] = point.payload
    if point.vector is not None:
        found["vector"] = point.vector
    return found


class Api:
    """Qdrant's REST API, as far as clf uses it."""

    def __init__(self, folder: Path, version: str) -> None:
        self.shards, self.version = Shards(folder), version

    def talk(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and text."""
        status = 200
        try:
            answer = self._answer(method, path, json.loads(body) if body else None)
            if path not in ("", "/"):
                answer = {"result": answer, "status": "ok", "time": 0.0}
        except RefusedError as refusal:
            status, answer = refusal.status, {"status": {"error": refusal.words}, "time": 0.0}
        except Exception as error:
            status, answer = 500, {"status": {"error": f"{type(error).__name__}: {error}"}, "time": 0.0}
        return status, json.dumps(answer).encode()

    def _answer(self, method: str, path: str, body: Any) -> Any:
        """Raises RefusedError."""
        if path in ("", "/"):
            return {"title": "qdrant - vector search engine", "version": self.version}
        parts = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
        name = f"{method} {parts[2] or ''}" if parts else ""
        handlers: dict[str, Callable[[str, Any], Any]] = {
            "GET ": self._info,
            "PUT ": lambda name, body: self.shards.create(name, body) or True,
            "DELETE ": lambda name, body: self.shards.delete(name) or True,
            "PUT /index": self._index,
            "PUT /points": self._upsert,
            "POST /points": self._retrieve,
            "POST /points/scroll": self._scroll,
            "POST /points/query": self._query,
            "POST /points/count": self._count,
            "POST /points/payload": self._set_payload,
            "POST /points/delete": self._delete,
            "POST /optimize": lambda name, body: self.shards.get(name)[0].optimize(),
        }
        if parts is None or name not in handlers:
            raise RefusedError(404, f"the stand-in does not know {method} {path}")
        return handlers[name](parts[1], body)

    def _info(self, name: str, body: Any) -> Any:
        config = self.shards.config(name)
        params = {
            key: config[key] for key in ("vectors", "replication_factor", "write_consistency_factor") if key in config
        }
        info = self.shards.get(name)[0].info()
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "config": {
                "params": {key: value for key, value in params.items() if value is not None},
                "hnsw_config": _HNSW,
                "optimizer_config": {**_OPTIMIZERS, "flush_interval_sec": 5},
            },
            "payload_schema": {},
        }

    def _changed(self, name: str, operation: edge.UpdateOperation) -> Any:
        shard, turn = self.shards.get(name)
        with turn:
            shard.update(operation)
        return {"operation_id": 0, "status": "completed"}

    def _index(self, name: str, body: Any) -> Any:
        asked = body["field_schema"]
        if asked == "integer":
            schema: Any = edge.PayloadSchemaType.Integer
        else:
            assert asked["type"] == "keyword"
            schema = edge.KeywordIndexParams(on_disk=asked["on_disk"])
        return self._changed(name, edge.UpdateOperation.create_field_index(body["field_name"], schema))

    def _upsert(self, name: str, body: Any) -> Any:
        points = [edge.Point(each["id"], each["vector"], each.get("payload")) for each in body["points"]]
        condition = to_filter(body.get("update_filter"))
        return self._changed(name, edge.UpdateOperation.upsert_points(points, condition))

    def _set_payload(self, name: str, body: Any) -> Any:
        where = to_filter(body["filter"])
        assert where is not None
        return self._changed(name, edge.UpdateOperation.set_payload_by_filter(where, body["payload"]))

    def _delete(self, name: str, body: Any) -> Any:
        where = to_filter(body["filter"])
        assert where is not None
        return self._changed(name, edge.UpdateOperation.delete_points_by_filter(where))

    def _retrieve(self, name: str, body: Any) -> Any:
        shard, _ = self.shards.get(name)
        found = shard.retrieve(body["ids"], _payload_of(body["with_payload"]), body["with_vector"])
        return [_record(point) for point in found]

    def _scroll(self, name: str, body: Any) -> Any:
        request = edge.ScrollRequest(
            offset=body.get("offset"),
            limit=body["limit"],
            filter=to_filter(body.get("filter")),
            with_payload=_payload_of(body["with_payload"]),
            with_vector=body["with_vector"],
        )
        found, after = self.shards.get(name)[0].scroll(request)
        return {"points": [_record(point) for point in found], "next_page_offset": after and str(after)}

    def _query(self, name: str, body: Any) -> Any:
        request = edge.QueryRequest(
            limit=body["limit"],
            query=edge.Query.Nearest(_query_vector(body["query"]), using=body["using"]),
            filter=to_filter(body.get("filter")),
            params=edge.SearchParams(exact=bool((body.get("params") or {}).get("exact"))),
            with_payload=False,
            with_vector=False,
        )
        found = self.shards.get(name)[0].query(request)
        return {"points": [_record(point, version=point.version, score=point.score) for point in found]}

    def _count(self, name: str, body: Any) -> Any:
        request = edge.CountRequest(exact=body["exact"], filter=to_filter(body.get("filter")))
        return {"count": self.shards.get(name)[0].count(request)}


def _query_vector(value: Any) -> list[float]:
    found: list[float] = value["nearest"] if isinstance(value, dict) else value
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: Api
    key: str | None

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.key and self.headers.get("api-key") != self.key:
            status, text = 401, b'{"status": {"error": "Invalid API key or JWT"}, "time": 0.0}'
        else:
            status, text = self.api.talk(self.command, self.path.partition("?")[0], body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - names of http.server

    def handle(self) -> None:
        with suppress(ConnectionError):  # of a client that was killed
            super().handle()

    def log_message(self, *args: object) -> None:
        pass


class Standin:
    """The stand-in as a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._command = [sys.executable, __file__, str(folder), *options]
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [*self._command, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """With no warning."""
        self._process.kill()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def url(self, name: str, settings: str = "") -> str:
        return f"qdrant://127.0.0.1:{self.port}/{name}{settings}"


@contextmanager
def standin(folder: Path, *options: str) -> Iterator[Standin]:
    folder.mkdir(parents=True, exist_ok=True)
    server = Standin(folder, *options)
    try:
        yield server
    finally:
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key")
    parser.add_argument("--version", default="1.17.0")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    Handler.api, Handler.key = Api(given.folder, given.version), given.key
    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
