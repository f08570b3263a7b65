"""Web pages of other sites must not change what the server holds: a browser sends their forms without asking it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from gallery_api import TOP, WRITABLE, png
from serve_helpers import service_of, until
from starlette.datastructures import Headers

from clf_serve.app import Outside, create_app
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.http.cors import from_elsewhere

HOST = "127.0.0.1:8000"
OWN = f"http://{HOST}"
FRIEND = "https://app.example.org"
FOE = "https://evil.example.org"


@pytest.mark.parametrize(
    ("headers", "elsewhere"),
    [
        ({}, False),  # a program
        ({"Sec-Fetch-Site": "same-origin", "Origin": OWN}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": FOE}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, True),  # another server of this machine
        ({"Sec-Fetch-Site": "cross-site", "Origin": FRIEND}, False),
        ({"Origin": FRIEND}, False),
        ({"Origin": OWN}, False),
        ({"Origin": OWN.upper()}, False),
        ({"Origin": "https://public.example", "X-Forwarded-Host": "inner, public.example"}, False),
        ({"Origin": FOE}, True),
        ({"Origin": FOE, "X-Forwarded-Host": ""}, True),
        ({"Origin": "http://127.0.0.1:3000"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": ""}, True),
    ],
)
def test_whose_page_sent_it(headers: dict[str, str], elsewhere: bool) -> None:
    assert from_elsewhere(Headers({"Host": HOST, **headers}), [FRIEND]) == elsewhere
    assert not from_elsewhere(Headers({"Host": HOST, **headers}), ["*"])


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("cross") / "gallery"
    Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder).close()
    service = service_of(engine, Gallery(folder), WRITABLE)
    app = create_app(service, ui=False, outside=Outside(origins=[FRIEND]))
    with TestClient(app, base_url=OWN) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def test_a_form_of_another_site_changes_nothing(client: TestClient) -> None:
    form = {"files": {"image": ("a.png", png(1), "image/png")}}
    foe = {"Origin": FOE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    friend = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"}
    own = {"Origin": OWN, "Sec-Fetch-Site": "same-origin"}

    refused = client.post(f"{TOP}/images", **form, headers=foe)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site")
    assert FOE in refused.json()["error"]["message"] and "--cors" in refused.json()["error"]["message"]
    assert client.get(f"{TOP}/images").json()["images"] == []

    for headers in ({}, own, friend):
        assert client.post(f"{TOP}/images", **form, headers=headers).status_code == 200
    (image,) = client.get(f"{TOP}/images").json()["images"]
    for method, path in (
        ("DELETE", f"/images/{image['id']}"),
        ("PATCH", f"/images/{image['id']}"),
        ("POST", "/delete"),
    ):
        reply = client.request(method, TOP + path, json={"ids": [image["id"]]}, headers=foe)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
    assert client.post("/admin/reload", headers=foe).json()["error"]["code"] == "cross_site"
    assert client.post("/admin/reload", headers=own).json()["error"]["code"] == "needs_keys"
    assert len(client.get(f"{TOP}/images", headers=foe).json()["images"]) == 1


def test_another_site_may_ask_since_it_cannot_read_the_answer(client: TestClient) -> None:
    foe = {"Origin": FOE, "Sec-Fetch-Site": "cross-site"}
    reply = client.post(f"{TOP}/search", content=png(1), headers={**foe, "Content-Type": "image/png"})
    assert reply.status_code == 200
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_the_refusals_are_counted(client: TestClient) -> None:
    client.post(f"{TOP}/delete", json={"ids": [1]}, headers={"Origin": FOE})
    assert 'reason="cross_site"' in client.get("/metrics").text
