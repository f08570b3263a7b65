"""``clf duplicates``: table, JSON, paths for scripts, and the page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from duplicates_helpers import fill, jpeg, scene
from test_result_page import Tags

from clf_serve.duplicates import page as duplicates_report
from clf_serve.duplicates.finding import find
from clf_serve.duplicates.page import duplicates_page
from clf_serve.duplicates.text import size
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync.indexing import index_images

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_cli: Callable[..., object]) -> Run:
    def start(*words: object) -> tuple[int, str, str]:
        outcome = run_cli("duplicates", *map(str, words))
        return outcome.code, outcome.out, outcome.err  # type: ignore[attr-defined]

    return start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight scenes, a copy of the first, and a small version of the second."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(8):
        (folder / f"{seed}.jpg").write_bytes(jpeg(scene(seed)))
    (folder / "copy.jpg").write_bytes(jpeg(scene(0)))
    (folder / "small.jpg").write_bytes(jpeg(scene(1).resize((150, 110))))
    os.utime(folder / "0.jpg", (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture
def shelf(tmp_path: Path, folder: Path, engine: Engine) -> Path:
    path = tmp_path / "shelf"
    index(path, folder, engine)
    return path


def index(path: Path, folder: Path, engine: Engine) -> None:
    with Gallery.open_or_create(path, Identity.of(engine.manifest), engine.folder) as gallery:
        index_images(gallery, engine, folder)


def test_the_table_names_what_to_keep_and_what_could_go(run: Run, shelf: Path, folder: Path) -> None:
    code, out, err = run(shelf, "--threshold", "0.9999")

    assert code == 0 and err == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["keep", "300", "x", "220"] in [line[:4] for line in lines if line and line[-1] == str(folder / "0.jpg")]
    assert any(line[:2] == ["same", "bytes"] and line[-1] == str(folder / "copy.jpg") for line in lines)
    assert any(line[:2] == ["same", "picture"] and line[-1] == str(folder / "small.jpg") for line in lines)
    assert f"{shelf}: 10 images, 2 groups" in out and "Threshold 0.9999, as given." in out


def test_json_has_its_schema(run: Run, shelf: Path, folder: Path) -> None:
    code, out, _ = run(shelf, "--json", "--threshold", "0.9999")

    report = json.loads(out)
    assert code == 0 and set(report) == {"format", "gallery", "level", "images", "could_go", "near", "groups"}
    assert (report["format"], report["gallery"], report["level"], report["images"]) == (1, str(shelf), "near", 10)
    copy, small = (folder / "copy.jpg").stat().st_size, (folder / "small.jpg").stat().st_size
    assert report["could_go"] == {
        "bytes": {"images": 1, "bytes": copy},
        "picture": {"images": 1, "bytes": small},
        "near": {"images": 0, "bytes": 0},
    }
    assert set(report["near"]) == {"threshold", "basis", "random_pairs", "thresholds", "same_picture_cosines"}
    assert report["near"]["basis"] == "given" and set(report["near"]["thresholds"][0]) == {
        "cosine",
        "pairs",
        "by_chance",
    }
    first, second = report["groups"]
    assert (first["level"], first["bytes_freed"]) == ("bytes", copy) and first["keep"] == first["images"][0]["id"]
    assert second["images"][1] == {
        "id": second["images"][1]["id"],
        "uri": str(folder / "small.jpg"),
        "key": str(folder / "small.jpg"),
        "sha256": second["images"][1]["sha256"],
        "width": 150,
        "height": 110,
        "mtime_ns": (folder / "small.jpg").stat().st_mtime_ns,
        "bytes": small,
        "level": "picture",
        "spare": "picture",
        "picture": second["keep"],
        "cosine": None,
    }
    assert json.loads(run(shelf, "--json", "--level", "bytes")[1])["near"] is None


def test_paths_are_for_scripts(run: Run, shelf: Path, folder: Path) -> None:
    assert run(shelf, "--paths", "--level", "bytes") == (0, f"{folder / 'copy.jpg'}\n", "")
    assert run(shelf, "--paths", "-0", "--level", "picture") == (
        0,
        f"{folder / 'copy.jpg'}\0{folder / 'small.jpg'}\0",
        "",
    )


def test_nothing_is_listed_unless_the_one_to_keep_is_there(run: Run, shelf: Path, folder: Path) -> None:
    (folder / "0.jpg").unlink()
    (folder / "small.jpg").write_bytes(b"something else by now")

    code, out, err = run(shelf, "--paths", "--level", "picture")

    assert (code, out) == (0, "")
    assert "1 groups left out, because the file to keep is not there" in err
    assert "1 files left out, because they are not there as they were indexed" in err


def test_another_name_of_the_file_to_keep_is_not_listed(run: Run, tmp_path: Path, engine: Engine) -> None:
    folder, path = tmp_path / "linked", tmp_path / "gallery"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(jpeg(scene(0)))
    (folder / "a.jpg").symlink_to(folder / "b.jpg")
    (folder / "c.jpg").hardlink_to(folder / "b.jpg")
    index(path, folder, engine)

    code, out, err = run(path, "--paths", "--level", "bytes")

    assert (code, out) == (0, "") and "2 files left out, because they are the file to keep by another name" in err


def test_a_name_with_a_line_break_wants_zero_bytes(run: Run, tmp_path: Path, engine: Engine) -> None:
    folder, path = tmp_path / "odd", tmp_path / "gallery"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(scene(0)))
    (folder / "b\nc.jpg").write_bytes(jpeg(scene(0)))
    os.utime(folder / "a.jpg", (1_000_000_000, 1_000_000_000))
    index(path, folder, engine)

    assert run(path, "--paths", "--level", "bytes")[1:] == (
        "",
        "1 files left out, because their name holds a line break; use -0\n",
    )
    assert run(path, "--paths", "-0", "--level", "bytes")[1] == f"{folder}/b\nc.jpg\0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--paths"], "--paths wants --level"),
        (["--paths", "--json", "--level", "bytes"], "choose one"),
        (["-0"], "give --paths too"),
        (["--threshold", "1.5"], "no cosine"),
        (["--threshold", "0.9", "--level", "bytes"], "of the near level only"),
        (["--where", "{"], "--where is not JSON"),
        (["--where", '{"a": {"$what": 1}}'], "$what"),
        (["--html", "/nowhere/at/all.html"], "the folder /nowhere/at of all.html does not exist"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(run: Run, shelf: Path, words: list[str], message: str) -> None:
    code, out, err = run(shelf, *words)

    assert code == 2 and out == "" and message in " ".join(err.split())


def test_a_missing_gallery(run: Run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "none")

    assert code == 2 and "is not a gallery" in " ".join(err.split())


def test_the_page_is_whole_and_believes_nobody(run: Run, tmp_path: Path, engine: Engine) -> None:
    evil = '</bdi><script>alert(1)</script>".jpg'
    files = {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(40)}
    files |= {evil: jpeg(scene(0)), "small.jpg": jpeg(scene(1).resize((150, 110)))}
    with fill(tmp_path / "gallery", engine, files):
        pass

    code, _, _ = run(tmp_path / "gallery", "--html", tmp_path / "page.html", "--threshold", "0.99")

    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert code == 0 and tags.open == [] and [tag for tag, _ in tags.seen].count("script") == 1
    assert all((a["src"] or "").startswith("data:") for tag, a in tags.seen if tag == "img")
    assert not any("href" in a and not (a["href"] or "").startswith("#") for _, a in tags.seen)
    ids = {attributes["id"] for _, attributes in tags.seen if "id" in attributes}
    assert {(a["href"] or "")[1:] for tag, a in tags.seen if tag == "a" and "href" in a} <= ids
    assert {"bytes", "picture", "threshold"} <= ids and "Just below" in text and "nothing was deleted" in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_page_too_large_says_what_it_leaves_out(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery(shelf) as gallery:
        found = find(gallery, threshold=1e-3)
        monkeypatch.setattr(duplicates_report, "BUDGET", 0)
        text = duplicates_page(found, "shelf", lambda id_: b"x" * 1000)

    assert "The first 0 of" in text and "--json</code> lists them all" in text


def test_without_duplicates_the_page_says_so(tmp_path: Path, engine: Engine) -> None:
    with fill(tmp_path / "gallery", engine, {"a": jpeg(scene(0)), "b": jpeg(scene(3))}) as gallery:
        text = duplicates_page(find(gallery, threshold=1.0), "g", lambda id_: b"")

    assert "No image is there more than once" in text and 'class="group"' not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_449, "99.4 kB"), (150_000, "150 kB"), (999_999, "1.0 MB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_a_name_cannot_act_on_the_terminal(run: Run, tmp_path: Path, engine: Engine) -> None:
    folder, path = tmp_path / "odd", tmp_path / "gallery"
    folder.mkdir()
    for name in ("a.jpg", "b\nc\x1b[31m\u202e[bold]\u00e9.jpg"):
        (folder / name).write_bytes(jpeg(scene(0)))
    index(path, folder, engine)

    out = run(path, "--level", "bytes")[1]

    assert "b\\nc\\x1b[31m\\u202e[bold]\u00e9.jpg\n" in out and "\x1b" not in out and "\u202e" not in out
