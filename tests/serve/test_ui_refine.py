"""The search tab in a browser: a search is narrowed, combined, cropped, paged through, shared and gone back in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from browsers import needs_browser
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from serve_helpers import encoded, picture, until
from ui_helpers import Site, Tab, names, neighbours, turned

from clf.images import decode
from clf_serve.combine import combine
from clf_serve.gallery import Gallery, Where

pytestmark = needs_browser


@pytest.fixture
def pictures(page: Site) -> Path:
    return page.pictures


@pytest.fixture(autouse=True)
def fresh(tab: Tab) -> Iterator[None]:
    tab.reset()
    yield
    assert tab.severe() == []


def press(tab: Tab, *keys: str) -> None:
    ActionChains(tab.driver).send_keys(*keys).perform()


def focused(tab: Tab) -> int:
    return int(tab.js("return document.activeElement.dataset.id || 0"))


def test_a_click_on_a_result_searches_from_it(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.from(5)"))
    second = tab.ids()[1]
    tab.change(lambda: tab.click(f'.clf-picture[data-search="{second}"]'))
    assert tab.address() == f"?like={second}"
    assert tab.uris()[:9] == names(neighbours(tab.base, {"id": second}, 9))
    link = tab.find(".clf-picture").get_attribute("href")
    assert link is not None and "like=" in link  # for a new tab of the browser


def test_more_and_less_are_combined_with_their_weights(tab: Tab, pictures: Path) -> None:
    tab.change(lambda: tab.js("clf.change({queries: [{id: 5, weight: 1}], fold: false, k: 96})"))
    tab.change(lambda: tab.click('[data-more="9"]'))
    tab.change(lambda: tab.click('[data-less="14"]'))
    assert tab.texts(".clf-sign") == ["more like this", "more like this", "less like this"]
    with Gallery(pictures) as gallery:
        wanted = combine(gallery.vectors([5, 9, 14]), np.array([1, 1, -0.5]))
        assert tab.ids() == [hit.id for hit in gallery.search(wanted, 96, but=(5, 9, 14))]
    assert parse_qs(tab.address()[1:]) == {"like": ["5", "9"], "unlike": ["14"], "fold": ["0"], "k": ["96"]}

    tab.change(lambda: tab.js("const s = document.querySelectorAll('.clf-weight')[1]; s.value = '2';"
                              "s.dispatchEvent(new Event('change'))"))  # fmt: skip
    assert parse_qs(tab.address()[1:])["like"] == ["5", "9:2"]
    tab.change(lambda: tab.click(".clf-sign"))
    assert parse_qs(tab.address()[1:])["unlike"] == ["5:1", "14"]
    tab.change(lambda: tab.click(".clf-remove"))
    assert len(tab.texts(".clf-chip")) == 2


def test_queries_that_cancel_out_are_explained(tab: Tab) -> None:
    tab.js("clf.change({queries: [{id: 5, weight: 1}, {id: 5, weight: -1}]})")
    until(lambda: "cancel each other out" in tab.text("#clf-result"))
    assert all("422" in text for text in tab.severe())


def test_an_upload_can_join_a_search(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(3)))
    tab.change(lambda: tab.js("clf.from(5)"))
    tab.change(lambda: tab.find("#clf-add").send_keys(str(tmp_path / "a.png")))
    assert tab.texts(".clf-chip-name") == ["04.png", "a.png"]
    assert tab.address() == "?like=5&uploaded=1"
    assert "not part of the address" in tab.text("#clf-note")
    tab.open("?like=5&uploaded=1")
    assert "leaves out an uploaded picture" in tab.text("#clf-note")
    assert tab.uris()[:5] == names(neighbours(tab.base, {"id": 5}, 5))


def test_a_crop_is_that_part_of_the_upright_picture(tab: Tab, tmp_path: Path) -> None:
    query = tmp_path / "turned.jpg"
    query.write_bytes(turned(picture(3, 600, 400)))
    tab.js("clf.state.fold = false")
    tab.upload(query)
    upright = decode(query.read_bytes())
    assert upright.size == (400, 600)
    layer = tab.find("#clf-crop")
    tab.js("arguments[0].scrollIntoView({block: 'center'})", layer)
    width, height = layer.size["width"], layer.size["height"]
    drag = ActionChains(tab.driver).move_to_element_with_offset(layer, -width // 2 + 12, -height // 2 + 12)
    tab.change(lambda: drag.click_and_hold().move_by_offset(width // 2 - 20, height // 2 - 20).release().perform())

    x, y, w, h = tab.js("return clf.state.queries[0].crop.map(part => Number(part.toFixed(4)))")
    assert 0 < x < 0.1 and 0.3 < w < 0.5 and 0.3 < h < 0.5
    box = (int(x * 400), int(y * 600), round((x + w) * 400), round((y + h) * 600))
    hits = neighbours(tab.base, encoded(upright.crop(box)), 24)
    assert tab.uris() == names(hits)
    assert tab.texts("#clf-result .clf-score b") == [f"{hit['score']:.3f}" for hit in hits]

    tab.js("document.getElementById('clf-box').focus()")
    tab.change(lambda: press(tab, Keys.ARROW_RIGHT))
    assert tab.js("return clf.state.queries[0].crop[0]") == pytest.approx(x + 0.04, abs=1e-3)
    tab.js("document.getElementById('clf-box').focus()")
    tab.change(
        lambda: ActionChains(tab.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    )
    assert tab.js("return clf.state.queries[0].crop[3]") == pytest.approx(h + 0.04, abs=1e-3)
    tab.js("document.getElementById('clf-box').focus()")
    tab.change(lambda: press(tab, Keys.ESCAPE))
    assert tab.js("return clf.state.queries[0].crop") is None
    assert tab.uris() == names(neighbours(tab.base, query.read_bytes(), 24))
    tab.change(lambda: tab.click("#clf-crop-start"))
    assert tab.find("#clf-box").is_displayed()
    tab.change(lambda: tab.click("#clf-crop-end"))
    assert not tab.find("#clf-box").is_displayed()


def test_near_duplicates_are_folded_until_asked_for(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.change({queries: [{id: 1, weight: 1}], k: 96})"))
    assert tab.text("#clf-near").startswith("a cosine of 0.")
    button = tab.find('.clf-alike[data-alike="41"]')
    assert button.text.startswith("+") and 42 not in tab.ids()
    assert "more folded" in tab.text("#clf-status")
    tab.js("arguments[0].click()", button)
    assert 42 in tab.ids()
    assert button.get_attribute("aria-expanded") == "true"
    tab.js("arguments[0].click()", button)
    assert 42 not in tab.ids()
    tab.change(lambda: tab.click("#clf-fold"))
    assert 42 in tab.ids() and not tab.all(".clf-alike")
    assert "fold=0" in tab.address()


def test_the_filter_form_and_its_json_say_the_same(tab: Tab, pictures: Path) -> None:
    tab.change(lambda: tab.js("clf.change({queries: [{id: 5, weight: 1}], fold: false})"))
    tab.js("document.getElementById('clf-filter').open = true")
    choose = (
        "const e = [...document.querySelectorAll('#clf-form [data-name]')].find(e => e.dataset.name === arguments[0]);"
    )
    fire = "e.dispatchEvent(new Event('change', {bubbles: true}))"
    tab.change(lambda: tab.js(choose + "e.value = JSON.stringify('cat');" + fire, "label"))
    tab.change(lambda: tab.js(choose + "e.querySelector('input').value = 2010;" + fire, "year"))
    where = {"label": "cat", "year": {"$gte": 2010}}
    assert json.loads(tab.find("#clf-where").get_attribute("value") or "") == where
    with Gallery(pictures) as gallery:
        found = gallery.search(gallery.vectors([5])[0], 24, where=Where.parse(where), but=[5])
        assert tab.ids() == [hit.id for hit in found]
    until(lambda: f"{len(found)} nearest of 11 that pass the filter" in tab.text("#clf-status"))

    tab.open(tab.address())
    assert tab.ids() == [hit.id for hit in found]
    assert tab.js(choose + "return e.value", "label") == '"cat"'
    tab.change(lambda: tab.js("document.getElementById('clf-where').value = '{\"label\": \"none\"}';"
                              "document.getElementById('clf-where-go').click()"))  # fmt: skip
    assert "Nothing passes the filter" in tab.text("#clf-result")
    tab.change(lambda: tab.click("#clf-where-clear"))
    assert "where" not in tab.address()


@pytest.mark.parametrize(
    ("text", "words"), [("{nonsense", "no JSON"), ('{"year": {"$more": 3}}', "$more"), ('{"@owner": 1}', "@owner")]
)
def test_a_wrong_filter_is_explained_at_the_filter(tab: Tab, text: str, words: str) -> None:
    tab.change(lambda: tab.js("clf.from(5)"))
    tab.js("document.getElementById('clf-where').value = arguments[0];"
           "document.getElementById('clf-where-go').click()", text)  # fmt: skip
    until(lambda: words in tab.text("#clf-where-error"))
    assert tab.find("#clf-where").get_attribute("aria-invalid") == "true"
    assert all("400" in line for line in tab.severe())


def test_pages_follow_each_other_without_a_gap(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.change({queries: [{id: 5, weight: 1}], k: 12, fold: false})"))
    assert not tab.find("#clf-previous").is_enabled()
    seen = tab.ids()
    for page in (2, 3, 4):
        tab.change(lambda: tab.click("#clf-next"))
        assert f"page={page}" in tab.address()
        seen += tab.ids()
    assert seen == [hit["id"] for hit in neighbours(tab.base, {"id": 5}, 42)]
    assert not tab.find("#clf-next").is_enabled()
    tab.change(lambda: tab.click("#clf-previous"))
    assert tab.ids() == seen[24:36]
    tab.change(lambda: tab.click('[name=clf-k][value="96"]'))
    assert len(tab.ids()) == 42


def test_a_least_score_leaves_the_rest_out(tab: Tab) -> None:
    scores = [hit["score"] for hit in neighbours(tab.base, {"id": 5}, 42)]
    tab.change(lambda: tab.js("clf.change({queries: [{id: 5, weight: 1}], k: 96, fold: false})"))
    tab.change(lambda: tab.js("const e = document.getElementById('clf-min'); e.value = 0.9;"
                              "e.dispatchEvent(new Event('input'))"))  # fmt: skip
    assert len(tab.ids()) == sum(score >= 0.9 for score in scores) > 0
    assert tab.text("#clf-min-out") == "0.90" and "min=0.9" in tab.address()


def test_back_and_forward_go_through_the_searches(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(3)))
    tab.change(lambda: tab.js("clf.from(5)"))
    first = tab.ids()
    tab.upload(tmp_path / "a.png")
    second = tab.ids()
    tab.change(lambda: tab.js("clf.from(9)"))
    tab.change(tab.driver.back)
    assert tab.ids() == second and tab.address() == "?uploaded=1"
    tab.change(tab.driver.back)
    assert tab.ids() == first and tab.address() == "?like=5"
    tab.change(tab.driver.forward)
    assert tab.ids() == second
    tab.open("?uploaded=1")
    assert "stays with whoever uploaded it" in tab.text("#clf-note")


def test_a_late_answer_does_not_take_the_place_of_a_newer_one(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.from(5)"))
    tab.js("""
        const really = window.fetch;
        window.late = [];
        window.fetch = async (path, options = {}) => {
            const { signal, ...rest } = options; // as if the answer were on its way already
            const slow = path === 'page/search' && JSON.parse(options.body).queries[0].id === 9
                || path.includes('gallery=others');
            const reply = await really(path, rest);
            if (slow) await new Promise(done => window.late.push(done));
            return reply;
        };
        window.restored = () => (window.fetch = really);
        clf.from(9);""")
    until(lambda: tab.js("return window.late.length") == 1)
    tab.change(lambda: tab.js("clf.from(14)"))
    newer = tab.ids()
    choose = (
        "const e = document.getElementById('clf-gallery'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))"
    )
    tab.js(choose, "others")
    until(lambda: tab.js("return window.late.length") == 2)
    tab.js(choose, "pictures")
    until(lambda: "pictures · " in tab.text("#clf-about"))
    tab.change(lambda: tab.js("clf.from(14)"))
    tab.js("window.late.forEach(done => done()); window.restored()")
    tab.change(lambda: tab.js("clf.change({})"))
    assert tab.ids() == newer and tab.text("#clf-about").startswith("pictures · 43 images")


def test_a_picture_is_embedded_anew_when_the_model_was_replaced(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(3)))
    tab.upload(tmp_path / "a.png")
    found = tab.ids()
    tab.js("""
        const really = window.fetch;
        const other = JSON.stringify({error: {message: 'of another model', code: 'other_model'}});
        window.embedded = 0;
        let first = true;
        window.fetch = async (path, ...rest) => {
            window.embedded += path.startsWith('page/embed');
            if (path !== 'page/search' || !first) return really(path, ...rest);
            first = false;
            return new Response(other, {status: 409});
        };
        window.restored = () => (window.fetch = really);""")
    tab.change(lambda: tab.js("clf.change({k: 48})"))
    tab.js("window.restored()")
    assert tab.js("return window.embedded") == 1
    assert tab.ids()[: len(found)] == found


def test_the_results_are_used_by_keys_alone(tab: Tab) -> None:
    tab.change(lambda: tab.js("clf.from(5)"))
    ids = tab.ids()
    assert [int(c) for c in tab.js("return clf.visible().filter(c => c.tabIndex === 0).map(c => c.dataset.id)")] == ids[
        :1
    ]
    tab.js("clf.visible()[0].focus()")
    press(tab, Keys.ARROW_RIGHT)
    assert focused(tab) == ids[1]
    columns = tab.js(
        "return getComputedStyle(document.querySelector('.clf-grid')).gridTemplateColumns.split(' ').length"
    )
    press(tab, Keys.ARROW_DOWN)
    assert focused(tab) == ids[1 + columns]
    press(tab, Keys.HOME)
    assert focused(tab) == ids[0]

    press(tab, Keys.ENTER)
    until(lambda: "04.png" not in tab.text("#clf-details-body h2") and bool(tab.text("#clf-details-body h2")))
    assert tab.text("#clf-details-rank") == f"1 of {len(ids)}"
    body = tab.text("#clf-details-body")
    assert "of random pairs" in body and "48 × 40 pixels" in body and "camera.iso" in body
    press(tab, Keys.ARROW_RIGHT)
    until(lambda: tab.text("#clf-details-rank") == f"2 of {len(ids)}")
    press(tab, Keys.ESCAPE)
    until(lambda: focused(tab) == ids[1])
    tab.change(lambda: press(tab, "+"))
    assert parse_qs(tab.address()[1:])["like"] == ["5", str(ids[1])]
    assert focused(tab) == tab.ids()[0]  # what was in focus is gone, so its place is taken
    tab.change(lambda: press(tab, "-"))
    assert "unlike" in tab.address()
    press(tab, Keys.ENTER)
    until(lambda: bool(tab.js("return document.getElementById('clf-details').open")))
    tab.change(lambda: tab.click("#clf-details [data-do=search]"))
    assert len(tab.texts(".clf-chip")) == 1


def test_another_gallery_has_its_own_model(tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(3)))
    tab.upload(tmp_path / "a.png")
    assert len(tab.all("#clf-gallery option")) == 2
    tab.change(lambda: tab.js("const e = document.getElementById('clf-gallery'); e.value = 'others';"
                              "e.dispatchEvent(new Event('change'))"))  # fmt: skip
    assert tab.uris()[0] == "cold/03.png"
    assert "others · 19 images" in tab.text("#clf-about")
    assert tab.js("return [0, 1, 1234].map(clf.images)") == ["0 images", "1 image", "1,234 images"]
    tab.change(lambda: tab.click(".clf-picture"))
    assert tab.address() == "?gallery=others&like=4"
    loaded = "return clf.visible()[0].querySelector('img').naturalWidth > 0"
    until(lambda: bool(tab.js(loaded)))
    tab.open("?gallery=others&like=4")
    assert len(tab.ids()) + 1 <= 19 and tab.js("return document.getElementById('clf-gallery').value") == "others"
    tab.open("?gallery=nowhere")
    assert "no gallery" in tab.text("#clf-result")
    assert tab.find("#clf-result a").get_attribute("href") == tab.base + "/"
    tab.severe()
    tab.open()
