"""Changing a gallery over HTTP: upserts in every form, metadata, deletes, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import error
from gallery_api import TOP, WRITABLE, Live, live, png, truth
from PIL import Image
from serve_helpers import DIM

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery
from clf_serve.http import gallery_bodies
from clf_serve.http.inputs import read_json

PNG = {"Content-Type": "image/png"}


@pytest.fixture
def empty(engine: Engine, tmp_path: Path) -> Iterator[Live]:
    with live(engine, tmp_path / "gallery") as server:
        yield server


@pytest.fixture(scope="module")
def shared(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """For what is refused."""
    with live(engine, tmp_path_factory.mktemp("shared") / "gallery") as server:
        server.put({"key": "one", "image": base64.b64encode(png(1)).decode(), "metadata": {"a": 1, "b": {"c": 2}}})
        yield server


def text(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def test_an_image_gets_what_clf_index_gives_it(empty: Live, engine: Engine) -> None:
    blob = png(1)
    reply = empty.client.post(f"{TOP}/images", content=blob, headers=PNG)
    assert reply.json()["images"] == [{"id": 1, "key": f"sha256:{digest(blob)}", "created": True}]
    assert "store;dur=" in reply.headers["server-timing"]

    item = empty.client.get(f"{TOP}/images/1").json()
    assert (item["sha256"], item["width"], item["height"], item["size"]) == (digest(blob), 48, 40, len(blob))
    assert item["metadata"] == {} and item["uri"] == item["key"] and item["mtime"] > 1.7e9
    thumbnail = empty.client.get(item["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail.content)).size == (48, 40)
    assert thumbnail.headers["cache-control"] == "private, max-age=31536000, immutable"
    raw = empty.client.get(f"{TOP}/images/1/vector", headers={"Accept": "application/octet-stream"})
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4"), truth(engine, blob)[0])
    assert empty.search({"image": text(blob)})["hits"][0]["id"] == 1


def test_the_same_bytes_twice_are_one_entry(empty: Live) -> None:
    first = empty.put({"image": text(png(1))}, {"image": text(png(1))})
    assert [row["created"] for row in first] == [True, False] and first[0]["id"] == first[1]["id"]
    assert empty.put({"image": text(png(1)), "metadata": {"x": 1}})[0] == {**first[0], "created": False}
    assert empty.client.get(TOP).json()["images"] == 1
    assert empty.client.get(f"{TOP}/images/{first[0]['id']}").json()["metadata"] == {"x": 1}


def test_every_form_of_upsert_does_the_same(empty: Live) -> None:
    blobs = [png(1), png(2)]
    about = [{"key": f"k{i}", "uri": f"u{i}", "metadata": {"i": i}} for i in range(2)]
    files = [("f", (f"{i}.png", blob, "image/png")) for i, blob in enumerate(blobs)]
    listed = ("images", (None, json.dumps(about)))
    as_file = ("images", ("about.json", json.dumps(about), "application/json"))
    fields = [(name, (None, each[name])) for each in about for name in ("key", "uri")]
    fields += [("metadata", (None, json.dumps(each["metadata"]))) for each in about]
    forms: list[Any] = [
        [*files, listed],
        [listed, *files],
        [files[0], listed, files[1]],
        [as_file, *files],
        [*files, *fields],
        [*fields, *files],
    ]
    whole = [{"image": text(blob), **each} for blob, each in zip(blobs, about, strict=True)]

    expected = empty.put(*whole)
    items = empty.client.get(f"{TOP}/images").json()["images"]
    for form in forms:
        reply = empty.client.post(f"{TOP}/images", files=form)
        assert reply.json()["images"] == [{**row, "created": False} for row in expected], reply.text
        assert without_time(empty) == [{**item, "mtime": 0} for item in items]
    for each, blob in zip(about, blobs, strict=True):
        asked = {"key": each["key"], "uri": each["uri"], "metadata": json.dumps(each["metadata"])}
        assert empty.client.post(f"{TOP}/images", content=blob, headers=PNG, params=asked).status_code == 200
    assert without_time(empty) == [{**item, "mtime": 0} for item in items]


def without_time(server: Live) -> list[dict[str, Any]]:
    return [{**item, "mtime": 0} for item in server.client.get(f"{TOP}/images").json()["images"]]


def test_a_file_name_is_the_uri_where_none_is_given(empty: Live) -> None:
    empty.client.post(f"{TOP}/images", files=[("f", ("C:\\photos\\cat.png", png(1))), ("f", ("a/dog.png", png(2)))])
    assert [item["uri"] for item in without_time(empty)] == ["cat.png", "dog.png"]


def test_a_vector_needs_no_image(empty: Live, engine: Engine) -> None:
    vector = truth(engine, png(4))[0]
    [row] = empty.put({"key": "v", "vector": (vector.astype(float) * 7).tolist(), "metadata": {"from": "afar"}})

    item = empty.client.get(f"{TOP}/images/{row['id']}").json()
    assert (item["sha256"], item["thumbnail"], item["metadata"]) == ("", None, {"from": "afar"})
    error(empty.client.get(f"{TOP}/images/{row['id']}/thumbnail"), 404, "unknown_id")
    [hit] = empty.search({"image": text(png(4))})["hits"]
    assert hit["score"] == pytest.approx(1, abs=1e-6)


def test_metadata_is_merged(empty: Live) -> None:
    [row] = empty.put({"image": text(png(1)), "metadata": {"a": 1, "b": {"c": 2, "d": 3}}})
    url = f"{TOP}/images/{row['id']}"
    patches: list[tuple[Any, Any]] = [
        ({"a": None, "b": {"c": 4}, "e": [1]}, {"b": {"c": 4, "d": 3}, "e": [1]}),
        ({}, {"b": {"c": 4, "d": 3}, "e": [1]}),
        (None, {}),
    ]
    for patch, expected in patches:
        reply = empty.client.patch(
            url, json={"metadata": patch}, headers={"Content-Type": "application/merge-patch+json"}
        )
        assert reply.json()["metadata"] == expected == empty.client.get(url).json()["metadata"]
    assert empty.search({"id": row["id"]})["hits"] == []


def test_deleted_images_are_gone(empty: Live) -> None:
    rows = empty.put(*({"image": text(png(i)), "metadata": {"odd": i % 2}} for i in range(8)))
    ids = [row["id"] for row in rows]

    assert empty.client.delete(f"{TOP}/images/{ids[0]}").json() == {"deleted": 1}
    error(empty.client.delete(f"{TOP}/images/{ids[0]}"), 404, "unknown_id")
    error(empty.client.get(f"{TOP}/images/{ids[0]}"), 404, "unknown_id")
    assert empty.client.post(f"{TOP}/delete", json={"ids": [ids[1], ids[1], 10**6]}).json() == {"deleted": 1}
    order = {"where": {"odd": 1}, "confirm": 4}
    wrong = error(empty.client.post(f"{TOP}/delete", json=order), 409, "count_differs")
    assert wrong["message"].startswith("3 images match")
    error(empty.client.post(f"{TOP}/delete", json={"where": {"odd": 1}}), 400, "not_confirmed")
    assert empty.client.get(TOP).json()["images"] == 6
    assert empty.client.post(f"{TOP}/delete", json={**order, "confirm": 3}).json() == {"deleted": 3}
    assert [hit["id"] for hit in empty.search({"id": ids[2], "k": 9})["hits"]].count(ids[0]) == 0
    assert {item["id"] for item in without_time(empty)} == {ids[2], ids[4], ids[6]}
    assert empty.client.post(f"{TOP}/delete", json={"where": {}, "confirm": 3}).json() == {"deleted": 3}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "no_images", "images"),
        ({"images": []}, 400, "no_images", "images"),
        ({"images": [{"vector": [1.0] * DIM}] * 21}, 413, "too_many_images", "images"),
        ({"images": [7]}, 400, "invalid_input", "images[0]"),
        ({"images": [{"key": "a"}]}, 400, "invalid_input", "images[0]"),
        ({"images": [{"vector": [1.0]}]}, 400, "invalid_vector", "images[0].vector"),
        ({"images": [{"vector": [0.0] * DIM}]}, 400, "invalid_vector", "images[0].vector"),
        ({"images": [{"image": "https://example.org/a.jpg"}]}, 400, "url_input", "images[0].image"),
        ({"images": [{"image": "a cat"}]}, 400, "invalid_base64", "images[0].image"),
        ({"images": [{"image": text(b"x" * 40)}]}, 422, "invalid_image", "images[0]"),
        ({"images": [{"vector": [1.0] * DIM, "key": ""}]}, 400, "invalid_key", "images[0].key"),
        ({"images": [{"vector": [1.0] * DIM, "key": "a\nb"}]}, 400, "invalid_key", "images[0].key"),
        ({"images": [{"vector": [1.0] * DIM, "uri": "u" * 1025}]}, 400, "invalid_uri", "images[0].uri"),
        ({"images": [{"vector": [1.0] * DIM, "metadata": [1]}]}, 400, "invalid_metadata", "images[0].metadata"),
        ({"images": [{"vector": [1.0] * DIM, "metdata": {}}]}, 400, "unknown_field", "images[0].metdata"),
        ({"images": [{"vector": [1.0] * DIM, "key": "a"}] * 2}, 400, "duplicate_key", "images[1].key"),
        ({"images": [{"vector": [1.0] * DIM, "metadata": {"a": "\0"}}]}, 400, "invalid_metadata", "images[0].metadata"),
        ({"images": [{"vector": [1.0] * DIM, "metadata": {"a": "x" * 2**18}}]}, 400, "invalid_metadata", None),
        ({"image": text(png(1))}, 400, "unknown_field", "image"),
    ],
)
def test_a_bad_upsert_changes_nothing(
    shared: Live, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    before = shared.client.get(TOP).json()["generation"]
    found = error(shared.client.post(f"{TOP}/images", json=body), status, code)
    assert param is None or found["param"] == param
    assert shared.client.get(TOP).json()["generation"] == before


def test_one_bad_image_of_many_keeps_all_out(shared: Live) -> None:
    images: list[dict[str, Any]] = [
        {"vector": [1.0] * DIM, "key": "v"},
        {"image": text(png(5)), "key": "good"},
        {"image": text(png(6)[:60]), "key": "bad"},
    ]
    found = error(shared.client.post(f"{TOP}/images", json={"images": images}), 422, "invalid_image")
    assert found["param"] == "images[2]"
    assert shared.client.get(TOP).json()["images"] == 1


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "no_metadata"),
        ({"metadata": 1}, 400, "invalid_metadata"),
        ({"metadata": deep(100)}, 400, "invalid_metadata"),
        ({"key": "b"}, 400, "unknown_field"),
        ({"metadata": {"x": "y" * 2**18}}, 400, "invalid_metadata"),
    ],
)
def test_a_bad_patch_is_refused(shared: Live, body: dict[str, Any], status: int, code: str) -> None:
    error(shared.client.patch(f"{TOP}/images/1", json=body), status, code)
    assert shared.client.get(f"{TOP}/images/1").json()["metadata"] == {"a": 1, "b": {"c": 2}}


def test_metadata_does_not_grow_without_bound(empty: Live) -> None:
    empty.put({"image": text(png(1))})
    codes = [
        empty.client.patch(f"{TOP}/images/1", json={"metadata": {str(i): "x" * 120_000}}).status_code for i in range(3)
    ]
    assert codes == [200, 200, 400]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "one_selection"),
        ({"ids": [1], "where": {}}, 400, "one_selection"),
        ({"ids": 1}, 400, "invalid_id"),
        ({"ids": [1.5]}, 400, "invalid_id"),
        ({"ids": [-(2**63) - 1]}, 400, "invalid_id"),
        ({"ids": [2**63]}, 400, "invalid_id"),
        ({"ids": [0] * 10_001}, 413, "too_many_ids"),
        ({"where": {"$x": 1}, "confirm": 1}, 400, "invalid_filter"),
        ({"where": {}, "confirm": True}, 400, "not_confirmed"),
        ({"filter": {}, "confirm": 1}, 400, "unknown_field"),
    ],
)
def test_a_bad_order_to_delete_is_refused(shared: Live, body: dict[str, Any], status: int, code: str) -> None:
    error(shared.client.post(f"{TOP}/delete", json=body), status, code)
    assert shared.client.get(TOP).json()["images"] == 1


def test_forms_and_types_that_do_not_fit_are_refused(shared: Live) -> None:
    post = shared.client.post
    image = ("f", ("a.png", png(2)))
    error(post(f"{TOP}/images", files=[("key", (None, "a"))]), 400, "no_images")
    error(post(f"{TOP}/images", files=[image, image, ("key", (None, "a"))]), 400, "invalid_form")
    error(post(f"{TOP}/images", files=[image, ("images", (None, "[]"))]), 400, "invalid_form")
    error(post(f"{TOP}/images", files=[image, ("metadata", (None, "{"))]), 400, "invalid_json")
    error(post(f"{TOP}/images", files=[image, ("images", (None, '{"image": "x"}'))]), 400, "unknown_field")
    error(
        post(f"{TOP}/images", content=png(2), headers={"Content-Type": "text/plain"}), 415, "unsupported_content_type"
    )
    error(post(f"{TOP}/images", content=png(2), headers=PNG, params={"metadata": "x"}), 400, "invalid_json")
    error(post(f"{TOP}/images", content=bytes(600_001), headers=PNG), 413, "too_large")
    error(post(f"{TOP}/delete", content=b"{}", headers=PNG), 415, "unsupported_content_type")
    url = f"{TOP}/images/1"
    error(shared.client.patch(url, content=b"{}", headers=PNG), 415, "unsupported_content_type")
    error(shared.client.patch(f"{TOP}/images/99", json={"metadata": {}}), 404, "unknown_id")
    refused = shared.client.put(f"{TOP}/images")
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD", "POST"})


def test_nothing_of_a_form_is_left_out_in_silence(shared: Live) -> None:
    image = ("f", ("a.png", png(2)))
    misspelt = shared.client.post(f"{TOP}/images", files=[image, ("metdata", (None, "{}"))])
    assert error(misspelt, 400, "unknown_field")["param"] == "metdata"
    misspelt = shared.client.post(f"{TOP}/images?metdata=1", content=png(2), headers=PNG)
    assert error(misspelt, 400, "unknown_field")["param"] == "metdata"
    other = ("g", ("b.json", b'{"some": "file that is no image"}', "application/json"))
    found = error(shared.client.post(f"{TOP}/images", files=[image, other]), 422, "invalid_image")
    assert found["param"] == "images[1]"
    assert shared.client.get(TOP).json()["images"] == 1


@pytest.mark.parametrize("name", ["images", "metadata"])
def test_json_in_a_form_is_not_read_when_it_is_too_large(shared: Live, name: str) -> None:
    """All fields count together: reading millions of tiny objects takes gigabytes."""
    half = "[" + "{}," * (2**17 // 2) + "{}]"
    files = [("f", ("a.png", png(2))), *[(name, (None, half))] * 2]
    error(shared.client.post(f"{TOP}/images", files=files), 413, "too_many_values")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PATCH", "/images/1", {"metadata": {"x": "y" * 2**18}}), ("POST", "/delete", {"ids": [1], "x": "y" * 2**18})],
)
def test_a_large_body_is_not_read_on_the_event_loop(
    shared: Live, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: dict[str, Any]
) -> None:
    threads = []

    def read(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return read_json(*args)

    monkeypatch.setattr(gallery_bodies, "read_json", read)
    assert shared.client.request(method, TOP + path, json=body).status_code == 400
    assert [name.startswith("clf-read") for name in threads] == [True]


def test_a_gallery_is_read_only_unless_it_is_said_otherwise(engine: Engine, gallery: Path) -> None:
    with live(engine, gallery, replace(WRITABLE, writable=False)) as server:
        calls: list[httpx.Response] = [
            server.client.post(f"{TOP}/images", content=png(1), headers=PNG),
            server.client.patch(f"{TOP}/images/1", json={"metadata": {}}),
            server.client.delete(f"{TOP}/images/1"),
            server.client.post(f"{TOP}/delete", json={"where": {}, "confirm": 20}),
        ]
        for reply in calls:
            error(reply, 403, "gallery_read_only")
        assert server.client.get(TOP).json()["writable"] is False
        assert len(server.search({"id": 1, "k": 50})["hits"]) == 19
    with Gallery(gallery) as opened:
        assert len(opened) == 20
