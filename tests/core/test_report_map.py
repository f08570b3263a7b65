"""The embedding map: coordinates, thumbnails, legend, and what goes into the page."""

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clf.report import pictures
from clf.report.embedding import EmbeddingMap, kept, make_map, pca, tsne
from clf.report.pictures import sheet
from clf.report.scatter import MOST_CLASSES, embedding_map, script_json, slots

HOSTILE = "</script><script>alert(1)</script><!-- & \"'"


def features(n: int, d: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def mapped(n: int, **changes: Any) -> EmbeddingMap:
    values = {"seed": 0, "split": "test", "total": n, **changes}
    found = make_map(features(n), torch.zeros(n, 3, 8, 8, dtype=torch.uint8), **values)
    assert found is not None
    return found


def data(html: str) -> dict[str, Any]:
    """What the script of the page reads, as a browser would find it: up to the first end of a script element."""
    inside = html.split('<script type="application/json">')[1].split("</script")[0]
    return json.loads(inside)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (3, 3)])
def test_pca_is_the_singular_value_decomposition_of_centred_rows(shape: tuple[int, int]) -> None:
    x = features(*shape).double().numpy()
    points, shares = pca(x, 2)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(u * s)[:, :2], atol=1e-9)
    np.testing.assert_allclose(shares, (s**2 / (s**2).sum())[:2], atol=1e-12)
    assert (points[np.abs(points).argmax(0), range(2)] > 0).all()


def test_the_map_shows_the_pca_of_unit_length_features() -> None:
    found = mapped(30)
    x = torch.nn.functional.normalize(features(30).double(), dim=1).numpy()
    np.testing.assert_allclose(found.pca.points, pca(x, 2)[0], atol=1e-9)
    assert found.explained == pytest.approx(tuple(pca(x, 2)[1]))


def test_tsne_repeats_and_keeps_far_groups_apart() -> None:
    centres = 20 * np.eye(3, 12)
    x = np.repeat(centres, 20, axis=0) + 0.1 * features(60).double().numpy()
    reduced, _ = pca(x, 10)
    first = tsne(reduced, reduced[:, :2], 10.0, 7)
    assert (first == tsne(reduced, reduced[:, :2], 10.0, 7)).all()
    distance = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(1) // 20 == np.arange(60) // 20).all()


def test_kept_counts_shared_neighbours() -> None:
    line = np.array([[0.0], [1.0], [2.1], [3.3]])
    assert kept(line, np.hstack([line, line]), k=1) == 1.0
    # nearest on the line: 1, 0, 1, 2; with the last two exchanged: 1, 0, 3, 1
    assert kept(line, np.hstack([line[[0, 1, 3, 2]], np.zeros((4, 1))]), k=1) == 0.5


@pytest.mark.parametrize("broken", ["one image", "all the same", "not finite"])
def test_without_anything_to_draw_there_is_no_map(broken: str) -> None:
    x = {"one image": features(1), "all the same": torch.ones(20, 4), "not finite": torch.full((20, 4), torch.nan)}[
        broken
    ]
    found = make_map(x, torch.zeros(len(x), 3, 8, 8, dtype=torch.uint8), seed=0, split="test", total=len(x))
    assert found is None
    assert embedding_map(found) == ""


@pytest.mark.parametrize("n", [2, 3, 9])
def test_few_images_have_a_pca_and_no_tsne(n: int) -> None:
    found = mapped(n)
    html = embedding_map(found)
    assert found.tsne is None
    assert found.pca.points.shape == (n, 2)
    assert html.count("<use ") == n
    assert "t-SNE" not in html
    assert data(html)["tsne"] is None


def test_ten_images_have_both() -> None:
    html = embedding_map(mapped(10))
    assert 'data-layout="tsne"' in html
    assert len(data(html)["tsne"]) == 10


def test_each_image_is_a_mark_where_the_data_say() -> None:
    html = embedding_map(mapped(25, labels=[i % 3 for i in range(25)], class_names=("a", "b", "c"), total=100))
    picture = html.split("</svg>")[0]
    places = re.findall(r"<use [^>]*translate\(([0-9.]+) ([0-9.]+)\)", picture)
    assert [(round(10 * float(x)), round(10 * float(y))) for x, y in places] == [tuple(p) for p in data(html)["pca"]]
    assert len(places) == 25
    assert "25 of 100 test images" in html


def test_both_axes_have_one_scale_and_up_is_up() -> None:
    found = mapped(25)
    x, y = np.array(data(embedding_map(found))["pca"]).T
    a, b = found.pca.points.T
    scale = np.ptp(x) / np.ptp(a)
    np.testing.assert_allclose(y - y[0], -scale * (b - b[0]), atol=1.5)


def decoded(uri: str) -> Image.Image:
    kind, _, code = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(code)))


@pytest.mark.parametrize(("side", "shown", "cell"), [(16, 16, 16), (28, 28, 32), (32, 32, 32), (96, 48, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_thumbnail_lies_in_its_cell(side: int, shown: int, cell: int, channels: int) -> None:
    n = 7
    levels = torch.arange(n) * 30 + 20
    images = levels.to(torch.uint8).view(n, 1, 1, 1).expand(n, channels, side, side)
    found = sheet(images)
    assert (found.side, found.cell, found.columns, found.rows) == (shown, cell, 3, 3)
    picture = decoded(found.uri)
    assert picture.size == (3 * cell, 3 * cell)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    pixels = np.asarray(picture.convert("L"), float)
    for i in range(n):
        top, left = i // 3 * cell, i % 3 * cell
        part = pixels[top : top + cell, left : left + cell]
        assert np.abs(part - float(levels[i])).max() <= 3, i


def test_a_heavy_sheet_is_compressed_more(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fine = len(base64.b64decode(sheet(noise).uri.partition(",")[2]))
    monkeypatch.setattr(pictures, "HEAVIEST", fine - 1)
    assert len(base64.b64decode(sheet(noise).uri.partition(",")[2])) < fine


def test_every_class_has_its_own_colour_and_mark() -> None:
    found, entry = slots([*range(MOST_CLASSES), 3, 3], [f"class {i}" for i in range(MOST_CLASSES)])
    assert len({slot.use for slot in found}) == MOST_CLASSES
    assert [slot.images for slot in found][:5] == [1, 1, 1, 3, 1]
    assert entry == [*range(MOST_CLASSES), 3, 3]


def test_of_many_classes_the_smallest_are_one_entry() -> None:
    labels = [label for label in range(25) for _ in range(25 - label)]
    found, entry = slots([*labels, -1], [])
    assert [slot.name for slot in found] == [*(f"class {i}" for i in range(19)), "6 other classes", "no label"]
    assert found[19].images == sum(range(1, 7))
    assert [entry[labels.index(i)] for i in (0, 18, 19, 24)] == [0, 18, 19, 19]
    assert entry[-1] == 20
    assert len({slot.use for slot in found}) == 21


def test_one_class_and_no_labels() -> None:
    assert embedding_map(mapped(5, labels=[0] * 5, class_names=("cat",))).count("data-slot=") == 1
    html = embedding_map(mapped(5))
    assert "data-slot=" not in html
    assert data(html)["words"] == [""] * 5


def test_names_cannot_leave_their_place() -> None:
    html = embedding_map(mapped(4, labels=[0, 1, 0, 1], class_names=(HOSTILE, "b"), names=[HOSTILE] * 4))
    assert "<script>alert" not in html
    assert "<!--" not in html
    assert html.count("</script>") == 1
    assert data(html)["words"][0] == HOSTILE
    assert data(html)["files"] == [HOSTILE] * 4
    assert "&lt;/script&gt;" in html


def test_script_data_round_trip() -> None:
    content = {"a": [HOSTILE, "\u2028", "é", 1.5, None]}
    text = script_json(content)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == content


def test_the_neighbours_that_chance_alone_would_keep_are_told() -> None:
    assert embedding_map(mapped(11)).count("100 % would be by chance") == 2
    assert embedding_map(mapped(101)).count("10 % would be by chance") == 2
