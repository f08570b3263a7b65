"""The embedding map in a real browser where there is one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsers import chromium, needs_browser
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from clf import report
from clf.runs import Run

pytestmark = needs_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile") as driver:
        yield driver


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def places(browser: webdriver.Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('.points use')].map(p => p.getAttribute('transform'))"
    return browser.execute_script(script)


@pytest.mark.slow
def test_the_map_shows_images_moves_and_hides_classes(browser: webdriver.Chrome, tiny_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.path, folder)
    browser.get(report.write_report(Run(folder)).as_uri())
    figure = browser.find_element(By.ID, "map")
    data = browser.execute_script("return JSON.parse(arguments[0].querySelector('script').textContent)", figure)
    assert len(places(browser)) == 48

    tip = figure.find_element(By.CLASS_NAME, "map-tip")
    mark = figure.find_elements(By.CSS_SELECTOR, ".points use")[5]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    assert not tip.is_displayed()
    ActionChains(browser).move_to_element(mark).perform()
    until(tip.is_displayed)
    shown = int(tip.get_attribute("data-point") or -1)
    assert places(browser)[shown] == places(browser)[5]  # the mark, or one on the same place
    assert tip.find_element(By.TAG_NAME, "b").text == data["words"][shown]
    columns, cell = data["sheet"]["columns"], data["sheet"]["cell"]
    geometry = "const [c, p] = arguments, a = c.getBoundingClientRect(), b = p.getBoundingClientRect();"
    geometry += "return [a.x - b.x, a.y - b.y, b.width, a.width, p.naturalWidth]"
    crop = tip.find_element(By.CLASS_NAME, "map-crop")
    left, top, width, window, natural = browser.execute_script(geometry, crop, crop.find_element(By.TAG_NAME, "img"))
    zoom = width / natural
    assert natural == columns * cell
    assert (left / zoom, top / zoom) == pytest.approx((shown % columns * cell, shown // columns * cell), abs=0.01)
    assert window / zoom == pytest.approx(data["sheet"]["side"], abs=0.01)

    at_first = places(browser)
    figure.find_element(By.CSS_SELECTOR, "[data-layout=tsne]").click()
    until(lambda: figure.get_attribute("data-layout") == "tsne")
    assert places(browser) == [f"translate({x / 10:g} {y / 10:g})" for x, y in data["tsne"]]
    figure.find_element(By.CSS_SELECTOR, "[data-layout=pca]").click()
    until(lambda: figure.get_attribute("data-layout") == "pca")
    assert places(browser) == at_first

    button = figure.find_element(By.CSS_SELECTOR, "[data-slot='0']")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    displayed = "return [...document.querySelectorAll('.points use')].map(p => getComputedStyle(p).display !== 'none')"
    assert browser.execute_script(displayed) == [entry != 0 for entry in data["entry"]]
    button.click()
    assert all(browser.execute_script(displayed))

    browser.execute_script("arguments[0].focus()", svg := figure.find_element(By.CSS_SELECTOR, ".map-stage > svg"))
    svg.send_keys(Keys.ARROW_RIGHT)
    until(tip.is_displayed)
    before = tip.get_attribute("data-point")
    svg.send_keys(Keys.ARROW_LEFT)
    assert tip.get_attribute("data-point") != before
    assert figure.find_element(By.CSS_SELECTOR, "[aria-live]").get_attribute("textContent")
    svg.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    assert browser.get_log("browser") == []
