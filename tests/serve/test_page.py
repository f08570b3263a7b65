"""The page, in a real browser where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import chromium, needs_browser
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from serve_helpers import Server, picture, until

pytestmark = needs_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile", ("performance", "browser")) as driver:
        yield driver


def cards(browser: webdriver.Chrome) -> list[str]:
    return [card.get_attribute("title") or "" for card in browser.find_elements(By.CSS_SELECTOR, ".clf-card")]


def upload(browser: webdriver.Chrome, path: Path) -> None:
    selector = "#clf-query input[type=file]"
    until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, selector)), 60)
    browser.find_element(By.CSS_SELECTOR, selector).send_keys(str(path))


def hosts_asked(browser: webdriver.Chrome) -> set[str]:
    """Hosts of all requests but those that our Content-Security-Policy stopped (Gradio 5 wants a script from a CDN)."""
    urls: dict[str, httpx.URL] = {}
    for entry in browser.get_log("performance"):
        message: dict[str, Any] = json.loads(entry["message"])["message"]
        params = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            urls[params["requestId"]] = httpx.URL(params["request"]["url"])
        elif message["method"] == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            urls.pop(params["requestId"], None)
    return {url.host for url in urls.values() if url.scheme not in ("data", "blob", "chrome")}


def test_the_page_finds_what_the_api_finds_and_asks_nobody_else(
    serve: Callable[..., Server], browser: webdriver.Chrome, model: Path, gallery: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = serve(model, "--gallery", gallery, env={"TMPDIR": str(temporary)})
    exif = Image.Exif()
    exif[0x0112] = 6
    query = tmp_path / "turned.jpg"
    picture(3, 60, 40).save(query, exif=exif, quality=95)
    with httpx.Client(base_url=server.base, trust_env=False, timeout=30) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        reply = client.post("/search?k=24", content=query.read_bytes(), headers={"Content-Type": "image/jpeg"})
    hits = reply.json()["hits"]

    browser.get(server.base)
    upload(browser, query)
    until(lambda: len(cards(browser)) == 20, 60)

    assert cards(browser) == [hit["uri"] for hit in hits]
    scores = [score.text for score in browser.find_elements(By.CSS_SELECTOR, ".clf-card b")]
    assert scores == [f"{hit['score']:.3f}" for hit in hits]
    pictures = "return [...document.querySelectorAll('.clf-card img')].every(i => i.complete && i.naturalWidth > 0)"
    until(lambda: bool(browser.execute_script(pictures)))

    browser.get(f"{server.base}/?like=5")  # a link to share
    until(lambda: len(cards(browser)) == 19, 60)
    assert browser.find_elements(By.CSS_SELECTOR, ".clf-asked")
    assert hosts_asked(browser) == {"127.0.0.1"}
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if "Content Security Policy" not in message] == []

    bad = tmp_path / "broken.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    upload(browser, bad)
    until(lambda: "did not work" in browser.find_element(By.ID, "clf-result").text, 60)
    assert "not an image of a known format" in browser.find_element(By.ID, "clf-result").text

    server.process.terminate()
    assert server.process.wait(25) == 0
    assert list(temporary.iterdir()) == []  # the uploads are gone
