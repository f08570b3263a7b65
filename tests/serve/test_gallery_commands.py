"""clf gallery info, check, optimize, move, delete, backup, restore, export and import from the command line."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import contents, entry, made
from serve_helpers import DIM, write_model

from clf.manifest import MODEL_FILE, read_manifest
from clf_serve.checking import check
from clf_serve.commands.terminal import readable, size_in_bytes
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.index import VectorIndex
from clf_serve.index.vector_index import Stamp

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run_cli: Callable[..., Any]) -> Run:
    def start(*words: object) -> tuple[int, str, str]:
        outcome = run_cli("gallery", *map(str, words))
        return outcome.code, outcome.out, outcome.err

    return start


def sql(folder: Path, statement: str, *values: object) -> None:
    """Damage done by hand."""
    connection = sqlite3.connect(folder / "gallery.sqlite")
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def said(outcome: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = outcome
    assert code == 0 and not err, outcome
    facts: dict[str, Any] = json.loads(out)
    return facts


def test_info_for_programs(run: Run, gallery: Path, engine: Engine) -> None:
    with Gallery(gallery, write=True) as opened:
        ids = opened.ids().tolist()
        opened.set_metadata({id_: {"label": "cat" if id_ % 2 else "dog"} for id_ in ids})
        opened.save_index()

    facts = said(run("info", gallery, "--json"))

    assert facts["images"] == 20 and facts["format"] == 2 and facts["note"] is None
    assert facts["bytes"] == sum(path.stat().st_size for path in gallery.rglob("*") if path.is_file())
    model = {"name": "tiny", "sha256": engine.manifest.sha256, "dim": DIM, "folder": str(engine.folder.resolve())}
    assert facts["model"] == {**model, "state": "there"}
    label = facts["fields"]["label"]
    assert (label["type"], label["entries"], label["distinct"]) == ("text", 20, 2)
    assert sorted(label["values"]) == [["cat", 10], ["dog", 10]]
    assert facts["fields"]["@folder"]["values"] == [["", 20]]
    index = facts["index"]
    assert (index["kind"], index["vectors"], index["exact"], index["recall"]) == ("flat", 20, True, 1.0)
    assert facts["written"].endswith("+00:00") and facts["written"].startswith("20")


def test_info_for_people(run: Run, gallery: Path) -> None:
    code, out, _ = run("info", gallery)

    assert code == 0
    assert "20 images" in out and "tiny (" in out and "exact: every vector is compared" in out


def test_info_says_what_became_of_the_model(run: Run, photos: Path, tmp_path: Path, run_cli: Any) -> None:
    model = write_model(tmp_path / "model")
    assert run_cli("index", str(model), str(photos), "-o", str(tmp_path / "g")).code == 0
    model.rename(tmp_path / "moved")
    assert said(run("info", tmp_path / "g", "--json"))["model"]["state"] == "missing"
    assert "not there any more" in run("info", tmp_path / "g")[1]
    write_model(tmp_path / "model", name="other", cells=4, dim=48)
    assert said(run("info", tmp_path / "g", "--json"))["model"]["state"] == "another"


def test_a_sound_gallery(run: Run, gallery: Path) -> None:
    report = said(run("check", gallery, "--json"))

    assert report["sound"] is True
    assert [one["part"] for one in report["findings"]] == ["database", "vectors", "thumbnails", "index", "model"]
    assert all(one["sound"] and one["remedy"] is None for one in report["findings"])
    code, out, _ = run("check", gallery, "--all")
    assert code == 0 and out.count(" ok ") == 5


@pytest.mark.parametrize(
    ("statement", "part", "what", "remedy"),
    [
        (
            "UPDATE vectors SET vector = x'00' WHERE id = 5",
            "vectors",
            "1 image (id 5) with a vector that is not",
            "--id 5",
        ),
        (
            "UPDATE vectors SET vector = zeroblob(48) WHERE id IN (5, 6)",
            "vectors",
            "2 images (id 5, 6) with a vector that is not 12 numbers of unit length",
            """--where '{"@id": {"$in": [5, 6]}}'""",
        ),
        (
            "DELETE FROM vectors WHERE id = 5",
            "database",
            "1 image (id 5) in images and not in vectors",
            "restore a backup",
        ),
        (
            "DELETE FROM images WHERE id = 5",
            "database",
            "1 image (id 5) in vectors and not in images",
            "restore a backup",
        ),
        (
            "UPDATE images SET metadata = '{' WHERE id = 5",
            "database",
            "the metadata of 1 image (id 5)",
            "restore a backup",
        ),
        ("UPDATE thumbnails SET data = x'ffd8ff' WHERE id = 5", "thumbnails", "1 image (id 5) whose picture", "--id 5"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(
    run: Run, gallery: Path, statement: str, part: str, what: str, remedy: str
) -> None:
    sql(gallery, statement)

    code, out, _ = run("check", gallery, "--json")

    report = json.loads(out)
    assert code == 1 and report["sound"] is False
    wrong = next(one for one in report["findings"] if not one["sound"])
    assert wrong["part"] == part and what in wrong["what"] and remedy in wrong["remedy"]
    code, out, _ = run("check", gallery)
    assert code == 1 and "WRONG" in out and what in " ".join(out.split())


@pytest.mark.parametrize("damage", ["thumbnails SET data = x'ffd8ff'", "vectors SET vector = zeroblob(48)"])
def test_the_remedy_for_damaged_images_works(
    run: Run, gallery: Path, photos: Path, engine: Engine, run_cli: Any, damage: str
) -> None:
    sql(gallery, f"UPDATE {damage} WHERE id IN (5, 7)")
    remedy = next(one.remedy for one in check(gallery) if not one.sound)
    where = remedy.partition("--where '")[2].rstrip("'")

    assert run("delete", gallery, "--where", where, "--yes")[0] == 0
    assert run_cli("index", str(engine.folder), str(photos), "-o", str(gallery)).code == 0

    assert said(run("check", gallery, "--json"))["sound"] is True and len(contents(gallery)) == 20


def test_a_damaged_database(run: Run, gallery: Path) -> None:
    data = (gallery / "gallery.sqlite").read_bytes()
    (gallery / "gallery.sqlite").write_bytes(data[: len(data) // 2])

    code, out, _ = run("check", gallery, "--json")

    assert code == 1
    finding = json.loads(out)["findings"][0]
    assert finding["part"] == "database" and not finding["sound"]
    assert f"clf gallery restore FILE -o {gallery} --replace" in finding["remedy"]


def test_an_index_that_does_not_find_a_vector(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Gallery.search

    def forgetful(self: Gallery, vector: Any, k: int, **options: Any) -> Any:
        hits = search(self, vector, k + 1, **options)
        return hits if options.get("exact") else [hit for hit in hits if hit.id != 5][:k]

    monkeypatch.setattr(Gallery, "search", forgetful)
    monkeypatch.setattr("clf_serve.checking._LOST", 10_000)

    finding = next(one for one in check(gallery) if one.part == "index")

    assert not finding.sound and finding.what == "1 image (id 5) not found by their own vectors"
    assert finding.remedy == f"build it anew: clf gallery optimize {gallery}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda index: index.update([5], [], np.empty((0, DIM), np.float32), index.generation),
            "1 image (id 5) not in it",
        ),
        (
            lambda index: index.update([], [99], entry(99, DIM).vector[None], index.generation),
            "1 image (id 99) in it and not in the database",
        ),
    ],
)
def test_a_saved_index_of_other_images(
    run: Run, gallery: Path, change: Callable[[VectorIndex], None], what: str
) -> None:
    connection = sqlite3.connect(gallery / "gallery.sqlite")
    facts = dict(connection.execute("SELECT key, value FROM meta"))
    connection.close()
    index, _ = VectorIndex.open(gallery / "index", Stamp(facts["uuid"], DIM, int(facts["generation"])))
    change(index)
    index.save(gallery / "index", facts["uuid"])

    finding = next(one for one in check(gallery) if one.part == "index")

    assert not finding.sound and finding.what == what
    assert run("optimize", gallery)[0] == 0
    assert all(one.sound for one in check(gallery))


def test_an_index_that_is_missing_or_behind_is_no_damage(gallery: Path, model: Path) -> None:
    with Gallery(gallery, write=True) as opened:
        opened.delete([5])
    behind = next(one for one in check(gallery) if one.part == "index")
    assert behind.sound and "caught up when it is opened" in behind.what
    shutil.rmtree(gallery / "index")
    missing = next(one for one in check(gallery) if one.part == "index")
    assert missing.sound and "not saved" in missing.what


def test_a_damaged_index(run: Run, gallery: Path) -> None:
    for path in (gallery / "index").iterdir():
        path.write_bytes(path.read_bytes()[:-7])

    finding = next(one for one in check(gallery) if one.part == "index")

    assert not finding.sound and "the saved index is damaged" in finding.what
    assert run("optimize", gallery)[0] == 0
    assert all(one.sound for one in check(gallery))


def test_a_model_that_was_replaced(run: Run, gallery: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    sql(gallery, "UPDATE meta SET value = ? WHERE key = 'model_path'", str(other))

    code, out, _ = run("check", gallery, "--json")

    finding = json.loads(out)["findings"][-1]
    assert code == 1 and finding["part"] == "model" and "holds another model than tiny" in finding["what"]
    assert f"clf gallery reembed {gallery} {other} -o NEW" in finding["remedy"]


def test_every_thumbnail_is_decoded_when_asked(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.checking.PICTURES", 5)
    sql(gallery, "UPDATE thumbnails SET data = x'ffd8ff' WHERE id = 2")

    some = next(one for one in check(gallery) if one.part == "thumbnails")
    every = next(one for one in check(gallery, all_pictures=True) if one.part == "thumbnails")

    assert some.sound and "5 decoded, evenly spread; --all decodes each" in some.what
    assert not every.sound


def test_optimize_keeps_the_choice_for_later(run: Run, gallery: Path) -> None:
    chosen = said(run("optimize", gallery, "--index", "flat", "--memory", "700MiB", "--recall", "0.9", "--json"))

    assert chosen["index"]["kind"] == "flat" and chosen["freed"] >= 0
    assert said(run("info", gallery, "--json"))["index"]["kind"] == "flat"
    assert said(run("check", gallery, "--json"))["sound"] is True
    code, out, _ = run("optimize", gallery)
    assert code == 0 and "exact" in out and "freed" in out


def test_optimize_gives_room_back(run: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf_serve.commands.gallery_info._WORTH", 100_000)
    folder = made(tmp_path / "g", 400, Identity.of(read_manifest(model)), model)
    with Gallery(folder, write=True) as opened:
        large = [entry(1000 + i, DIM) for i in range(50)]
        opened.delete(opened.upsert([replace(one, thumbnail=b"x" * 10_000) for one in large]))
    before = contents(folder)
    size = sum(path.stat().st_size for path in folder.glob("gallery.sqlite*"))

    freed = said(run("optimize", folder, "--json"))["freed"]

    after = sum(path.stat().st_size for path in folder.glob("gallery.sqlite*"))
    assert freed > 400_000 and after < size - 400_000
    assert contents(folder) == before


def test_delete_by_filter_and_by_id(run: Run, gallery: Path) -> None:
    with Gallery(gallery, write=True) as opened:
        opened.set_metadata({id_: {"label": "cat"} for id_ in (3, 4, 5)})

    assert said(run("delete", gallery, "--where", '{"label": "cat"}', "--yes", "--json"))["removed"] == 3
    assert said(run("delete", gallery, "--where", '{"label": "cat"}', "--json"))["removed"] == 0
    assert said(run("delete", gallery, "--id", 7, "--id", 8, "--id", 999, "-y", "--json"))["removed"] == 2

    assert [row[0].id for row in contents(gallery)] == [i for i in range(1, 21) if i not in (3, 4, 5, 7, 8)]


@pytest.mark.parametrize(("answer", "removed"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_delete_asks(run: Run, gallery: Path, monkeypatch: pytest.MonkeyPatch, answer: str, removed: int) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))

    code, _, err = run("delete", gallery, "--id", 5)

    assert f"Remove 1 of 20 images from {gallery}?" in err
    assert code == (0 if removed else 1) and len(contents(gallery)) == 20 - removed


def test_delete_asks_beside_the_json_and_counts_each_image_once(
    run: Run, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))

    code, out, err = run("delete", gallery, "--id", "3", "--id", "3", "--id", "9" * 30, "--json")

    assert code == 0 and json.loads(out) == {"gallery": str(gallery), "removed": 1}
    assert f"Remove 1 of 20 images from {gallery}?" in err


def test_delete_holds_nobody_up_while_it_asks(run: Run, gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_meanwhile(*_: object, **__: object) -> bool:
        with Gallery(gallery, write=True) as opened:
            opened.delete([9])
        return True

    monkeypatch.setattr("typer.confirm", write_meanwhile)

    assert run("delete", gallery, "--id", 5, "--id", 9)[0] == 0
    assert [row[0].id for row in contents(gallery)] == [i for i in range(1, 21) if i not in (5, 9)]


def test_copies_by_command(run: Run, gallery: Path, model: Path, tmp_path: Path) -> None:
    backup, npz = tmp_path / "b.sqlite", tmp_path / "x.npz"

    made_backup = said(run("backup", gallery, backup, "--json"))
    restored = said(run("restore", backup, "-o", tmp_path / "new", "--json"))
    exported = said(run("export", gallery, npz, "--thumbnails", "--json"))
    imported = said(run("import", npz, "-o", tmp_path / "again", "--model", model, "--json"))
    part = said(run("export", gallery, tmp_path / "x.csv", "--where", '{"@id": {"$lt": 5}}', "--no-vectors", "--json"))

    assert made_backup == {"gallery": str(gallery), "file": str(backup), "images": 20, "bytes": backup.stat().st_size}
    assert restored["images"] == 20 and restored["gallery"] == str(tmp_path / "new")
    assert exported == {"gallery": str(gallery), "file": str(npz), "images": 20, "bytes": npz.stat().st_size}
    assert imported == {"file": str(npz), "gallery": str(tmp_path / "again"), "images": 20}
    assert part["images"] == 4
    assert contents(gallery) == contents(tmp_path / "new") == contents(tmp_path / "again")
    for words in (
        ("backup", gallery, backup),
        ("export", gallery, npz),
        ("restore", backup, "-o", gallery, "--replace"),
    ):
        code, out, _ = run(*words)
        assert code == 0 and "20 images" in out


def test_move_by_command(run: Run, gallery: Path, photos: Path, tmp_path: Path) -> None:
    words = ("move", gallery, photos, tmp_path / "disk")
    code, _, err = run(*words)
    assert code == 2 and "none of the 20 files is below" in err

    moved = said(run(*words, "--missing-too", "--json"))

    assert moved == {"gallery": str(gallery), "moved": 20, "missing": 20}
    code, out, _ = run("move", gallery, tmp_path / "disk", photos)
    assert code == 0 and f"20 images of {gallery} lie below {photos} now" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "PHOTOS"], "is not a gallery"),
        (["check", "PHOTOS"], "is not a gallery"),
        (["optimize", "PHOTOS"], "is not a gallery"),
        (["optimize", "GALLERY", "--memory", "much"], "'much' is no size; write one like 700MiB"),
        (["optimize", "GALLERY", "--memory", "0MB"], "is no size"),
        (["optimize", "GALLERY", "--memory", "9" * 400 + "GB"], "is no size"),
        (["optimize", "GALLERY", "--index", "lsh"], "Invalid value"),
        (["delete", "GALLERY", "--yes"], "say which images: either --where FILTER or --id N"),
        (["delete", "GALLERY", "--id", "1", "--where", "{}"], "either --where FILTER or --id N"),
        (["delete", "GALLERY", "--where", "{", "--yes"], "this is no JSON"),
        (["delete", "GALLERY", "--where", '{"a": {"$lte": []}}', "--yes"], "where.a.$lte: expected a number or text"),
        (["export", "GALLERY", "x.npz", "--where", "[]"], "where: expected an object"),
        (["export", "GALLERY", "x.feather"], "must end in one of .parquet, .npz, .jsonl, .csv"),
        (["backup", "PHOTOS", "b.sqlite"], "is not a gallery"),
        (["restore", "MODEL_FILE", "-o", "new"], "is damaged (file is not a database)"),
        (["import", "x.npz", "-o", "new", "--model", "MODEL"], "does not exist"),
        (["reembed", "GALLERY", "MODEL", "-o", "new"], "is of model tiny"),
        (["reembed", "GALLERY", "PHOTOS", "-o", "new"], "is not an exported model"),
        (["move", "GALLERY", "nowhere", "PHOTOS"], "lies below nowhere; one of them is"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(
    run: Run,
    gallery: Path,
    photos: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"GALLERY": gallery, "PHOTOS": photos, "MODEL": model, "MODEL_FILE": model / MODEL_FILE}

    code, _, err = run(*(names.get(word, word) for word in words))

    assert code == 2
    assert message in " ".join(err.split()) and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_another_model_is_refused_with_the_way_to_reembed(
    gallery: Path, photos: Path, tmp_path: Path, run_cli: Any
) -> None:
    other = write_model(tmp_path / "other", name="other", cells=4, dim=48)
    for words in (
        ("index", other, photos, "-o", gallery),
        ("search", gallery, photos / "0000.png", "--model", other),
        ("serve", other, "--gallery", gallery, "--port", 0),
    ):
        done = run_cli(*map(str, words))
        assert done.code == 2 and "was made with model tiny" in done.err
        assert f"clf gallery reembed {gallery} MODEL -o NEW" in " ".join(done.err.split())


def test_sizes() -> None:
    found = [size_in_bytes(text) for text in ("700MiB", "1.5GB", " 2 gib", "10k", "1024", "3B", "1MB", "0")]
    assert found == [700 * 2**20, 1_500_000_000, 2 * 2**30, 10_000, 1024, 3, 1_000_000, 0]
    assert [readable(size) for size in (0, 1023, 1024, 3 * 2**20, 5 * 2**40, 5000 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
        "5000.0 TiB",
    ]


def test_the_module_of_the_commands_is_light(run_cli_process: Callable[..., Any]) -> None:
    heavy = "('onnxruntime', 'faiss', 'fastapi', 'gradio', 'numpy', 'torch', 'PIL', 'pyarrow', 'rich.progress')"
    before = (
        "import sys, clf_serve.commands.gallery\n"
        f"heavy = [name for name in {heavy} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    outcome = run_cli_process("gallery", "--help", before=before)

    assert outcome.code == 0, outcome.err
    for name in ("info", "check", "optimize", "move", "delete", "backup", "restore", "export", "import", "reembed"):
        assert f" {name} " in outcome.out


def test_the_vectors_of_a_gallery_are_those_of_its_export(run: Run, gallery: Path, tmp_path: Path) -> None:
    assert run("export", gallery, tmp_path / "x.npz")[0] == 0
    with np.load(tmp_path / "x.npz") as file, Gallery(gallery) as opened:
        np.testing.assert_array_equal(file["vectors"], opened.vectors(file["ids"].tolist()))
