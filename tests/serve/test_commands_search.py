"""clf search from the command line: queries, filters, ranges, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import Run, one_error
from serve_helpers import write_model

from clf_serve.combine import combine
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery


def found(run: Run, *words: object) -> list[dict[str, Any]]:
    code, out, err = run("search", *words, "--json")
    assert code == 0, err
    hits: list[dict[str, Any]] = json.loads(out)["hits"]
    return hits


def test_search_needs_the_gallery_alone(run: Run, gallery: Path, photos: Path) -> None:
    hits = found(run, gallery, photos / "0004.png", "-k", "3")
    assert len(hits) == 3
    assert hits[0]["uri"] == str(photos / "0004.png") and hits[0]["score"] == pytest.approx(1, abs=1e-6)

    code, out, err = run("search", gallery, photos / "0004.png", "-k", "3")
    assert code == 0 and "1.0000" in out and str(photos / "0004.png") in out.replace("\n", "") and err == ""


def test_an_image_of_the_gallery_needs_no_model(
    run: Run, gallery: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "__init__", no_work)
    everything = [hit["id"] for hit in found(run, gallery, "--id", "3", "-k", "100")]

    assert sorted([*everything, 3]) == list(range(1, 21))  # itself is left out
    assert [hit["id"] for hit in found(run, gallery, "--id", 3, "--offset", 5, "-k", 4)] == everything[5:9]
    _, out, _ = run("search", gallery, "--id", "3", "--offset", "5", "-k", "1")
    assert out.split("\n")[1].split()[0] == "6"


def test_several_queries_are_combined(run: Run, gallery: Path, photos: Path, engine: Engine) -> None:
    names = [photos / f"{i:04d}.png" for i in (1, 2, 3)]
    with Gallery(gallery) as opened:
        vectors = [opened.vector(5), *(engine.embed(engine.prepare(name)[None])[0] for name in names)]
        wanted = opened.search(combine(np.stack(vectors), [1, 1, 1, -0.5]), 6, but=[5])  # type: ignore[arg-type]

    hits = found(run, gallery, names[0], "--like", names[1], "--unlike", names[2], "--id", 5, "-k", 6)

    assert [hit["id"] for hit in hits] == [hit.id for hit in wanted]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-5)


def test_queries_that_cancel_out_are_refused(run: Run, gallery: Path, photos: Path) -> None:
    one, twice = photos / "0001.png", ["--unlike", photos / "0001.png"] * 2

    assert "name fewer images, or others" in one_error(run("search", gallery, one, *twice))


def test_a_filter_by_metadata(run: Run, gallery: Path, photos: Path) -> None:
    with Gallery(gallery, write=True) as opened:
        opened.set_metadata({2: {"label": "a", "year": 2020}, 4: {"label": "a", "year": 2024}, 6: {"label": "b"}})

    assert {hit["id"] for hit in found(run, gallery, photos / "0001.png", "--where", '{"label": "a"}')} == {2, 4}
    (hit,) = found(run, gallery, "--id", 1, "--where", '{"year": {"$gt": 2021}}')
    assert (hit["id"], hit["metadata"]) == (4, {"label": "a", "year": 2024})
    _, out, _ = run("search", gallery, "--id", 1, "--where", '{"label": "none"}')
    assert "no image of the gallery is like that" in out


def test_all_images_above_a_score(run: Run, gallery: Path, photos: Path) -> None:
    everything = found(run, gallery, photos / "0007.png", "-k", "20")
    least = (everything[11]["score"] + everything[12]["score"]) / 2  # between two scores, so that rounding is harmless

    hits = found(run, gallery, photos / "0007.png", "--min-score", least)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in everything[:12]]
    few = found(run, gallery, photos / "0007.png", "--min-score", least, "-k", 3, "--offset", 2)
    assert [hit["id"] for hit in few] == [hit["id"] for hit in everything[2:5]]


def test_the_recall_of_an_approximate_index_is_said(
    run: Run, gallery: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    facts = Gallery.facts

    def approximate(self: Gallery) -> Any:
        found = facts(self)
        return replace(found, index=replace(found.index, kind="hnsw", exact=False, recall=0.987, queries=200))

    monkeypatch.setattr(Gallery, "facts", approximate)

    _, _, err = run("search", gallery, photos / "0001.png")
    assert "approximate index (hnsw): recall@10 0.987, measured on 200 queries" in " ".join(err.split())
    _, out, _ = run("search", gallery, photos / "0001.png", "--json")
    assert json.loads(out)["index"] == {"exact": False, "recall": 0.987}
    _, out, err = run("search", gallery, photos / "0001.png", "--exact", "--json")
    assert json.loads(out)["index"] == {"exact": True, "recall": None} and err == ""


def test_the_html_page_needs_nothing_else(run: Run, gallery: Path, photos: Path, tmp_path: Path) -> None:
    for query in ([photos / "0001.png"], ["--id", 2]):
        code, _, _ = run("search", gallery, *query, "-k", "4", "--html", tmp_path / "r.html")

        page = (tmp_path / "r.html").read_text()
        assert code == 0
        assert page.count("data:image/jpeg;base64,") == 5 and page.count("<li") == 4
        assert "http" not in page and "<script" not in page and str(photos / "0001.png") in page


def test_a_gallery_of_another_model_cannot_be_searched(run: Run, gallery: Path, photos: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)

    said = one_error(run("search", gallery, photos / "0000.png", "--model", other))

    assert "was made with model tiny" in said and "not with other" in said


def test_a_model_that_moved_is_asked_for(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    run("index", folder, photos, "-o", tmp_path / "g")
    folder.rename(tmp_path / "moved")

    code, _, err = run("search", tmp_path / "g", photos / "0000.png")
    assert code == 2 and "is not an exported model" in " ".join(err.split())
    words = ("search", tmp_path / "g", photos / "0000.png", "--model", tmp_path / "moved", "--json")
    assert run(*words)[0] == 0
