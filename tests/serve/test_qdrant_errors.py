"""What can be wrong with a Qdrant, its URL or its collection, each in a sentence; nothing of others is touched."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("qdrant_client", reason="needs qdrant-client")
pytest.importorskip("qdrant_edge", reason="needs qdrant-edge-py, Qdrant's engine")

import qdrant_edge as edge
from qdrant_helpers import standin
from qdrant_near import Near, near
from web_helpers import Silent, answering

from clf.errors import GalleryError
from clf_serve.place import Place
from clf_serve.stores import NoGalleryError
from clf_serve.stores.bench import ABOUT, rows
from clf_serve.stores.opening import open_in
from clf_serve.stores.qdrant import QdrantStore, store
from clf_serve.stores.qdrant.address import Address
from clf_serve.stores.qdrant.points import LEDGER
from clf_serve.stores.qdrant.server import Server

SECRET = "s3cret-key"
OWN = {"clf": {"size": 8, "distance": "Dot"}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> type[Near]:
    return near(tmp_path_factory.mktemp("engine"))


def refused(kind: Any, name: str = "g", create: Any = None) -> str:
    with pytest.raises(GalleryError) as told:
        kind.open(name if "://" in name else f"qdrant://localhost/{name}", write=True, create=create)
    assert type(told.value) is GalleryError
    return str(told.value)


def test_urls() -> None:
    def of(url: str) -> tuple[str, str, int, str | None]:
        address = Address.of(url)
        return address.server, address.collection, address.timeout, address.key

    assert of("qdrant://db/pets") == ("http://db:6333", "pets", 60, None)
    assert of("qdrant://db:80/a/b/my%20pets/?timeout=5") == ("http://db:80/a/b", "my pets", 5, None)
    assert of("qdrant://[::1]:1/p?https=true") == ("https://[::1]:1", "p", 60, None)
    assert of(f"qdrant://db/p?api_key={SECRET}") == ("https://db:6333", "p", 60, SECRET)
    assert of(f"qdrant://db/p?api_key={SECRET}&https=false")[0] == "http://db:6333"
    assert of(f"qdrant://127.0.0.1/p?api_key={SECRET}")[0] == "http://127.0.0.1:6333"
    assert of("qdrant://127.0.0.1/p?api_key=a+b%2Bc")[3] == "a+b+c"
    assert SECRET not in repr(Address.of(f"qdrant://db/p?api_key={SECRET}"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("qdrant://", "names no gallery in Qdrant; write qdrant://HOST:6333/COLLECTION"),
        ("qdrant://db:6333", "names no gallery in Qdrant"),
        ("qdrant://db:6333/", "names no gallery in Qdrant"),
        ("qdrant:///pets", "names no gallery in Qdrant"),
        ("qdrant://db:port/pets", "names no gallery (Port could not be cast"),
        ("qdrant://me:pw12345@db/pets", "a key as ?api_key=KEY"),
        ("qdrant://db/pe%3Cts", "has no collection of such a name"),
        ("qdrant://db/" + 256 * "p", "has no collection of such a name"),
        ("qdrant://db/..", "has no collection of such a name"),
        ("qdrant://d b/pets", "names no host (Failed to parse: Host 'd b' contains invalid"),
        ("qdrant://db/pets?api_key=pw12345%0A", "the API key, of the URL or QDRANT_API_KEY, holds letters that no key"),
        ("qdrant://db/pets?api_key=pw%C3%BC12345", "holds letters that no key has"),
        ("qdrant://db/pets?api_key=a#pw12345", "names no gallery in Qdrant"),
        ("qdrant://db/pets?apikey=1", "there is no setting 'apikey'; there are api_key, https, timeout"),
        ("qdrant://db/pets?https=maybe", "https is true or false, not 'maybe'"),
        ("qdrant://db/pets?timeout=0", "timeout is a whole number of seconds up to 3600"),
        ("qdrant://db/pets?timeout=1.5", "timeout is a whole number of seconds"),
    ],
)
def test_a_url_that_names_no_gallery(url: str, said: str) -> None:
    told = refused(QdrantStore, url)
    assert said in told and "pw12345" not in told


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", SECRET)
    assert Address.of("qdrant://db/p").key == SECRET
    assert Address.of("qdrant://db/p?api_key=other").key == "other"
    monkeypatch.setenv("QDRANT_API_KEY", f"{SECRET}\r\n")  # as of a file
    assert Address.of("qdrant://db/p").key == SECRET
    monkeypatch.setenv("QDRANT_API_KEY", f"{SECRET}\n{SECRET}")
    told = refused(QdrantStore, "qdrant://db/p")
    assert "holds letters that no key has" in told and SECRET not in told


def test_a_key_that_is_wrong_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with standin(tmp_path / "q", "--key", SECRET) as server:
        assert "wants an API key; write ?api_key=KEY into the URL, or set QDRANT_API_KEY" in refused(
            QdrantStore, server.url("g")
        )
        told = refused(QdrantStore, server.url("g", "?api_key=wrong-key"))
        assert "refuses the API key" in told and "wrong-key" not in told
        monkeypatch.setenv("QDRANT_API_KEY", SECRET)
        QdrantStore.open(server.url("g"), write=True, create=ABOUT).close()
        server.kill()
        place = Place.of(server.url("g", f"?api_key={SECRET}"))
        with pytest.raises(GalleryError) as failed:
            open_in(QdrantStore, "store 'qdrant'", place)
        assert "no Qdrant can be reached at http://127.0.0.1" in str(failed.value) and SECRET not in str(failed.value)
        server.start()


def test_an_old_server(tmp_path: Path) -> None:
    kind = near(tmp_path)
    kind.api.version = "1.15.5"
    assert "is 1.15.5; a gallery needs 1.16 or newer" in refused(kind, create=ABOUT)
    assert not list(tmp_path.iterdir())


class _Page(Silent, BaseHTTPRequestHandler):
    answer = b"<html>", 200
    headers_sent: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        text, status = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def page(text: bytes, status: int) -> Iterator[str]:
    with answering(type("Page", (_Page,), {"answer": (text, status)})) as url:
        yield url.replace("http://", "qdrant://") + "/g"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (b"<html>", 200, "is no Qdrant"),
        (b"{}", 200, "is no Qdrant"),
        (b'{"title": "x", "version": "latest"}', 200, "is no Qdrant"),
        (b"not here", 404, "is no Qdrant"),
        (b'{"status": {"error": "disk full."}}', 500, "refused a request (500): disk full"),
    ],
)
def test_something_else_answers(text: bytes, status: int, said: str) -> None:
    with page(text, status) as url:
        assert said in refused(QdrantStore, url)


def test_a_server_that_does_not_answer_is_waited_for_as_long_as_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"qdrant://127.0.0.1:{listener.getsockname()[1]}/g?timeout=1"
        assert "did not answer within 1 s; ?timeout=SECONDS allows more" in refused(QdrantStore, url)


def test_collections_of_others_are_left_as_they_are(engine: type[Near]) -> None:
    others = {
        "single": {"size": 8, "distance": "Dot"},
        "named": {"image": {"size": 8, "distance": "Dot"}},
        "two": {**OWN, "text": {"size": 4, "distance": "Dot"}},
        "cosine": {"clf": {"size": 8, "distance": "Cosine"}},
    }
    for name, vectors in others.items():
        engine.api.shards.create(name, {"vectors": vectors})
        for create in (None, ABOUT):
            assert f"the collection {name} at http://localhost:6333 was not made by clf" in refused(
                engine, name, create
            )
        assert engine.api.shards.get(name)[0].info().points_count == 0


def test_points_of_others_are_left_as_they_are(engine: type[Near]) -> None:
    engine.api.shards.create("theirs", {"vectors": OWN})
    shard = engine.api.shards.get("theirs")[0]
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(7, {"clf": [1.0] + 7 * [0.0]}, {"a": 1})]))
    assert "holds points and no gallery" in refused(engine, "theirs", ABOUT)
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(LEDGER, {}, {"clf": "else"})]))
    assert "was not made by clf, or is damaged" in refused(engine, "theirs", ABOUT)
    assert shard.info().points_count == 2


def test_an_empty_collection_of_the_right_kind_is_filled(engine: type[Near]) -> None:
    engine.api.shards.create("own", {"vectors": OWN})
    with pytest.raises(NoGalleryError):
        engine.open("qdrant://localhost/own", write=True)
    wrong = {**ABOUT, "dim": "9"}
    assert "was begun for vectors of 8 numbers, and these have 9; delete it" in refused(engine, "own", wrong)
    assert "needs the dimension of its vectors" in refused(engine, "other", {"model": "m"})
    handle = engine.open("qdrant://localhost/own", write=True, create=ABOUT)
    handle.write(rows(3), [], {}, at=0)
    assert handle.state().images == 3


def test_replicas_must_all_be_waited_for(engine: type[Near]) -> None:
    for name, waited, said in (
        ("some", 2, "has 3 replicas, and a write is told as done when 2 have it"),
        ("all", 3, ""),
    ):
        engine.api.shards.create(name, {"vectors": OWN, "replication_factor": 3, "write_consistency_factor": waited})
        if said:
            assert said in refused(engine, name, ABOUT)
        else:
            engine.open(f"qdrant://localhost/{name}", write=True, create=ABOUT)


def test_a_gallery_that_somebody_else_begins_at_the_same_moment_is_theirs(
    engine: type[Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Server.count

    def overtaken(self: Server, where: Any) -> int:
        monkeypatch.setattr(Server, "count", count)
        engine.open("qdrant://localhost/both", write=True, create={**ABOUT, "uuid": "theirs"})
        return count(self, where)

    monkeypatch.setattr(Server, "count", overtaken)
    handle = engine.open("qdrant://localhost/both", write=True, create=ABOUT)
    assert handle.state().about["uuid"] == "theirs"


def test_a_server_that_takes_no_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Page, "headers_sent", {"Retry-After": "7"})
    with page(b'{"status": {"error": "Rate limit exceeded."}}', 429) as url:
        assert "takes no more requests for now (Rate limit exceeded); try again in 7 s" in refused(QdrantStore, url)


def test_damaged_and_newer_galleries(engine: type[Near]) -> None:
    handle = engine.open("qdrant://localhost/bad", write=True, create=ABOUT)
    handle.write(rows(2), [], {}, at=0)
    server = handle._server
    everything = edge.Filter()
    shard = engine.api.shards.get("bad")[0]
    for payload, said in (
        ({"format": 2}, "has format 2, this clf reads up to 1; use the clf that wrote it"),
        ({"format": 1, "about": '{"dim": "9"}'}, "has vectors of 8 numbers, and its facts say 9"),
        ({"about": "no JSON"}, "is damaged"),
    ):
        shard.update(edge.UpdateOperation.set_payload([LEDGER], payload))
        assert said in refused(engine, "bad", ABOUT)
    shard.update(edge.UpdateOperation.set_payload([LEDGER], {"about": '{"dim": "8"}', "format": 1}))
    shard.update(edge.UpdateOperation.delete_payload_by_filter(everything, ["facts"]))
    with pytest.raises(GalleryError, match="is no image as clf wrote it"):
        handle.read([1], vectors=True, thumbnails=True)
    shard.update(edge.UpdateOperation.delete_points([LEDGER]))
    with pytest.raises(GalleryError, match="holds no gallery any more"):
        handle.state()
    assert server.collection() is not None


def test_answers_that_take_too_long_to_belong_together(engine: type[Near], monkeypatch: pytest.MonkeyPatch) -> None:
    handle = engine.open("qdrant://localhost/slow", write=True, create=ABOUT)
    monkeypatch.setattr(store, "SNAPSHOT_SECONDS", 0.0)
    with pytest.raises(GalleryError, match="takes more than 0 s for what belongs together"):
        handle.scan(0, 10, vectors=False, thumbnails=False)
