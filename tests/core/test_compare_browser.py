"""The page of ``clf compare`` in a real browser where there is one: on a phone, on a screen and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import chromium, needs_browser
from selenium import webdriver
from written_runs import write_run

from clf.compare import compare, write_page
from clf.runs import Run

LONG = "a_method_whose_author_gave_it_a_name_of_more_letters_than_a_telephone_is_wide"

pytestmark = needs_browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path / "profile") as driver:
        yield driver


def test_long_names_leave_room_for_the_figures(browser: webdriver.Chrome, tmp_path: Path) -> None:
    paths = [write_run(tmp_path, f"{i}", plugin=plugin) for i, plugin in enumerate((LONG, "dcl"))]
    browser.get(write_page(compare([Run(path) for path in paths]), tmp_path / "page.html").as_uri())
    for width, column in ((390, 2), (1280, 5)):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
        assert browser.execute_script(page) == 0
        right = "const right = e => e.getBoundingClientRect().right; return "
        assert (
            browser.execute_script(f"{right} Math.max(...[...document.querySelectorAll('.legend span')].map(right))")
            < width
        )
        cell = f"{right} right(document.querySelectorAll('td')[arguments[0]])"
        assert browser.execute_script(cell, column) < width

    position = "return getComputedStyle(document.querySelector('.legend')).position"
    assert browser.execute_script(position) == "sticky"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(position) == "static"  # it would be on every sheet, and cut off
    scroll = "return getComputedStyle(document.querySelector('.scroll')).overflowX"
    assert browser.execute_script(scroll) == "visible"
