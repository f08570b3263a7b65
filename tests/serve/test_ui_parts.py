"""What the page is made of, without a browser: what it reads, what it writes as HTML, and its routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve_helpers import encoded, picture, service_of, until
from ui_helpers import HOSTILE, write_gallery

from clf_serve.app import create_app
from clf_serve.background import percent
from clf_serve.duplicates.finding import default_threshold
from clf_serve.engine import Engine
from clf_serve.gallery import Entry, FieldFacts, Gallery, Hit, Identity, Item
from clf_serve.limits import ServeLimits
from clf_serve.page.cards import Links, cards, details
from clf_serve.page.form import filter_form
from clf_serve.page.layout import Page
from clf_serve.page.search import add_routes, index_text
from clf_serve.page.state import parse_crop, parse_search, vector_text
from clf_serve.problems import Problem

VECTOR = vector_text(np.array([0.6, 0.8], np.float32))
LINKS = Links(lambda image: f"thumbnails/{image.id}?v=1&model=m", lambda id_: f"?gallery=g&like={id_}")


def test_a_search_is_read_with_its_defaults() -> None:
    search = parse_search({"queries": [{"id": 5}, {"vector": VECTOR, "weight": -0.5}]})
    assert (search.k, search.page, search.fold, search.least, search.where, search.gallery) == (
        24,
        0,
        True,
        -1,
        None,
        None,
    )
    assert search.ids == [5]
    assert search.queries[1].vector is not None
    assert search.queries[1].vector.tobytes() == np.array([0.6, 0.8], np.float32).tobytes()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"queries": []}, "queries"),
        ({"queries": [{"id": 1}] * 33}, "queries"),
        ({"queries": [{}]}, "queries[0]"),
        ({"queries": [{"id": 1, "vector": VECTOR}]}, "queries[0]"),
        ({"queries": [{"id": 1.5}]}, "queries[0].id"),
        ({"queries": [{"id": True}]}, "queries[0].id"),
        ({"queries": [{"id": -1}]}, "queries[0].id"),
        ({"queries": [{"id": 1, "weight": 0}]}, "queries[0].weight"),
        ({"queries": [{"id": 1, "weight": float("nan")}]}, "queries[0].weight"),
        ({"queries": [{"vector": "?"}]}, "queries[0].vector"),
        ({"queries": [{"vector": VECTOR, "model": 3}]}, "queries[0].model"),
        ({"queries": [{"vector": "AAAA"}]}, "queries[0].vector"),
        ({"queries": [{"vector": vector_text(np.zeros(2, np.float32))}]}, "queries[0].vector"),
        ({"queries": [{"vector": vector_text(np.array([np.nan], np.float32))}]}, "queries[0].vector"),
        ({"k": 97}, "k"),
        ({"page": -1}, "page"),
        ({"min": 2}, "min"),
        ({"gallery": 3}, "gallery"),
        ({"where": {"year": {"$more": 1}}}, "where"),
    ],
)
def test_a_wrong_search_is_refused_by_the_name_of_its_field(change: dict[str, Any], place: str) -> None:
    with pytest.raises(Problem) as refused:
        parse_search({"queries": [{"id": 1}], **change})
    assert (refused.value.status, refused.value.param) == (400, place)


@pytest.mark.parametrize("text", ["1,2", "a,b,c,d", "0,0,0,1", "0,0,1.5,1", "0.5,0,0.6,1", "nan,0,1,1", "-0.1,0,1,1"])
def test_a_wrong_crop_is_refused(text: str) -> None:
    with pytest.raises(Problem, match="crop"):
        parse_crop(text)


def test_a_crop_is_read() -> None:
    assert parse_crop("") is None
    assert parse_crop("0,0.25,1,0.5") == (0, 0.25, 1, 0.5)


def test_cards_escape_what_comes_from_outside() -> None:
    hit = Hit(7, f"a/{HOSTILE}", 0.5, {}, "ab", folder="<b>")
    html = cards([[hit, Hit(8, "b.png", 0.4)]], {7: 0.9}, LINKS, 25)
    assert "<img src=q" not in html and "<b>&lt;b&gt;" not in html and "&lt;b&gt;" in html
    assert 'href="?gallery=g&amp;like=7"' in html and "thumbnails/7?v=1&amp;model=m" in html
    assert "25. a/x&quot;" in html and "+1 alike" in html and 'hidden data-under="7"' in html
    assert "closer than 90.0 %" in html


def test_details_show_all_metadata_as_filters_name_it() -> None:
    item = Item(
        1, "k", "<x>.png", {"camera": {"iso": 100}, "tags": ["a", 1], "n": None, "<i>": "<u>"}, mtime_ns=-(10**40)
    )
    html = details(item, "t")
    for part in (
        "<dt>camera.iso</dt><dd>100",
        "<dd>a, 1<",
        "<dd>null<",
        "<dt>&lt;i&gt;</dt><dd>&lt;u&gt;",
        "&lt;x&gt;.png",
    ):
        assert part in html
    assert "Changed" not in html


def test_the_filter_form_fits_what_the_fields_hold() -> None:
    many = tuple((f"v{i}", 1) for i in range(50))
    fields = {
        "@folder": FieldFacts("text", 4, (("a", 2), ("", 2)), 2),
        "label": FieldFacts("text", 4, (("<cat>", 3), ("dog", 1)), 2),
        "year": FieldFacts("number", 4, ((2000, 1),), 20),
        "tags": FieldFacts("list", 4, (("x", 2), ("y", 2)), 2),
        "title": FieldFacts("text", 400, many, 400),
        "none": FieldFacts("text", 0, (), 0),
    }
    html = filter_form(fields)
    assert html.index('"@folder"') < html.index('"title"') < html.index('"label"')
    assert 'value="&quot;&lt;cat&gt;&quot;">&lt;cat&gt; (3)' in html and "(top) (2)" in html
    assert 'data-kind="range"' in html and 'data-kind="member"' in html and 'data-kind="contains"' in html
    assert "none" not in html
    assert "sample" in filter_form({"label": FieldFacts("text", 4, (("a", 1), ("b", 1)), 2, sampled=True)})


def random_entries(n: int, dim: int) -> list[Entry]:
    vectors = np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [Entry(f"/{i}", f"{i}.png", vector, b"", sha256=f"{i:064x}") for i, vector in enumerate(vectors)]


@contextmanager
def page_of(engine: Engine, folder: Path, limits: ServeLimits | None = None) -> Iterator[TestClient]:
    """The page's routes around the gallery in a folder."""
    service = service_of(engine, Gallery(folder), limits)
    app = create_app(service, ui=False)
    add_routes(Page(app, service))
    with TestClient(app) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def pictures(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("ui") / "pictures", engine)


@pytest.fixture(scope="module")
def client(engine: Engine, pictures: Path) -> Iterator[TestClient]:
    with page_of(engine, pictures) as client:
        yield client


def test_the_index_says_what_it_was_measured_to_find(engine: Engine, tmp_path: Path) -> None:
    with Gallery.open_or_create(tmp_path / "many", Identity.of(engine.manifest), engine.folder) as gallery:
        gallery.upsert(random_entries(2000, engine.dim))
        exact = gallery.facts().index
        info = gallery.optimize("hnsw")
    assert not info.exact and info.recall is not None and info.queries
    with page_of(engine, tmp_path / "many") as client:
        text = client.get("/page/gallery").json()["index"]
    wanted = f"finds {percent(info.recall)} of the true 10 nearest, measured on {info.queries:,} held-back images"
    assert text.startswith("Approximate search (hnsw") and wanted in text
    assert index_text(exact).startswith("Exact search")
    assert "not been measured" in index_text(replace(info, recall=None))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_images(engine: Engine, tmp_path: Path, n: int) -> None:
    with Gallery.open_or_create(tmp_path / "few", Identity.of(engine.manifest), engine.folder) as gallery:
        gallery.upsert(random_entries(n, engine.dim))
    with page_of(engine, tmp_path / "few") as client:
        about = client.get("/page/gallery").json()
        assert about["images"] == n and ("is empty" in about["welcome"]) == (n == 0)
        vector = client.post("/page/embed", content=encoded(picture(1))).json()
        query = {"vector": vector["vector"], "model": vector["model"]}
        reply = client.post("/page/search", json={"queries": [query]}).json()
        assert (reply["shown"], reply["more"], "closer than" in reply["html"]) == (n, False, False)
        assert client.post("/page/search", json={"queries": [{"id": 1}]}).status_code == (200 if n else 404)


def test_searches_wait_in_the_queue_of_the_api(engine: Engine, pictures: Path) -> None:
    with page_of(engine, pictures, ServeLimits(queue=0)) as client:
        reply = client.post("/page/search", json={"queries": [{"id": 1}]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")


def test_near_duplicates_are_folded_from_the_gallery_s_own_threshold(client: TestClient, pictures: Path) -> None:
    with Gallery(pictures) as gallery:
        near = default_threshold(gallery)
        vectors = {id_: gallery.vector(id_) for id_ in gallery.ids().tolist()}
    assert client.get("/page/gallery").json()["near"] == near
    reply = client.post("/page/search", json={"queries": [{"id": 1}], "k": 96}).json()
    leads = 0
    for card in reply["html"].split("<li")[1:]:
        id_ = int(card.split('data-id="')[1].partition('"')[0])
        if "data-under=" in card:
            lead = int(card.split('data-under="')[1].partition('"')[0])
            assert float(vectors[id_] @ vectors[lead]) >= near - 1e-6
        else:
            leads += 1
    assert leads == reply["shown"] and reply["folded"] == 42 - leads > 0


def test_the_routes_of_the_page_are_its_own(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/page")]
    gallery = client.get("/page/gallery").json()
    assert gallery["name"] == "pictures" and gallery["images"] == 43 and "data-search" in gallery["welcome"]
    assert client.get("/page/item/1").status_code == 200
    assert client.get("/page/item/99").status_code == 404
    assert client.get(f"/page/item/{2**70}").status_code == 404
    assert client.get("/page/gallery?gallery=no").status_code == 404
    assert client.post("/page/search", content=b"[]").status_code == 400
    assert client.post("/page/embed?crop=1", content=encoded(picture(1))).status_code == 400
    assert client.post("/page/embed?crop=0,0,1,1", content=b"no").status_code == 422
    assert client.post("/page/preview", content=b"no").status_code == 422


def test_an_embedded_picture_has_the_vector_of_the_api(client: TestClient) -> None:
    blob = encoded(picture(3))
    whole = client.post("/page/embed", content=blob).json()["vector"]
    cut = client.post("/page/embed?crop=0,0,1,1", content=blob).json()["vector"]
    reply = client.post("/v1/embeddings?encoding_format=base64", content=blob, headers={"Content-Type": "image/png"})
    assert whole == cut == reply.json()["data"][0]["embedding"]


def test_pages_of_folded_results_hold_each_image_once(client: TestClient) -> None:
    seen: list[int] = []
    for page in range(10):
        body = {"queries": [{"id": 1}], "k": 7, "page": page}
        reply = client.post("/page/search", json=body).json()
        seen += [int(part.partition('"')[0]) for part in reply["html"].split('data-id="')[1:]]
        if not reply["more"]:
            break
    assert sorted(seen) == list(range(2, 44))


def test_a_vector_of_another_model_is_refused(client: TestClient) -> None:
    reply = client.post("/page/search", content=json.dumps({"queries": [{"vector": VECTOR}]}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "other_model")
    given = client.post("/page/embed", content=encoded(picture(3))).json()
    for model, status in ((given["model"], 200), ("0" * 64, 409)):
        query = {"vector": given["vector"], "model": model}
        assert client.post("/page/search", json={"queries": [query]}).status_code == status
