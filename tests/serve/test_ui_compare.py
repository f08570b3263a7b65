"""The compare tab: its route against rankings worked out here, and the tab in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from browsers import needs_browser
from page_tabs import Tab, fill, serving, tab
from selenium.webdriver import ActionChains
from serve_helpers import Server, encoded, picture, until, write_model

from clf_serve.compare import rbo
from clf_serve.engine import Engine
from clf_serve.gallery import Entry

N = 40


def entries(numbers: Sequence[int]) -> Callable[[Engine], Sequence[Entry]]:
    def made(engine: Engine) -> Sequence[Entry]:
        blobs = [encoded(picture(i, 64, 64)) for i in numbers]
        vectors = engine.embed(np.stack([engine.prepare(blob) for blob in blobs]))
        return [
            Entry(f"/{i}", f"{i:02}.png", vector, encoded(picture(i, 64, 64), "JPEG"), sha256=f"{i:064x}")
            for i, vector in zip(numbers, vectors, strict=True)
        ]

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and a gallery of each: 40 images, and the 30 first of them."""
    folder = tmp_path_factory.mktemp("compare")
    fine, coarse = (
        write_model(folder / "fine", name="fine"),
        write_model(folder / "coarse", name="coarse", cells=1, dim=3),
    )
    fill(folder / "forty", fine, entries(range(N)))
    fill(folder / "thirty", coarse, entries(range(30)))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    names = ("--gallery", folder / "forty", "--gallery", folder / "thirty")
    with serving(folder / "fine", folder / "coarse", *names) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile"), server.base) as browser:
        yield browser


def ranking(client: httpx.Client, model: str, blob: bytes, k: int) -> list[str]:
    """By the API."""
    reply = client.post("/search", params={"model": model, "k": k}, content=blob, headers={"Content-Type": "image/png"})
    return [hit["uri"] for hit in reply.json()["hits"]]


def test_the_measures_are_those_of_the_two_rankings(client: httpx.Client) -> None:
    blob = encoded(picture(99))
    first, second = ranking(client, "fine", blob, 12), ranking(client, "coarse", blob, 12)
    shared = set(first) & set(second)
    assert 0 < len(shared) < 12

    headers = {"Content-Type": "application/octet-stream"}
    reply = client.post("/page/compare", params={"k": 12}, content=blob, headers=headers).json()

    assert reply["overlap"] == len(shared) / 12
    assert reply["rbo"] == pytest.approx(rbo(first, second).extrapolated)
    assert "asked" not in reply
    swapped = {"k": 12, "first": "thirty", "second": "forty"}
    again = client.post("/page/compare", params=swapped, content=blob, headers=headers).json()
    assert again["rbo"] == pytest.approx(reply["rbo"])


def test_what_two_galleries_share(client: httpx.Client) -> None:
    reply = client.get("/page/compare").json()
    assert [each["name"] for each in reply["galleries"]] == ["forty", "thirty"]
    assert reply["note"] == "All of the smaller gallery’s images are in the other (40 and 30)."


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("k=13", 400, "k must be one of"),
        ("id=x", 400, "must be an integer"),
        ("id=400", 404, "no image 400"),
        ("id=40", 404, "the second gallery does not have 39.png; upload its file"),
        ("id=1&second=none", 404, "no gallery 'none'"),
    ],
)
def test_refusals(client: httpx.Client, query: str, status: int, words: str) -> None:
    reply = client.post(f"/page/compare?{query}")
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]


def names(browser: Tab, column: int) -> list[str]:
    rows = f".clf-compare-columns > section:nth-of-type({column}) li .clf-what span"
    found: list[str] = browser.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", rows)
    return found


@needs_browser
def test_an_upload_side_by_side(browser: Tab, client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "query.png"
    picture(98).save(path)
    browser.open("Compare")
    browser.one("#clf-compare [data-compare]")
    assert "All of the smaller gallery" in browser.text("#clf-compare-note")
    browser.one("#clf-compare-file").send_keys(str(path))
    until(lambda: len(names(browser, 1)) == 24)

    first, second = names(browser, 1), names(browser, 2)
    assert first == ranking(client, "fine", path.read_bytes(), 24)
    assert second == ranking(client, "coarse", path.read_bytes(), 24)
    shared = set(first) & set(second)
    assert f"{len(shared)} of 24" in browser.text(".clf-compare-facts")
    assert len(browser.all(".clf-compare-lines path")) == len(browser.all("section:nth-of-type(1) > ol > .clf-shared"))
    assert len(shared) == len(browser.all(".clf-compare-lines path"))
    assert f"{rbo(first, second).extrapolated:.2f}" in browser.text(".clf-compare-facts")

    row = browser.all(".clf-compare-columns section:nth-of-type(1) .clf-shared")[0]
    rank = first.index(row.find_element("css selector", ".clf-what span").text) + 1
    place = second.index(first[rank - 1]) + 1
    assert row.find_element("css selector", ".clf-place").text.startswith(f"⇄ {place}")
    ActionChains(browser.driver).move_to_element(row).perform()
    until(lambda: len(browser.all(".clf-lit")) == 3)  # both rows and the line between them
    assert browser.one("#clf-compare-picture").is_displayed()
    assert browser.errors() == []


@needs_browser
def test_an_image_of_the_galleries_and_the_columns_exchanged(browser: Tab) -> None:
    browser.open("Compare")
    browser.one("#clf-compare [data-compare]").click()
    until(lambda: len(names(browser, 1)) == 24)
    asked = browser.one("#clf-compare-picture").get_attribute("title")
    assert asked and asked not in names(browser, 1) + names(browser, 2)

    browser.js("document.querySelector('[name=clf-compare-k][value=\"12\"]').click()")
    until(lambda: len(names(browser, 1)) == 12)
    wanted = names(browser, 2)[3]
    browser.all(".clf-compare-columns section:nth-of-type(2) li button")[3].click()
    until(lambda: browser.one("#clf-compare-picture").get_attribute("title") == wanted)
    assert browser.one("#clf-compare-first").get_attribute("value") == "thirty"
    assert browser.text(".clf-compare-columns h3") == "coarse"
    assert wanted not in names(browser, 1) + names(browser, 2)


@needs_browser
def test_an_image_that_one_gallery_lacks_is_said_and_nothing_breaks(browser: Tab) -> None:
    browser.open("Compare")
    browser.one("#clf-compare [data-compare]").click()
    until(lambda: len(names(browser, 1)) == 24)
    rows = browser.all(".clf-compare-columns section:nth-of-type(1) li")
    lacking = [row for row in rows if "∅" in row.text]
    assert lacking
    lacking[0].find_element("css selector", "button").click()
    until(lambda: "the second gallery does not have" in browser.text("#clf-compare-error"))
    assert len(names(browser, 1)) == 24
    assert all("404" in message for message in browser.errors())


@needs_browser
def test_both_columns_fit_a_phone(browser: Tab) -> None:
    browser.open("Compare", phone=True)
    browser.one("#clf-compare [data-compare]").click()
    until(lambda: len(names(browser, 2)) == 24)
    assert not browser.overflows()
    left, right = (section.rect for section in browser.all(".clf-compare-columns > section"))
    assert left["x"] + left["width"] < right["x"] and left["y"] == right["y"]
