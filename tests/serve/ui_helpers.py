"""The page in a real browser: one server and one window for the tests of the search tab."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from browsers import chromium
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from serve_helpers import PROGRAM, Server, encoded, picture, until, write_model

from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity

HOSTILE = 'x"><img src=q onerror="document.title=1">.png'
"""The name of the last image: markup, should anything forget to escape it."""


def write_gallery(folder: Path, engine: Engine, n: int = 40) -> Path:
    """Images 1 to n of ``serve_helpers.picture`` with metadata; then two near copies of image 1 and a hostile one."""
    images = [picture(seed) for seed in range(n)]
    first = np.asarray(images[0], np.int16)
    images += [Image.fromarray(np.clip(first + shift, 0, 255).astype(np.uint8)) for shift in (1, 2)]
    images.append(picture(n))
    blobs = [encoded(image) for image in images]
    vectors = engine.embed(np.stack([engine.prepare(blob) for blob in blobs]))
    entries = []
    for i, (image, blob, vector) in enumerate(zip(images, blobs, vectors, strict=True)):
        name = HOSTILE if i == len(images) - 1 else f"{i:02d}.png"
        place = ("warm", "cold")[i % 2]
        entries.append(
            Entry(
                key=name,
                uri=f"{place}/{name}",
                vector=vector,
                thumbnail=encoded(image, "JPEG"),
                size=len(blob),
                sha256=f"{i:064x}",
                width=image.width,
                height=image.height,
                metadata={"label": ("cat", "dog", "<i>bird</i>")[i % 3], "year": 2000 + i, "camera": {"iso": 100}},
                folder=place,
            )
        )
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder) as gallery:
        gallery.upsert(entries)
    return folder


@contextmanager
def page_server(*words: object, temporary: Path | None = None) -> Iterator[Server]:
    """``clf serve`` with the page, ready. What it wrote to its temporary folder can be looked at."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary or tempfile.gettempdir())}
    command = [sys.executable, "-c", PROGRAM, "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert process.stdout is not None
    log: list[str] = []
    for line in process.stdout:
        log.append(line)
        if found := re.search(r"on (https?://[^\s\"]+)", line):
            break
    else:
        raise AssertionError("the server did not start:\n" + "".join(log))
    reader = threading.Thread(target=log.extend, args=(process.stdout,))
    reader.start()
    try:
        with httpx.Client(base_url=found[1], trust_env=False, timeout=30) as client:
            until(lambda: client.get("/health/ready").status_code == 200, 60)
        yield Server(found[1], process, log)
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        process.stdout.close()


class Tab:
    """The search tab in a browser window."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver = driver
        self.base = base

    def open(self, address: str = "") -> None:
        """Loads the page anew, and waits until it has shown what the address asks for."""
        self.driver.get("about:blank")
        self.driver.get(self.base + "/" + address)
        until(lambda: bool(self.js("return Boolean(window.clf && clf.started)")), 60)
        self.settled()

    def reset(self) -> None:
        """An empty search, without loading the page anew."""
        if self.js("return location.href").startswith(self.base):
            self.js(
                "for (const dialog of document.querySelectorAll('dialog')) dialog.close(); clf.go(location.pathname)"
            )
            self.settled()
        else:
            self.open()

    def js(self, script: str, *words: Any) -> Any:
        return self.driver.execute_script(script, *words)

    def settled(self) -> None:
        """Waits until nothing is being looked for."""
        ready = "return document.getElementById('clf-result').getAttribute('aria-busy') === 'false'"
        until(lambda: bool(self.js(ready)), 60)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def uris(self) -> list[str]:
        """Of the results that can be seen, in order."""
        return list(self.js("return clf.visible().map(card => card.dataset.uri)"))

    def ids(self) -> list[int]:
        return [int(id_) for id_ in self.js("return clf.visible().map(card => card.dataset.id)")]

    def address(self) -> str:
        return str(self.js("return location.search"))

    def change(self, act: Callable[[], Any]) -> None:
        """Does something that starts a search, and waits for its results."""
        before = self.js("return performance.getEntriesByName('clf-result').length")
        act()
        until(lambda: self.js("return performance.getEntriesByName('clf-result').length") > before, 60)
        self.settled()

    def upload(self, path: Path) -> None:
        self.change(lambda: self.find("#clf-file").send_keys(str(path)))

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, **features: str) -> None:
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})

    def severe(self) -> list[str]:
        """Errors in the browser's console since it was last asked; what our policy stops is meant to be stopped."""
        entries = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [text for text in entries if "Content Security Policy" not in text]


@dataclass(frozen=True)
class Site:
    """A server with the galleries ``pictures`` and ``others``, each of a model of its own, and a window on its page."""

    tab: Tab
    pictures: Path
    temporary: Path
    """Where the server may write."""


@contextmanager
def site(folder: Path, engine: Engine) -> Iterator[Site]:
    pictures, temporary = write_gallery(folder / "pictures", engine), folder / "temporary"
    finer = Engine(write_model(folder / "finer", name="finer", cells=4, dim=48), "cpu")
    others = write_gallery(folder / "others", finer, 16)
    temporary.mkdir()
    words = (engine.folder, finer.folder, "--gallery", pictures, "--gallery", others)
    with (
        page_server(*words, temporary=temporary) as server,
        chromium(folder / "profile", ("performance", "browser")) as driver,
    ):
        yield Site(Tab(driver, server.base), pictures, temporary)


def neighbours(base: str, body: dict[str, Any] | bytes, k: int) -> list[dict[str, Any]]:
    """What the API finds."""
    with httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
        if isinstance(body, bytes):
            reply = client.post(f"/search?k={k}", content=body, headers={"Content-Type": "image/png"})
        else:
            reply = client.post("/search", json={**body, "k": k})
    assert reply.status_code == 200, reply.text
    hits: list[dict[str, Any]] = reply.json()["hits"]
    return hits


def turned(image: Image.Image) -> bytes:
    """A JPEG that is stored lying on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def names(hits: Sequence[dict[str, Any]]) -> list[str]:
    return [hit["uri"] for hit in hits]
