"""A server with its page, and a browser on one of its tabs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from browsers import chromium
from selenium import webdriver
from selenium.common import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from serve_helpers import PROGRAM, Server, until

from clf_serve.engine import Engine
from clf_serve.gallery import Entry, Gallery, Identity

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def fill(folder: Path, model: Path, entries: Callable[[Engine], Sequence[Entry]]) -> Path:
    """A gallery of what ``entries`` makes with the model's engine."""
    engine = Engine(model, "cpu")
    with Gallery.open_or_create(folder, Identity.of(engine.manifest), model) as gallery:
        gallery.upsert(entries(engine))
    engine.close()
    return folder


@contextmanager
def serving(*words: object, temporary: Path | None = None, program: str = PROGRAM) -> Iterator[Server]:
    """``clf serve`` with its page, once it is ready."""
    command = [sys.executable, "-c", program, "serve", *map(str, words), "--port", "0"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary or tempfile.gettempdir())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert process.stdout is not None
    log: list[str] = []
    base = ""
    for line in process.stdout:
        log.append(line)
        if found := re.search(r"on (https?://[^\s\"]+)", line):
            base = found[1]
            break
    reader = threading.Thread(target=log.extend, args=(process.stdout,))
    reader.start()
    try:
        assert base, "the server did not start:\n" + "".join(log)
        with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
            until(lambda: client.get("/health/ready").status_code == 200, 60)
        yield Server(base, process, log)
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        process.stdout.close()


class Tab:
    """A browser on the page."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver = driver
        self.base = base

    def open(self, label: str, address: str = "/", *, phone: bool = False) -> None:
        """Loads the page and goes to the tab."""
        name = "Emulation.setDeviceMetricsOverride" if phone else "Emulation.clearDeviceMetricsOverride"
        self.driver.execute_cdp_cmd(name, PHONE if phone else {})
        self.driver.get(self.base + address)
        self.go(label)

    def go(self, label: str) -> None:
        def there() -> bool:
            tabs = [
                tab for tab in self.driver.find_elements(By.CSS_SELECTOR, "[role=tab]") if tab.text.strip() == label
            ]
            if tabs:
                tabs[0].click()
            return bool(tabs)

        until(lambda: quietly(there), 60)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        until(lambda: bool(self.all(selector)), 60)
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """What it shows."""
        try:
            return self.one(selector).text
        except StaleElementReferenceException:  # the page drew it anew between the two questions
            return self.one(selector).text

    def js(self, script: str, *words: Any) -> Any:
        return self.driver.execute_script(script, *words)

    def until_js(self, script: str, *words: Any) -> Any:
        until(lambda: quietly(lambda: bool(self.js(f"return {script}", *words))), 60)
        return self.js(f"return {script}", *words)

    def choose(self, selector: str, value: str) -> None:
        """An option of a select, as a person does it."""
        script = (
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
            "return arguments[0].value"
        )
        assert self.js(script, self.one(selector), value) == value

    def overflows(self) -> bool:
        """Whether something is wider than the window, so that a phone would scroll sideways."""
        return bool(self.js("return document.documentElement.scrollWidth > window.innerWidth + 1"))

    def errors(self) -> list[str]:
        """What the browser complained of since this was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def quietly(ask: Callable[[], bool]) -> bool:
    """False while the page is being drawn anew."""
    try:
        return ask()
    except Exception as error:
        if type(error).__module__.startswith("selenium"):
            return False
        raise


@contextmanager
def tab(profile: Path, base: str) -> Iterator[Tab]:
    with chromium(profile) as driver:
        yield Tab(driver, base)
