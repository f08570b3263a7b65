"""The page for every eye and hand: wide and narrow, light and dark, with a screen reader, without motion."""

from __future__ import annotations

from typing import Any

import pytest
from browsers import needs_browser
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from serve_helpers import until
from ui_helpers import Tab

pytestmark = needs_browser
WIDTHS = (360, 390, 820, 1280, 1920)


@pytest.fixture(autouse=True)
def fresh(tab: Tab) -> None:
    tab.media()
    tab.size(1280, 900)
    tab.reset()
    tab.change(lambda: tab.js("clf.change({queries: [{id: 5, weight: 1}, {id: 9, weight: -0.5}]})"))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(tab: Tab, width: int) -> None:
    tab.size(width, 900)
    over = """
        const main = document.getElementById('clf-search');
        return [...main.querySelectorAll('*')].filter(e => e.checkVisibility() && !e.closest('[hidden], .clf-unseen')
            && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.clf-picture'))
            .map(e => e.tagName + '.' + e.className);"""
    assert tab.js("return document.documentElement.scrollWidth <= innerWidth")
    assert tab.js(over) == []


def test_a_phone_shows_results_on_its_first_screen(tab: Tab) -> None:
    tab.size(390, 844)
    tab.open("?like=5")
    assert tab.js("return clf.visible()[0].getBoundingClientRect().top") < 700
    grid = "return getComputedStyle(document.querySelector('.clf-grid')).gridTemplateColumns.split(' ').length"
    assert tab.js(grid) == 2


def contrast(tab: Tab, selector: str) -> float:
    """Between an element's text and the page's ground or its card (WCAG 2.2, relative luminance)."""
    script = """
        const paint = (colour) => {
            const canvas = document.createElement('canvas').getContext('2d');
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const element = document.querySelector(arguments[0]);
        let under = element, ground = [0, 0, 0, 0];
        for (; under && ground[3] < 255; under = under.parentElement) {
            ground = paint(getComputedStyle(under).backgroundColor);
        }
        return [paint(getComputedStyle(element).color), ground];"""

    def light(colour: list[int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    first, second = sorted(map(light, tab.js(script, selector)))
    return (second + 0.05) / (first + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(tab: Tab, scheme: str) -> None:
    tab.media(prefers_color_scheme=scheme)
    tab.open("?like=5")
    assert tab.js("return document.body.classList.contains('dark')") == (scheme == "dark")
    texts = (
        ".clf-score b",
        ".clf-closer",
        ".clf-name",
        ".clf-folder",
        "#clf-status",
        "#clf-about",
        ".clf-sign",
        ".clf-strong",
    )
    assert {text: ratio for text in texts if (ratio := contrast(tab, text)) < 4.5} == {}


def test_the_choice_of_light_or_dark_is_kept(tab: Tab) -> None:
    tab.media(prefers_color_scheme="light")
    tab.open()
    assert tab.text("#clf-theme") == "Dark"
    tab.click("#clf-theme")
    until(lambda: tab.text("#clf-theme") == "Light")
    tab.open()
    until(lambda: bool(tab.js("return document.body.classList.contains('dark')")))
    tab.js("localStorage.clear()")
    tab.open()


def nodes(tab: Tab) -> list[dict[str, Any]]:
    """What a screen reader is told."""
    tree: list[dict[str, Any]] = tab.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [node for node in tree if not node["ignored"]]


def text_of(node: dict[str, Any], what: str) -> str:
    return str(node.get(what, {}).get("value", ""))


def test_a_screen_reader_hears_what_everything_is(tab: Tab) -> None:
    tab.js("document.getElementById('clf-filter').open = true; document.querySelector('.clf-expert').open = true")
    found = nodes(tab)
    roles = {
        "button",
        "link",
        "textbox",
        "searchbox",
        "combobox",
        "slider",
        "radio",
        "switch",
        "checkbox",
        "tab",
        "article",
    }
    unnamed = [node for node in found if text_of(node, "role") in roles and not text_of(node, "name").strip()]
    assert [(text_of(node, "role"), node.get("backendDOMNodeId")) for node in unnamed] == []
    said = {(text_of(node, "role"), text_of(node, "name")) for node in found}
    assert {("tab", "Search"), ("region", "Results"), ("complementary", "What to look for")} <= said
    assert ("button", "Less like warm/08.png; change") in said
    assert any(role == "article" and "of random pairs" in name for role, name in said)
    assert tab.js("return document.documentElement.lang") == "en"
    assert len([1 for role, _ in said if role == "heading"]) >= 1


def test_focus_can_be_seen(tab: Tab) -> None:
    tab.js("document.getElementById('clf-file').focus()")
    seen = set()
    for _ in range(12):
        ActionChains(tab.driver).send_keys(Keys.TAB).perform()
        script = """
            let e = document.activeElement;
            if (e.matches('[name=clf-k]')) e = e.closest('label');
            if (e.matches('[role=switch]')) e = e.closest('label');
            const style = getComputedStyle(e);
            const drawn = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
            return [e.id || e.className || e.tagName, drawn];"""
        name, outlined = tab.js(script)
        seen.add(name)
        assert outlined, f"{name} has the focus and does not show it"
    assert len(seen) > 5


def test_whoever_wants_no_motion_gets_none(tab: Tab) -> None:
    length = "return parseFloat(getComputedStyle(document.querySelector('.clf-picture img')).transitionDuration)"
    assert tab.js(length) > 0.1
    tab.media(prefers_reduced_motion="reduce")
    assert tab.js(length) < 0.001


def test_grey_shapes_stand_in_while_a_search_takes_long(tab: Tab) -> None:
    tab.reset()
    tab.js("""
        window.really = window.fetch;
        window.fetch = (...words) => new Promise(done => setTimeout(() => done(really(...words)), 1500));
        clf.from(7);""")
    until(lambda: len(tab.all(".clf-grey")) == 12)
    assert tab.find("#clf-result").get_attribute("aria-busy") == "true"
    until(lambda: len(tab.ids()) > 0)
    assert not tab.all(".clf-grey")
    tab.js("window.fetch = window.really")


def test_a_server_that_is_gone_is_told_of(tab: Tab) -> None:
    tab.js("window.really = window.fetch; window.fetch = async () => { throw new TypeError('Failed to fetch'); }")
    tab.js("clf.from(7)")
    until(lambda: "Is it still running?" in tab.text("#clf-result"))
    tab.js("window.fetch = window.really")
    tab.change(lambda: tab.click("#clf-result .clf-message button"))  # Try again
    assert tab.address() == "?like=7" and len(tab.ids()) > 0
    assert "nearest of" in tab.text("#clf-status")


def test_a_page_that_opened_before_its_server_is_filled_by_itself(tab: Tab) -> None:
    tab.js("""
        let left = 2;
        const told = JSON.stringify({error: {message: 'warming up', code: 'warming_up'}});
        const busy = () => new Response(told, {status: 503});
        window.really = window.fetch;
        window.fetch = async (path, ...rest) => path === 'page/search' && left-- > 0 ? busy() : really(path, ...rest);
        clf.from(7);""")
    until(lambda: "Warming up" in tab.text("#clf-result"))
    until(lambda: len(tab.ids()) > 0)
    tab.js("window.fetch = window.really")


def test_a_card_s_facts_fit_its_picture(tab: Tab) -> None:
    tab.size(390, 844)
    wider = """
        return clf.visible().flatMap(card => [...card.querySelectorAll('.clf-facts, .clf-closer, .clf-actions')]
            .filter(e => e.getBoundingClientRect().right > card.getBoundingClientRect().right + 0.5
                || e.scrollWidth > e.clientWidth + 1).map(e => e.className + e.textContent));"""
    assert tab.js(wider) == []
