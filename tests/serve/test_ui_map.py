"""The map tab in a real browser, and what its route says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from browsers import needs_browser
from page_tabs import Tab, fill, serving, tab
from selenium.webdriver import ActionChains, Keys
from serve_helpers import PROGRAM, Server, encoded, picture, until, write_model

from clf_serve.engine import Engine
from clf_serve.gallery import Entry
from clf_serve.page.map import DARK, LIGHT, colours

N = 400
FOLDERS = ("ants", "bees", "crabs")
STAND_IN = (
    "import time\n"
    "import clf_serve.projection as projection\n"
    "projection.has_umap = lambda: True\n"
    "def elsewhere(scores, progress):\n"
    "    progress('laying out', 0.5)\n"
    "    time.sleep(1.5)\n"
    "    return scores[:, 1::-1].copy()\n"
    "projection._umap_elsewhere = elsewhere\n"
) + PROGRAM


def entries(engine: Engine) -> Sequence[Entry]:
    vectors = np.random.default_rng(0).standard_normal((N, engine.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Entry(
            f"/{i}",
            f"{FOLDERS[i % 3]}/{i:03}.png",
            vectors[i],
            encoded(picture(i, 64, 64), "JPEG"),
            sha256=f"{i:064x}",
            folder=FOLDERS[i % 3],
            metadata={"year": 1900 + i // 4, "kind": {"name": f"k{i % 20}"}} if i else {},
        )
        for i in range(N)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("map")
    model = write_model(folder / "model")
    gallery = fill(folder / "beasts", model, entries)
    with serving(model, "--gallery", gallery, program=STAND_IN) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile"), server.base) as browser:
        yield browser


def array(text: str, kind: str) -> Any:
    return np.frombuffer(base64.b64decode(text), kind)


def test_points_are_the_gallery_s_images(client: httpx.Client) -> None:
    reply = client.get("/page/map").json()
    points = array(reply["xy"], "<u2").reshape(-1, 2)

    assert (reply["n"], reply["images"], reply["kind"], reply["gallery"]) == (N, N, "pca", "beasts")
    assert array(reply["ids"], "<f8").tolist() == list(range(1, N + 1))
    assert points.shape == (N, 2) and (points.min(), points.max()) == (0, 65535)
    assert 0 < reply["explained"][1] <= reply["explained"][0] < 1
    assert reply["fields"][0] == "@folder" and {"year", "kind.name"} <= set(reply["fields"])
    thumbnail = client.get("/" + reply["picture"].replace("ID", "7"))
    assert thumbnail.headers["content-type"] == "image/jpeg"
    facts = client.get("/page/map/image", params={"id": 7}).json()
    assert (facts["uri"], facts["folder"]) == ("ants/006.png", "ants")
    assert client.get("/" + facts["picture"]).content == thumbnail.content


def test_colours_of_text_and_numbers(client: httpx.Client) -> None:
    folder = client.get("/page/map", params={"colour": "@folder"}).json()
    assert [(each["label"], each["count"]) for each in folder["values"]] == [
        ("ants", 134),
        ("bees", 133),
        ("crabs", 133),
    ]
    assert array(folder["codes"], "u1").tolist() == [i % 3 for i in range(N)]
    assert (folder["values"][1]["example"] - 1) % 3 == 1

    assert client.get("/page/map").json()["codes"] == folder["codes"]  # where nothing is chosen
    plain = client.get("/page/map", params={"colour": ""}).json()
    assert plain["field"] is None and "codes" not in plain

    year = client.get("/page/map", params={"colour": "year"}).json()
    codes = array(year["codes"], "u1")
    assert (year["low"], year["high"], year["missing"], year["values"]) == (1900, 1999, 1, [])
    assert (codes[0], codes[1], codes[-1]) == (255, 0, 253)

    nested = client.get("/page/map", params={"colour": "kind.name"}).json()
    assert len(nested["values"]) == 20 and nested["missing"] == 1


def test_the_search_s_filter(client: httpx.Client) -> None:
    reply = client.get("/page/map", params={"where": json.dumps({"@folder": "bees"})}).json()
    assert array(reply["shown"], "u1").tolist() == [int(i % 3 == 1) for i in range(N)]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/page/map?kind=tsne", 400, "kind must be pca or umap"),
        ("/page/map?gallery=none", 404, "no gallery 'none'"),
        ("/page/map?where=%7B", 400, "no JSON"),
        ("/page/map?where=[]", 400, "where"),
        ("/page/map/image?id=x", 400, "must be an integer"),
        ("/page/map/image?id=999", 404, "no image 999"),
    ],
)
def test_refusals(client: httpx.Client, path: str, status: int, words: str) -> None:
    reply = client.get(path)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]


def test_values_beyond_the_legend_and_of_no_use() -> None:
    many = colours([f"v{i:03}" for i in range(300)] + ["v000", None])
    assert (len(many.values), many.values[0], many.other, many.missing) == (200, ("v000", 2), 100, 1)
    assert many.codes[-1] == 255 and (many.codes == 254).sum() == 100
    few = colours([3, 1, 3, True])
    assert [label for label, _ in few.values] == ["3", "1", "yes"]
    assert colours([None, None]).codes.tolist() == [255, 255]


def lab(colour: str, deficiency: Any) -> Any:
    """CIELAB of what someone with a colour vision deficiency sees, by a matrix over linear RGB."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(deficiency @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ seen / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# G. Machado, M. Oliveira and L. Fernandes, IEEE TVCG 15(6), 2009, severity 1
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_no_two_colours_look_the_same_to_anyone(palette: Sequence[str], vision: str) -> None:
    """A just noticeable difference is 2.3 in CIELAB; these are six of them apart, and more."""
    seen = [lab(colour, VISION[vision]) for colour in palette]
    closest = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
    assert closest > 14


def opened(browser: Tab, address: str = "/", *, phone: bool = False) -> None:
    browser.open("Map", address, phone=phone)
    browser.until_js("document.getElementById('clf-map-canvas')?.dataset.points === '400'")


def drawn(browser: Tab, colour: Sequence[int]) -> bool:
    """Whether the canvas shows this colour anywhere."""
    script = """
      const canvas = document.getElementById('clf-map-canvas');
      const seen = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      for (let i = 0; i < seen.length; i += 4)
        if (seen[i + 3] > 200 && [0, 1, 2].every((j) => Math.abs(seen[i + j] - arguments[0][j]) < 9)) return true;
      return false;"""
    return bool(browser.js(script, list(colour)))


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@needs_browser
def test_points_colours_legend_and_list(browser: Tab) -> None:
    opened(browser)
    browser.one("#clf-map-pictures").click()  # only dots
    assert "400 images · the axes hold" in browser.text("#clf-map-note")
    until(lambda: drawn(browser, rgb(LIGHT[2])))  # the folders, of which nobody has been asked
    browser.choose("#clf-map-colour", "")
    until(lambda: not drawn(browser, rgb(LIGHT[2])) and not browser.one("#clf-map-legend").is_displayed())

    browser.choose("#clf-map-colour", "@folder")
    until(lambda: browser.one("#clf-map-legend").is_displayed())
    assert [each.text.split("\n") for each in browser.all("#clf-map-legend li")] == [
        ["ants", "134"],
        ["bees", "133"],
        ["crabs", "133"],
    ]
    until(lambda: drawn(browser, rgb(LIGHT[0])) and drawn(browser, rgb(LIGHT[2])))
    crabs = browser.all("#clf-map-legend li button")[2]
    crabs.click()
    assert crabs.get_attribute("aria-pressed") == "true"
    until(lambda: drawn(browser, rgb(LIGHT[2])) and not drawn(browser, rgb(LIGHT[0])))
    crabs.click()

    browser.one("#clf-map-list summary").click()
    rows = [row.text for row in browser.all("#clf-map-list tbody tr")]
    assert [row.split()[:2] for row in rows] == [["ants", "134"], ["bees", "133"], ["crabs", "133"]]
    assert browser.all("#clf-map-list a")[1].get_attribute("aria-label") == (
        "Search from the image in the middle of bees"
    )

    browser.choose("#clf-map-colour", "year")
    until(lambda: browser.one("#clf-map-ramp").is_displayed())
    assert browser.text("#clf-map-ramp").split() == ["1900", "1999"]
    assert browser.errors() == []


@needs_browser
def test_pointing_shows_a_picture_and_a_click_searches_from_it(browser: Tab) -> None:
    opened(browser)
    canvas = browser.one("#clf-map-canvas")
    until(
        lambda: browser.js(
            "return performance.getEntriesByType('resource').filter(e => /thumbnail/.test(e.name)).length > 5"
        )
    )
    hover = ActionChains(browser.driver)
    found = False
    for step in range(40):  # somewhere near the middle there is a point
        hover.move_to_element_with_offset(canvas, 3 * step - 60, step % 7).perform()
        if found := browser.one("#clf-map-tip").is_displayed():
            break
    assert found
    until(lambda: ".png" in browser.text("#clf-map-tip b"))
    name = browser.text("#clf-map-tip b")
    assert browser.text("#clf-map-tip span") in FOLDERS
    browser.until_js("document.querySelector('#clf-map-tip img').naturalWidth > 0")

    hover.click().perform()
    browser.until_js("location.search.startsWith('?like=')")
    wanted = int(browser.js("return new URLSearchParams(location.search).get('like')"))
    assert f"{wanted - 1:03}.png" == name
    until(lambda: browser.one("#clf-result").is_displayed() and len(browser.all("#clf-result .clf-card")) > 0, 60)
    assert browser.errors() == []


@needs_browser
def test_keys_move_zoom_and_search(browser: Tab) -> None:
    opened(browser)
    canvas = browser.one("#clf-map-canvas")
    assert canvas.get_attribute("aria-label")
    browser.js("arguments[0].focus()", canvas)
    canvas.send_keys(Keys.ARROW_RIGHT)
    until(lambda: ".png" in browser.js("return document.getElementById('clf-map-spoken').textContent"))
    first = browser.text("#clf-map-tip b")
    canvas.send_keys(Keys.ARROW_LEFT)
    until(lambda: ".png" in browser.text("#clf-map-tip b") and browser.text("#clf-map-tip b") != first)
    before = browser.js("return document.getElementById('clf-map-canvas').toDataURL()")
    canvas.send_keys("+")
    until(lambda: browser.js("return document.getElementById('clf-map-canvas').toDataURL()") != before)
    canvas.send_keys("0", Keys.ESCAPE)
    until(lambda: not browser.one("#clf-map-tip").is_displayed())
    canvas.send_keys(Keys.ARROW_UP)
    until(lambda: ".png" in browser.text("#clf-map-tip b"))
    number = int(browser.text("#clf-map-tip b").removesuffix(".png"))
    canvas.send_keys(Keys.ENTER)
    browser.until_js(f"location.search === '?like={number + 1}'")


@needs_browser
def test_umap_says_how_far_it_is_and_then_the_map_changes(browser: Tab) -> None:
    opened(browser)
    browser.js("document.querySelector('[name=clf-map-kind][value=umap]').click()")
    until(lambda: "UMAP: laying out" in browser.text("#clf-map-wait"))
    browser.until_js("document.getElementById('clf-map-canvas').dataset.kind === 'umap'")
    assert not browser.one("#clf-map-wait").is_displayed()
    assert "UMAP keeps neighbours together" in browser.text("#clf-map-note")


@needs_browser
def test_the_filter_of_the_search_dims_the_rest(browser: Tab) -> None:
    opened(browser, "/?where=" + json.dumps({"@folder": "bees"}))
    until(lambda: "the search's filter lets 133 through" in browser.text("#clf-map-note"))


@needs_browser
def test_on_a_phone_a_tap_shows_the_picture_with_a_link(browser: Tab) -> None:
    opened(browser, phone=True)
    assert not browser.overflows()
    canvas = browser.one("#clf-map-canvas")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    tap = """
      const box = arguments[0].getBoundingClientRect();
      for (const kind of ['pointerdown', 'pointerup'])
        arguments[0].dispatchEvent(new PointerEvent(kind, {pointerId: 7, pointerType: 'touch', bubbles: true,
          clientX: box.left + box.width / 2 + arguments[1], clientY: box.top + box.height / 2}));
      return !document.getElementById('clf-map-tip').hidden"""
    assert any(browser.js(tap, canvas, 4 * step) for step in range(20))
    until(lambda: len(browser.all("#clf-map-tip a")) == 1)
    assert browser.text("#clf-map-tip a") == "Search from this"
    assert not browser.overflows()


@needs_browser
def test_one_gallery_that_is_only_read_says_how_to_start_with_more(browser: Tab) -> None:
    browser.open("Compare")
    until(lambda: "--gallery GALLERY_A --gallery GALLERY_B" in browser.text("#clf-compare-result"))
    assert not browser.one("#clf-compare-bar").is_displayed()
    browser.go("Add images")
    until(lambda: "--writable" in browser.text("#clf-ingest"))
    assert not browser.all("#clf-ingest input")
