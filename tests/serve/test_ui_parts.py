"""What the page is made of, without a browser: what it reads, what it writes as HTML, and its routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve_helpers import encoded, picture, service_of, until
from ui_helpers import HOSTILE, write_gallery

from clf_serve.app import create_app
from clf_serve.engine import Engine
from clf_serve.gallery import FieldFacts, Gallery, Hit, Item
from clf_serve.page.cards import Links, cards, details, percent
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


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.99876, "99.8 %"), (0.5, "50.0 %"), (0.0, "0.0 %"), (0.999987, "99.99 %"), (0.9999, "99.99 %")],
)
def test_a_share_is_never_rounded_up(share: float, text: str) -> None:
    assert percent(share) == text


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


def test_the_index_says_what_it_was_measured_to_find() -> None:
    class Info:
        exact, kind, recall, recall_k, queries = False, "ivf", 0.98765, 10, 256

    text = index_text(Info())
    assert "finds 98.7 % of the true 10 nearest, measured on 256 held-back images" in text
    assert index_text(None).startswith("Exact")


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = write_gallery(tmp_path_factory.mktemp("ui") / "pictures", engine)
    service = service_of(engine, Gallery(folder))
    app = create_app(service, ui=False)
    add_routes(Page(app, service))
    with TestClient(app) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


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
    assert reply.status_code == 400
    assert "have 12 numbers, this one 2" in reply.json()["error"]["message"]
