"""The search tab in a browser: pictures come in by every way there is, and their neighbours are those of the API."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import needs_browser
from selenium.webdriver.common.by import By
from serve_helpers import encoded, picture, until
from ui_helpers import HOSTILE, Site, Tab, names, neighbours, turned

from clf_serve.processes import OWNER

pytestmark = needs_browser


@pytest.fixture
def temporary(page: Site) -> Path:
    return page.temporary


@pytest.fixture(autouse=True)
def fresh(tab: Tab) -> Iterator[None]:
    """Each test starts on an empty page, and leaves no error in the console."""
    tab.severe()
    tab.reset()
    yield
    assert tab.severe() == []


def hand_over(tab: Tab, kind: str, blob: bytes, name: str = "given.png") -> None:
    """A ``drop`` or ``paste`` of a file, as the browser would report it."""
    script = """
        const [kind, text, name] = arguments;
        const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        const given = new DataTransfer();
        given.items.add(new File([bytes], name, {type: 'image/png'}));
        const options = {bubbles: true, cancelable: true};
        document.getElementById('clf-result').dispatchEvent(kind === 'drop'
            ? new DragEvent('drop', {...options, dataTransfer: given})
            : new ClipboardEvent('paste', {...options, clipboardData: given}));"""
    tab.change(lambda: tab.js(script, kind, base64.b64encode(blob).decode(), name))


def hosts_asked(tab: Tab) -> set[str]:
    """Hosts of all requests but those that the Content-Security-Policy stopped (Gradio 5 wants a script from a CDN)."""
    urls: dict[str, httpx.URL] = {}
    for entry in tab.driver.get_log("performance"):
        message: dict[str, Any] = json.loads(entry["message"])["message"]
        params = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            urls[params["requestId"]] = httpx.URL(params["request"]["url"])
        elif message["method"] == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            urls.pop(params["requestId"], None)
    return {url.host for url in urls.values() if url.scheme not in ("data", "blob", "chrome", "about")}


def test_an_upload_finds_what_the_api_finds_and_asks_nobody_else(tab: Tab, tmp_path: Path) -> None:
    tab.click("#clf-fold")  # one result for each image, as in the API
    query = tmp_path / "turned.jpg"
    query.write_bytes(turned(picture(3, 60, 40)))
    hits = neighbours(tab.base, query.read_bytes(), 24)

    tab.upload(query)

    assert tab.uris() == names(hits)
    assert tab.texts("#clf-result .clf-score b") == [f"{hit['score']:.3f}" for hit in hits]
    assert all(text.startswith("closer than ") for text in tab.texts("#clf-result .clf-closer"))
    shares = [float(text.split()[2]) for text in tab.texts("#clf-result .clf-closer")]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 80 > shares[-1]
    loaded = "return clf.visible().slice(0, 6).every(c => c.querySelector('img').naturalWidth > 0)"
    until(lambda: bool(tab.js(loaded)))
    assert hosts_asked(tab) == {"127.0.0.1"}


def test_the_status_says_how_many_and_where_the_time_went(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(5)))

    tab.upload(tmp_path / "a.png")

    until(lambda: "nearest of 43" in tab.text("#clf-status"))
    assert tab.text("#clf-status").endswith(" ms")
    words = tab.text("#clf-times")
    assert [word in words for word in ("decoding", "model", "search", "network and drawing")] == [True] * 4
    assert tab.find("#clf-status").get_attribute("aria-live") == "polite"
    assert "43 images" in tab.text("#clf-about")
    assert tab.text("#clf-index").startswith("Exact search")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted_anywhere(tab: Tab, way: str) -> None:
    blob = encoded(picture(7))
    hand_over(tab, way, blob)
    assert tab.uris()[0] == names(neighbours(tab.base, blob, 1))[0]


def test_a_drop_of_something_else_says_so(tab: Tab) -> None:
    tab.js("""
        const given = new DataTransfer();
        given.items.add(new File(['text'], 'notes.txt', {type: 'text/plain'}));
        document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: given}));""")
    assert tab.text("#clf-note") == "That is not a picture."


def test_the_camera_takes_a_picture(tab: Tab) -> None:
    tab.js("""
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [64, 48];
        const context = canvas.getContext('2d');
        setInterval(() => { context.fillStyle = 'red'; context.fillRect(0, 0, 64, 48); }, 30);
        navigator.mediaDevices.getUserMedia = async () => (window.stream = canvas.captureStream(30));""")
    tab.click("#clf-camera")
    until(lambda: tab.find("#clf-shoot").is_enabled(), 30)
    tab.change(lambda: tab.click("#clf-shoot"))
    assert tab.uris()
    assert not tab.js("return document.getElementById('clf-camera-dialog').open")
    assert tab.js("return window.stream.getTracks().every(track => track.readyState === 'ended')")


def test_a_camera_that_is_refused_says_what_to_do(tab: Tab) -> None:
    tab.js("navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }")
    tab.click("#clf-camera")
    until(lambda: "allow it in the browser" in tab.text("#clf-camera-error"))
    tab.click("#clf-camera-dialog [data-close]")


def test_a_damaged_picture_is_refused_in_words(tab: Tab, tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    tab.find("#clf-file").send_keys(str(bad))
    until(lambda: "did not work" in tab.text("#clf-result"))
    assert "not an image of a known format" in tab.text("#clf-result")
    until(lambda: tab.find("#clf-preview").get_attribute("alt") == "This picture cannot be shown")
    assert all("422" in text for text in tab.severe())


def test_what_the_browser_cannot_show_is_shown_by_the_server(tab: Tab, tmp_path: Path) -> None:
    blob = encoded(picture(9), "TIFF")
    (tmp_path / "a.tif").write_bytes(blob)
    tab.upload(tmp_path / "a.tif")
    assert tab.uris()[0] == names(neighbours(tab.base, blob, 1))[0]
    until(lambda: tab.js("return document.getElementById('clf-preview').naturalWidth") == 48)


def test_addresses_are_offered_only_where_they_are_allowed(tab: Tab) -> None:
    assert not tab.find("#clf-url").is_displayed()
    told = tab.js(
        "return fetch('page/fetch', {method: 'POST', headers: {'Content-Type': 'application/json'},"
        ' body: \'{"url": "http://127.0.0.1/a.png"}\'}).then(r => r.json())'
    )
    assert "URL" in told["error"]["message"]
    tab.severe()


def test_no_name_becomes_markup(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.from(43)"))
    assert tab.text(".clf-chip-name") == HOSTILE
    tab.change(lambda: tab.js("clf.change({queries: [{id: 41, weight: 1}], k: 96})"))
    assert any(uri.endswith(HOSTILE) for uri in tab.uris())
    tab.js("clf.details(document.querySelector('.clf-card[data-id=\"43\"]'))")
    until(lambda: tab.text("#clf-details-body h2") == HOSTILE)
    assert "<i>bird</i>" in tab.text("#clf-form") or "<i>bird</i>" in tab.text("#clf-details-body")
    assert tab.all("#clf-search i[data-x], #clf-search img[onerror], #clf-details-body i") == []
    assert tab.driver.title != "1"


def test_nothing_of_an_upload_is_left_behind(tab: Tab, temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(11)))
    tab.upload(tmp_path / "a.png")

    def left() -> list[str]:
        return [path.name for path in temporary.rglob("*") if path.is_file()]

    assert left() == [OWNER]  # which says whose the folder is
    kept = tab.js("for (let i = 0; i < 20; i++) clf.take(new File(['x' + i], 'x.png')); return clf.uploads()")
    assert kept == 16  # pictures that the window itself keeps
    until(lambda: tab.text("#clf-result h2") == "That did not work")
    assert left() == [OWNER]
    tab.severe()


def test_the_samples_start_a_search(tab: Tab) -> None:
    assert len(tab.find("#clf-result").find_elements(By.CSS_SELECTOR, ".clf-samples a")) == 12
    tab.change(lambda: tab.click(".clf-samples a"))
    assert tab.address() == "?like=1"
