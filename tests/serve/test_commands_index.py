"""clf index from the command line: what it prints, what it loads, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_helpers import Run, one_error
from serve_helpers import picture, write_model, write_pictures

from clf_serve.engine import Engine
from clf_serve.gallery import Gallery

NOTHING = dict.fromkeys(
    ("added", "updated", "unchanged", "removed", "renamed", "touched", "copied", "described", "kept", "resting"), 0
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", 12)
    return tmp_path / "photos"


def test_a_second_run_says_that_nothing_changed(run: Run, model: Path, folder: Path, tmp_path: Path) -> None:
    code, out, err = run("index", model, folder, "-o", tmp_path / "g")
    assert code == 0 and "12 images (12 added, 0 updated, 0 unchanged, 0 removed, 0 skipped)" in out and err == ""
    _, text, _ = run("index", model, folder, "-o", tmp_path / "g", "--json")
    about = {"total": 12, "gallery": str(tmp_path / "g"), "skipped": [], "unmatched": []}
    assert json.loads(text) == NOTHING | {"unchanged": 12} | about


def change(folder: Path) -> dict[str, int]:
    """The counts that follow."""
    (folder / "0001.png").rename(folder / "renamed.png")
    (folder / "0002.png").unlink()
    picture(70).save(folder / "0003.png")
    picture(51).save(folder / "new.png")
    (folder / "0004.png").touch()
    counts = {"renamed": 1, "removed": 1, "updated": 1, "added": 1, "touched": 1, "unchanged": 8}
    return NOTHING | counts


def test_a_rehearsal_changes_nothing(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run("index", model, folder, "-o", tmp_path / "g", "--dry-run")
    assert "would have: 12 added" in out and "nothing was changed" in out
    assert not (tmp_path / "g").exists()

    run("index", model, folder, "-o", tmp_path / "g")
    wanted = change(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
        code, text, _ = run("index", model, folder, "-o", tmp_path / "g", "--dry-run", "--json")
    told = json.loads(text)
    assert code == 0 and {name: told[name] for name in wanted} == wanted and told["dry_run"] is True
    with Gallery(tmp_path / "g") as opened:
        assert len(opened) == 12
    _, text, _ = run("index", model, folder, "-o", tmp_path / "g", "--json")
    told = json.loads(text)
    assert {name: told[name] for name in wanted} == wanted


def test_the_model_is_loaded_only_to_embed(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("index", model, folder, "-o", tmp_path / "g")
    (folder / "0001.png").rename(folder / "renamed.png")

    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))

    assert "1 renamed" in run("index", model, folder, "-o", tmp_path / "g")[1]


def test_most_images_gone_is_an_error_after_the_rest_was_done(
    run: Run, model: Path, folder: Path, tmp_path: Path
) -> None:
    run("index", model, folder, "-o", tmp_path / "g")
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    picture(70).save(folder / "new.png")

    said = one_error(run("index", model, folder, "-o", tmp_path / "g"))

    assert "11 images below" in said and "--allow-removals removes them" in said
    with Gallery(tmp_path / "g") as opened:
        assert len(opened) == 13
    code, text, _ = run("index", model, folder, "-o", tmp_path / "g", "--allow-removals", "--json")
    assert code == 0 and json.loads(text)["removed"] == 11


def test_metadata_without_images_is_counted_with_examples(run: Run, model: Path, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text("file,n\n0000.png,1\n" + "".join(f"none{i}.png,1\n" for i in range(7)))

    _, out, _ = run("index", model, folder, "-o", tmp_path / "g", "--metadata", table)

    text = " ".join(out.split())
    assert f"7 rows of {table} name no image below {folder}: none0.png, none1.png" in text
    assert "none4.png, ..." in text and "none5.png" not in text


def test_the_index_is_chosen_by_options(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, float | None]] = []
    optimize = Gallery.optimize

    def recorded(self: Gallery, kind: str | None = None, **others: Any) -> Any:
        asked.append((kind, others["recall"]))
        return optimize(self, kind, **others)

    monkeypatch.setattr(Gallery, "optimize", recorded)
    for words in ([], ["--index", "hnsw", "--memory", "700MiB"], ["--index", "hnsw"], ["--recall", "0.9"], []):
        assert run("index", model, folder, "-o", tmp_path / "g", *words)[0] == 0

    assert asked == [("hnsw", None), (None, 0.9)]  # what was chosen before is not built again
    with Gallery(tmp_path / "g") as opened:
        assert opened.wishes == ("hnsw", 700 * 2**20, 0.9)


def test_building_an_index_is_told(
    run: Run, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(folder, 60)
    said = "building the search index, which may take minutes"
    assert said not in run("index", model, folder, "-o", tmp_path / "flat")[2]  # no graph, no lists: done at once

    monkeypatch.setattr("clf_serve.index.plan._LEAST_FOR_LISTS", 10)
    assert said in run("index", model, folder, "-o", tmp_path / "g", "--index", "ivf")[2]
    assert said not in run("index", model, folder, "-o", tmp_path / "g")[2]
    shutil.rmtree(tmp_path / "g" / "index")
    picture(70).save(folder / "new.png")
    assert said in run("index", model, folder, "-o", tmp_path / "g")[2]

    exported = tmp_path / "e.npz"
    assert run("gallery", "export", tmp_path / "g", exported)[0] == 0
    assert said not in run("gallery", "import", exported, "-o", tmp_path / "i", "--model", model)[2]  # few: flat
    monkeypatch.setattr("clf_serve.index.plan.FLAT_VALUES", 1)
    assert said in run("gallery", "import", exported, "-o", tmp_path / "j", "--model", model)[2]
    other = write_model(tmp_path / "other", size=64)
    assert said in run("gallery", "reembed", tmp_path / "g", other, "-o", tmp_path / "r")[2]


def test_a_gallery_that_cannot_be_written(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(sqlite3, "connect", refuse)

    said = one_error(run("index", model, photos, "-o", tmp_path / "g"))

    assert "cannot be written: attempt to write a readonly database" in said and str(tmp_path / "g") in said


def test_an_index_that_cannot_be_saved_is_a_note(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Error in write_index:\nNo space left on device")

    from clf_serve.gallery import searching

    monkeypatch.setattr(searching.VectorIndex, "save", full)

    code, out, err = run("index", model, photos, "-o", tmp_path / "g")

    assert code == 0 and "20 images (20 added" in out
    assert "the index could not be saved (Error in write_index: No space left on device)" in " ".join(err.split())
    with Gallery(tmp_path / "g") as opened:
        assert len(opened) == 20


def test_a_model_that_does_not_load_makes_no_gallery(run: Run, folder: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    shutil.copy(folder / "0000.png", model / "encoder.onnx")

    one_error(run("index", model, folder, "-o", tmp_path / "g"))

    assert not (tmp_path / "g").exists()
