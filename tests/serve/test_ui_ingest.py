"""The tab that adds images, in a real browser: what arrives, what is refused, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsers import needs_browser
from page_tabs import Tab, fill, serving, tab
from selenium.webdriver.common.by import By
from serve_helpers import Server, picture, until, write_model, write_pictures

from clf_serve.gallery import Gallery

pytestmark = needs_browser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, an empty gallery ``new``, and an empty folder ``temporary``."""
    home = tmp_path_factory.mktemp("ingest")
    (home / "temporary").mkdir()
    fill(home / "new", write_model(home / "model"), lambda _: [])
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    words = (home / "model", "--gallery", home / "new", "--writable")
    with serving(*words, temporary=home / "temporary") as server:
        yield server


@pytest.fixture(scope="module")
def driven(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile"), server.base) as driven:
        yield driven


@pytest.fixture
def browser(driven: Tab) -> Tab:
    driven.open("Add images")
    driven.one("#clf-ingest-files")
    driven.errors()
    return driven


def add(browser: Tab, paths: list[Path]) -> str:
    """What the tab says in the end."""
    browser.js("document.getElementById('clf-ingest-status').textContent = ''")
    browser.one("#clf-ingest-files").send_keys("\n".join(map(str, paths)))
    until(lambda: "in the gallery" in browser.text("#clf-ingest-status"), 60)
    return browser.text("#clf-ingest-status")


def facts(browser: Tab) -> list[str]:
    return [browser.text(f"#clf-ingest-{name}") for name in ("added", "known", "refused")]


def test_what_is_no_picture_is_not_sent_and_bad_metadata_is_said(browser: Tab, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    browser.one("#clf-ingest-files").send_keys(str(text))
    until(lambda: "no picture among these" in browser.text("#clf-ingest-metadata-error"))

    browser.one("#clf-ingest-metadata").send_keys("just a word")
    (path,) = write_pictures(tmp_path / "photos", 1)
    browser.one("#clf-ingest-files").send_keys(str(path))
    until(lambda: "write it as name = value" in browser.text("#clf-ingest-metadata-error"))
    assert not browser.one("#clf-ingest-work").is_displayed()
    assert browser.errors() == []


def test_while_another_process_writes_files_wait_and_then_arrive(browser: Tab, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.png"
    picture(1).save(path)
    with Gallery(home / "new", write=True):
        browser.one("#clf-ingest-files").send_keys(str(path))
        until(lambda: any("409" in message for message in browser.errors()), 60)
        assert browser.text("#clf-ingest-status").startswith("0 of 1")
    until(lambda: "1 of 1 are in the gallery" in browser.text("#clf-ingest-status"), 60)


def test_a_form_of_another_site_adds_nothing(browser: Tab, server: Server, tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path / "photos", 1)
    form = (
        f'<form method="post" enctype="multipart/form-data" action="{server.base}/v1/galleries/new/images">'
        '<input type="file" name="image"><button>Win</button></form>'
    )
    foreign = tmp_path / "foreign.html"
    foreign.write_text(form)
    browser.driver.get(foreign.as_uri())
    browser.one("input").send_keys(str(path))
    with httpx.Client(base_url=server.base, trust_env=False, timeout=30) as client:
        before = client.get("/v1/galleries/new").json()["images"]
        browser.one("button").click()
        until(lambda: "cross_site" in browser.text("body"))
        assert client.get("/v1/galleries/new").json()["images"] == before
    browser.errors()


def test_stopping_keeps_what_arrived_and_a_phone_shows_it_all(browser: Tab, server: Server, tmp_path: Path) -> None:
    browser.open("Add images", phone=True)
    browser.one("#clf-ingest-files")
    browser.js(
        "const send = window.fetch; window.sent = 0;"
        "window.fetch = (path, options) => String(path).includes('/images?') && ++window.sent > 5"
        "  ? new Promise((_, stop) => options.signal.addEventListener('abort', () => stop(new Error('stopped'))))"
        "  : send(path, options);"
    )
    browser.one("#clf-ingest-files").send_keys("\n".join(map(str, write_pictures(tmp_path / "photos", 30, first=50))))
    until(lambda: browser.text("#clf-ingest-added") == "5", 60)
    assert not browser.overflows()
    browser.one("#clf-ingest-stop").click()
    until(lambda: "stopped; 25 were not sent" in browser.text("#clf-ingest-status"))
    with httpx.Client(base_url=server.base, trust_env=False, timeout=30) as client:
        images = client.get("/v1/galleries/new/images").json()["images"]
    assert sum(each["uri"].startswith("005") for each in images) == 5


def test_files_are_added_refused_with_reasons_and_found_at_once(
    browser: Tab, server: Server, home: Path, tmp_path: Path
) -> None:
    paths = write_pictures(tmp_path / "photos", 20, first=100)
    broken, empty = tmp_path / "broken.png", tmp_path / "empty.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    empty.write_bytes(b"")
    browser.one("#clf-ingest-under").send_keys("holiday/")
    browser.one("#clf-ingest-metadata").send_keys("label = beach\nyear = 2026\n\nfine = true")

    said = add(browser, [*paths, broken, empty])

    assert said.startswith("20 of 22 are in the gallery · 2 refused")
    assert facts(browser) == ["20", "0", "2"]
    reasons = {
        each.find_element(By.TAG_NAME, "b").text: each.find_element(By.TAG_NAME, "span").text
        for each in browser.all("#clf-ingest-reasons li")
    }
    assert set(reasons) == {"holiday/broken.png", "holiday/empty.png"}
    assert "not an image of a known format" in reasons["holiday/broken.png"]
    assert "empty" in reasons["holiday/empty.png"]
    browser.until_js("[...document.querySelectorAll('#clf-ingest-latest img')].every((image) => image.naturalWidth)")
    assert len(browser.all("#clf-ingest-latest a")) == 20
    with Gallery(home / "new") as gallery:
        items = [item for item in gallery.page(limit=100) if item.metadata]
        others = len(gallery) - len(items)
    assert {item.uri for item in items} == {f"holiday/{path.name}" for path in paths}
    assert {item.folder for item in items} == {"holiday"}
    assert all(item.metadata == {"label": "beach", "year": 2026, "fine": True} for item in items)

    until(lambda: f"{len(items) + others} images" in browser.text("#clf-about"))  # the header knows of them
    link = browser.all("#clf-ingest-latest a")[0]
    link.click()
    until(lambda: len(browser.all("#clf-result .clf-card")) > 0)
    assert "like=" in browser.js("return location.search")
    browser.go("Map")  # and the map knows of them
    browser.until_js("Number(document.getElementById('clf-map-canvas').dataset.points) >= 20")

    browser.go("Add images")
    assert add(browser, paths[:5]).startswith("5 of 5")  # the same bytes once more
    assert facts(browser) == ["0", "5", "0"]
    assert all("422" in message for message in browser.errors())


def test_an_open_page_does_not_keep_the_server_from_ending_and_nothing_is_left(
    browser: Tab, server: Server, home: Path
) -> None:
    server.process.terminate()
    assert server.process.wait(25) == 0
    assert list((home / "temporary").iterdir()) == []
