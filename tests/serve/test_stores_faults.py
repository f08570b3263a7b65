"""Stores that fail while they are used: what is closed, what is said, and what goes on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_helpers import LIMITS, wait_ready
from command_helpers import Run, one_error
from gallery_helpers import MODEL, entries, unit
from serve_helpers import served, service_of
from shelf_store import Shelf
from store_helpers import Heedful, install_shelf, make, read

from clf.errors import GalleryError
from clf_serve.copying.drafts import begin
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Identity, Where
from clf_serve.place import Place
from clf_serve.reembedding import note_of
from clf_serve.stores import ConflictError, NoGalleryError, calls, store_gallery
from clf_serve.stores.changing import LAST
from clf_serve.writing import Writer


class Unclosable(Shelf):
    """Loses its connection at the end."""

    def close(self) -> None:
        super().close()
        raise ConnectionError("the host is gone")


def test_a_store_that_cannot_be_closed_is_logged_and_holds_up_nobody(
    install: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="of ours"), make(tmp_path / "s.db", store=Unclosable):
        raise ValueError("of ours")
    assert "failed in close: ConnectionError: the host is gone" in caplog.text
    install("clf-shelf", entry_points="[clf.indexes]\nshelf = test_stores_faults:Unclosable\n")

    async def main() -> list[int]:
        writer = Writer(f"shelf://{tmp_path}/s.db")
        first = await asyncio.wait_for(writer.upsert(entries(0, 1), MODEL), 60)
        writer.release()  # which closes it
        second = await asyncio.wait_for(writer.upsert(entries(1, 1), MODEL), 60)
        await writer.close()
        return [each.id for each in (*first, *second)]

    assert asyncio.run(main()) == [1, 2]


def test_closing_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, over = threading.Event(), threading.Event()

    class Hanging(Shelf):
        def scan(self, after: int, limit: int, *, vectors: bool, thumbnails: bool) -> Any:
            begun.set()
            over.wait(60)
            return super().scan(after, limit, vectors=vectors, thumbnails=thumbnails)

    monkeypatch.setattr(calls, "_PATIENCE", 0.2)
    gallery = make(tmp_path / "s.db", store=Hanging)
    thread = threading.Thread(target=gallery.page)
    thread.start()
    assert begun.wait(60)
    gallery.close()
    assert "has a call that does not come back" in caplog.text
    over.set()
    thread.join(60)
    gallery.calls.store.close()


def test_an_error_without_words_gets_some_and_what_means_something_elsewhere_is_a_failure(tmp_path: Path) -> None:
    class Wordless(Shelf):
        said: Any = None

        def read(self, ids: Any, *, vectors: bool, thumbnails: bool) -> Any:
            raise self.said

    with make(tmp_path / "s.db", store=Wordless) as gallery:
        for error in (NoGalleryError(), ConflictError("locked"), GalleryError()):
            Wordless.said = error
            with pytest.raises(GalleryError, match=f"failed in read: {type(error).__name__}: ") as told:
                gallery.get(1)
            assert type(told.value) is GalleryError


def test_a_store_that_does_not_make_what_it_is_told_to_says_so(tmp_path: Path) -> None:
    class Refusing(Shelf):
        @classmethod
        def open(cls, url: str, *, write: bool, create: Any = None) -> Any:
            raise NoGalleryError

    with pytest.raises(GalleryError, match=r"it was to make a gallery at shelf://.*, and says that there is none"):
        make(tmp_path / "s.db", store=Refusing)


def test_a_gallery_that_cannot_be_told_where_its_model_lies_is_closed(tmp_path: Path) -> None:
    closed = []

    class ReadOnly(Shelf):
        def write(self, put: Any, delete: Any, about: Any, *, at: int) -> None:
            raise PermissionError("read only")

        def close(self) -> None:
            closed.append(self.path)
            super().close()

    with make(tmp_path / "s.db") as gallery:
        gallery.calls.store.db.execute("UPDATE about SET text = '/elsewhere' WHERE name = 'model_path'")  # type: ignore[attr-defined]
    with pytest.raises(GalleryError, match="failed in write: PermissionError: read only"):
        make(tmp_path / "s.db", store=ReadOnly)
    assert closed == [tmp_path / "s.db"]


def test_a_gallery_that_took_the_place_of_the_open_one_is_not_mixed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with make(path) as old, read(path) as reader:
        old.upsert(entries(0, 3))
        assert len(reader) == 3
        old.calls.store.db.execute("UPDATE about SET text = 'another' WHERE name = 'uuid'")  # type: ignore[attr-defined]
        for use in (lambda: len(reader), lambda: reader.ids(), lambda: old.upsert(entries(5, 1))):
            with pytest.raises(GalleryError, match=r"another gallery is at shelf://.* open it again"):
                use()
    with read(path) as again:
        assert len(again) == 3


def test_no_id_is_given_out_beyond_the_greatest(tmp_path: Path) -> None:
    with make(tmp_path / "s.db") as gallery:
        gallery.upsert(entries(0, 1), ids=[LAST])
        with pytest.raises(GalleryError, match="9223372036854775808 is no id of an image"):
            gallery.upsert(entries(1, 1))
        assert len(gallery) == 1


def test_a_store_is_asked_for_a_thousand_rows_at_most(tmp_path: Path) -> None:
    sizes = []

    class Counting(Shelf):
        def read(self, ids: Any, *, vectors: bool, thumbnails: bool) -> Any:
            sizes.append(len(ids))
            return super().read(ids, vectors=vectors, thumbnails=thumbnails)

    with make(tmp_path / "s.db", store=Counting) as gallery:
        ids = gallery.upsert(entries(0, 2300))
        assert len(gallery.items(ids)) == len(gallery.vectors(ids)) == len(gallery.thumbnails(ids)) == 2300
        assert len(gallery.search(unit(np.random.default_rng(0), 1)[0], 2200)) == 2200
        assert gallery.delete(ids) == 2300
    assert max(sizes) == 1000


def test_what_is_remembered_of_filters_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_gallery, "_KEPT_BYTES", 30_000)
    with make(tmp_path / "s.db") as gallery:
        gallery.upsert(entries(0, 1000))
        for n in range(12):
            assert len(gallery.ids(Where.parse({"@id": {"$gt": n}}))) == 1000 - n
        assert 1 <= len(gallery._kept) <= 3
        for n in range(12):
            assert len(gallery.ids(Where.parse({"@uri": f"{n}" + 4000 * "x"}))) == 0
        assert 1 <= len(gallery._kept) <= 6


def test_the_work_of_embedding_anew_does_not_note_the_password(tmp_path: Path) -> None:
    with make(tmp_path / "s.db") as old:
        old.place = Place.of("shelf://me:s3cret@host/db")
        begin(tmp_path / "work", note_of(old, MODEL))
    noted = [path.read_text() for path in (tmp_path / "work").iterdir()]
    assert json.loads(noted[0])["gallery"] == "shelf://me:***@host/db" and "s3cret" not in "".join(noted)


def test_the_url_of_a_check_is_told_without_its_password(run: Run, install: Callable[..., Path]) -> None:
    install_shelf(install)
    said = one_error(run("gallery", "check-store", "shelf", "--url", "shelf://me:s3cret@host/db"))
    assert "shelf://me:***@host/db" in said


def test_a_server_never_calls_a_store_on_its_event_loop(engine: Engine, tmp_path: Path) -> None:
    model = Identity.of(engine.manifest)
    vectors = unit(np.random.default_rng(0), 30, model.dim)
    with make(tmp_path / "s.db", model) as gallery:
        gallery.upsert([Entry(f"k{i}", f"{i}.jpg", vector) for i, vector in enumerate(vectors)])
    Heedful.closed_by = ""
    with served(service_of(engine, read(tmp_path / "s.db", model, Heedful), LIMITS)) as client:
        wait_ready(client)
        for path in ("/v1/models", "/v1/models/tiny", "/v1/galleries", "/metrics"):
            assert client.get(path).status_code == 200, path
        assert client.get("/v1/models").json()["data"][0]["gallery_images"] == 30
        assert client.post("/search", json={"id": 1, "k": 3}).status_code == 200
    assert Heedful.closed_by == "clf-aside"
