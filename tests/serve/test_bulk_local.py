"""clf embed into shards, in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from bulk_helpers import embedded, planned, tree, write_tar
from command_helpers import Run, one_error
from fake_cuda import FakeGpu, FakeOrt
from pyarrow import parquet
from serve_helpers import PROGRAM, SIZE, encoded, picture, until, write_model, write_pictures

from clf.errors import DataError, ModelError
from clf.manifest import read_manifest, sha256_file
from clf_serve import backends
from clf_serve.bulk import LocalEngine, OpenModel, Options
from clf_serve.bulk import run as run_bulk
from clf_serve.bulk.folders import Folder, LocalFolder
from clf_serve.bulk.parts import part_name
from clf_serve.bulk.pipeline import Ahead, Budget, Content, Image
from clf_serve.engine import Engine
from clf_serve.transfer.plan import COLUMNS


def vectors_of(folder: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([np.load(path) for path in sorted(folder.glob("part-*.npy"))])


def table_of(folder: Path, name: str) -> list[Any]:
    found: list[Any] = []
    for path in sorted(folder.glob("part-*.json")):
        found += json.loads(path.read_text())[name]
    return found


def test_parquet_of_a_folder(run: Run, model: Path, engine: Engine, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, _ = run("embed", model, photos, "-o", out, "--shard-size", 8, "--json")
    facts = json.loads(text)

    assert code == 0 and facts["embedded"] == facts["made"] == 20 and facts["shards"] == 3 and facts["skipped"] == []
    assert sorted(path.name for path in out.glob("part-*")) == [f"part-0000{i}.parquet" for i in range(3)]
    wanted, paths, _ = engine.embed_files(sorted(photos.iterdir()))
    tables = [parquet.read_table(path) for path in sorted(out.glob("part-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    np.testing.assert_array_equal(np.array([row["vector"] for row in rows], np.float32), wanted)
    assert [row["uri"] for row in rows] == [str(path) for path in paths]
    assert [row["key"] for row in rows] == [path.name for path in paths]
    first, stat = rows[0], paths[0].stat()
    assert (first["width"], first["height"], first["size"], first["mtime_ns"]) == (
        48,
        40,
        stat.st_size,
        stat.st_mtime_ns,
    )
    assert first["sha256"] == sha256_file(paths[0])
    about = json.loads(tables[0].schema.metadata[b"clf.bulk"])
    assert (about["model"], about["model_sha256"], about["dim"]) == ("tiny", engine.manifest.sha256, 12)
    assert set(tables[0].schema.names) - {"vector"} <= set(COLUMNS)  # named as by clf gallery export
    report = json.loads((out / "report.json").read_text())
    assert (report["images"], report["skipped"], report["parts"], report["provider"]) == (20, 0, 3, "cpu")

    code, text, err = run("embed", model, photos, "-o", f"{out}/", "--shard-size", 8)
    assert (code, text, err) == (0, f"20 images, 12 numbers each, 3 shards → {out} (all of it was there)\n", "")


def test_bad_files_are_listed_and_counted(run: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    for i in range(12):
        (tmp_path / "p" / f"1{i:03d}.png").write_bytes(b"bad")
    odd = os.fsdecode(b"\xff.png")
    (tmp_path / "p" / odd).write_bytes(encoded(picture(1)))
    out = tmp_path / "out"

    code, text, _ = run("embed", model, tmp_path / "p", "-o", out, "--format", "npy", "--shard-size", 10)

    assert code == 0 and f"13 skipped, all in {out}/skipped-*.jsonl:" in text and "and 3 more" in text
    rows = [json.loads(line) for path in sorted(out.glob("skipped-*")) for line in path.read_text().splitlines()]
    assert len(rows) == 13 and rows[0] == {
        "key": "1000.png",
        "reason": f"{tmp_path}/p/1000.png is not an image of a known format",
    }
    assert "is no valid Unicode; rename it" in rows[-1]["reason"]
    assert len(vectors_of(out)) == 3 and json.loads((out / "report.json").read_text())["skipped"] == 13


def test_what_changes_between_listing_and_reading_is_skipped(model: Path, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "p", 8)
    bulk = planned(model, tmp_path / "p", tmp_path / "out")
    paths[2].unlink()
    os.utime(paths[5], ns=(1, 1))

    report = run_bulk(bulk, LocalEngine(Options()), "local")

    assert (report.images, report.skipped) == (6, 2)
    assert [each.reason.removeprefix(str(tmp_path)) for each in report.some] == [
        "/p/0002.png does not exist",
        "/p/0005.png has changed since it was listed",
    ]


def test_tars_come_in_slices_that_can_be_gone_on_with(model: Path, engine: Engine, tmp_path: Path) -> None:
    pictures = [encoded(picture(i)) for i in range(11)]
    pictures[7] = b"bad"
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{i:04d}.png", data) for i, data in enumerate(pictures)])
    write_tar(tmp_path / "c.tar", [])
    out = tmp_path / "out"
    source = tmp_path / "{a,b,c}.tar"

    report = embedded(model, source, out)

    assert (report.images, report.skipped, report.shards) == (20, 2, 3)
    assert [path.name for path in sorted(out.glob("part-*.npy"))] == [
        *(f"part-0000{shard}-0000{part}.npy" for shard in range(2) for part in range(3)),
        "part-00002-00000.npy",
    ]
    good = [np.asarray(engine.prepare(data)) for data in pictures if data != b"bad"]
    np.testing.assert_array_equal(vectors_of(out), np.concatenate([engine.embed(np.stack(good))] * 2))
    assert table_of(out, "key")[:2] == ["a.tar/0000", "a.tar/0001"] and table_of(out, "uri")[10].endswith(
        "b.tar/0000.png"
    )
    assert "b.tar/0007.png is not an image" in report.some[1].reason

    whole = tree(out)
    made = [name for name in whole if name.startswith(("part-", "skipped-"))]
    for names in (["part-00000-00001.json"], ["part-00001-00002.json", "part-00000-00000.json"], sorted(made)):
        for name in names:
            (out / name).unlink(missing_ok=True)
        embedded(model, source, out)
        assert tree(out) == whole


def test_a_damaged_tar_gives_what_it_has_and_is_listed(model: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"{i}.png", encoded(picture(i))) for i in range(6)])
    tar.write_bytes(tar.read_bytes()[:3000])

    report = embedded(model, tar, tmp_path / "out")

    assert (report.images, report.skipped) == (3, 1)
    assert report.some[0].key == "a.tar" and "a.tar: the tar is damaged from here on" in report.some[0].reason


def test_samples_with_several_images_count_them(run: Run, model: Path, tmp_path: Path) -> None:
    data = encoded(picture(1))
    tar = write_tar(tmp_path / "a.tar", [("x.mask.png", data), ("x.png", data), ("x.txt", b""), ("y.png", data)])

    code, text, _ = run("embed", model, tar, "-o", tmp_path / "out")

    assert code == 0 and "2 images, 12 numbers each, 1 shard" in text
    assert "1 further images of samples that have several were left out" in text


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_parts_that_are_not_whole_are_made_again(model: Path, photos: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out, form=form)
    whole = tree(out)
    last = sorted(name for name in whole if name.startswith("part-"))[-1]
    damages: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(whole["part-00000.parquet" if form == "parquet" else "part-00000.json"]),
        lambda path: path.unlink(),
    ]
    for damage in damages:
        damage(out / last)
        bulk = planned(model, photos, out, form=form)
        assert [shard.number for shard in bulk.left] == [4]
        assert run_bulk(bulk, LocalEngine(Options()), "local").made == 4
        assert tree(out) == whole


def test_it_is_the_same_in_memory_as_on_a_disk(model: Path, photos: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in photos.iterdir():
        memory.pipe_file(f"/local/photos/{path.name}", path.read_bytes())
    embedded(model, photos, tmp_path / "out")

    report = embedded(model, "memory://local/photos", "memory://local/out")
    again = embedded(model, "memory://local/photos", "memory://local/out/")

    assert (report.made, again.made, again.images) == (20, 0, 20)
    for path in sorted((tmp_path / "out").glob("part-*.npy")):
        assert memory.cat_file(f"/local/out/{path.name}") == path.read_bytes()
    names = {name.rpartition("/")[2] for name in memory.ls("/local/out", detail=False)}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}


def test_a_folder_behind_a_url_is_made(model: Path, photos: Path, tmp_path: Path) -> None:
    embedded(model, photos, f"local://{tmp_path}/new/out")
    assert embedded(model, photos, tmp_path / "twin").images == 20
    assert tree(tmp_path / "new" / "out") == tree(tmp_path / "twin")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"local://.*file/out cannot be (read|written): Not a directory"):
        embedded(model, photos, f"local://{tmp_path}/file/out")


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_what_stands_where_a_file_belongs_is_named(model: Path, photos: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out, form=form)
    for path in sorted(out.glob("p*")):  # parts, plan
        path.rename(tmp_path / "kept")
        path.mkdir()
        with pytest.raises(DataError, match=rf"{path.name} cannot be (read|written): Is a directory"):
            embedded(model, photos, out, form=form)
        path.rmdir()
        (tmp_path / "kept").rename(path)


def test_lists_of_what_could_not_be_used_belong_to_their_parts(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    (tmp_path / "p" / "bad.png").write_bytes(b"bad")
    out = tmp_path / "out"
    embedded(model, tmp_path / "p", out)
    whole = tree(out)

    (out / "skipped-00000.jsonl").unlink()
    assert embedded(model, tmp_path / "p", out).made == 4 and tree(out) == whole
    (out / "skipped-00000.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"skipped-00000.jsonl is damaged; remove it, and run the same command again"):
        embedded(model, tmp_path / "p", out)
    (out / "skipped-00000.jsonl").write_bytes(whole["skipped-00000.jsonl"])

    (tmp_path / "p" / "bad.png").unlink()
    stale = planned(model, tmp_path / "p", tmp_path / "new")
    (tmp_path / "new" / "skipped-00000.jsonl").write_text("of a part that was removed")
    run_bulk(stale, LocalEngine(Options()), "local")
    assert not list((tmp_path / "new").glob("skipped-*"))


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_addresses_that_are_no_unicode_are_listed(model: Path, tmp_path: Path, form: str) -> None:
    data = encoded(picture(1))
    tar = write_tar(tmp_path / "x.tar", [(os.fsdecode(b"a.\xff.png"), data), ("b.png", data)])

    report = embedded(model, tar, tmp_path / "out", form=form)

    assert (report.images, report.skipped) == (1, 1) and "is no valid Unicode; rename it" in report.some[0].reason


def test_an_empty_tar_is_work_that_is_done(run: Run, model: Path, tmp_path: Path) -> None:
    tar, out = write_tar(tmp_path / "x.tar", []), tmp_path / "out"
    assert "(0 images now, " in run("embed", model, tar, "-o", out)[1]
    assert "(all of it was there)" in run("embed", model, tar, "-o", out)[1]


@pytest.mark.slow
def test_kills_at_any_moment_change_no_byte(run: Run, model: Path, tmp_path: Path) -> None:
    members = [(f"{i:03d}.png", encoded(picture(i)) if i % 7 else b"bad") for i in range(40)]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", members)
    words = ["embed", str(model), str(tmp_path / "{a,b}.tar"), "--shard-size", "6", "--batch-size", "2"]
    out, wanted = tmp_path / "out", tmp_path / "wanted"
    assert run(*words, "-o", wanted)[0] == 0
    slow = "import time\nfrom clf_serve.engine import Engine\nembed = Engine.embed\n"
    slow += "def later(self, pixels):\n    time.sleep(0.02)\n    return embed(self, pixels)\nEngine.embed = later\n"
    kills = 0
    for target in (1, 4, 8, 12):
        with subprocess.Popen([sys.executable, "-c", slow + PROGRAM, *words, "-o", str(out)]) as child:
            until(lambda: child.poll() is not None or len(list(out.glob("part-*"))) >= target)  # noqa: B023
            time.sleep(0.013 * (target % 5))
            if child.poll() is None:
                child.kill()
                kills += 1
    assert run(*words, "-o", out)[0] == 0 and kills >= 3
    assert tree(out) == tree(wanted)


def test_ctrl_c_keeps_whole_shards_and_says_so(model: Path, photos: Path, tmp_path: Path) -> None:
    slow = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
    slow += "import time\nfrom clf_serve.engine import Engine\nembed = Engine.embed\n"
    slow += "def later(self, pixels):\n    time.sleep(0.3)\n    return embed(self, pixels)\nEngine.embed = later\n"
    words = ["embed", str(model), str(photos), "-o", str(tmp_path / "out"), "--shard-size", "4", "--batch-size", "2"]
    with subprocess.Popen([sys.executable, "-c", slow + PROGRAM, *words], stderr=subprocess.PIPE, text=True) as child:
        until(lambda: (tmp_path / "out" / "part-00000.parquet").exists(), 60)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)

    assert child.returncode == 130
    assert err.startswith("stopped: ") and "Whole shards are kept; run the same command again" in err, err
    assert not list((tmp_path / "out").glob(".*"))


def test_a_full_disk_ends_it_and_keeps_what_is_whole(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", LocalFolder.write

    def full(self: LocalFolder, name: str, how: Any) -> None:
        if name.startswith("part-00001"):
            raise DataError(f"{self.path / name} cannot be written: No space left on device; make room")
        write(self, name, how)

    monkeypatch.setattr(LocalFolder, "write", full)
    said = one_error(run("embed", model, photos, "-o", out, "--shard-size", 8))
    assert "part-00001.parquet cannot be written: No space left on device" in said
    assert "Whole shards are kept; the same command again goes on from there" in said
    assert sorted(path.name for path in out.glob("part-*"))[:1] == ["part-00000.parquet"]
    monkeypatch.undo()
    assert run("embed", model, photos, "-o", out, "--shard-size", 8)[0] == 0


def test_another_device_or_model_than_what_is_there_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out)
    (out / "part-00002.json").unlink()
    for path in out.glob("part-*.json"):
        path.write_text(path.read_text().replace('"provider": "cpu"', '"provider": "cuda"'))
    with pytest.raises(
        ModelError, match=r"was begun with the model on cuda, and .* runs it on cpu, whose vectors differ"
    ):
        embedded(model, photos, out)

    other = write_model(tmp_path / "m", size=16)
    bulk = planned(model, photos, tmp_path / "other")
    object.__setattr__(bulk.work.encoder, "folder", other)
    with pytest.raises(ModelError, match="holds another model on this machine; put the same one on all of them"):
        run_bulk(bulk, LocalEngine(Options()), "local")


def test_an_output_that_this_machine_does_not_see(model: Path, photos: Path, tmp_path: Path) -> None:
    bulk = planned(model, photos, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"out does not hold this work on .*; name a folder that all machines see, or a URL"
    ):
        run_bulk(bulk, LocalEngine(Options()), "local")


def test_a_source_that_this_machine_does_not_see_is_not_taken_for_bad_files(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 4)
    bulk = planned(model, tmp_path / "p", tmp_path / "out")
    (tmp_path / "p").rename(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"/p is not there \(any more\) on this machine; a cluster needs a folder"):
        run_bulk(bulk, LocalEngine(Options()), "local")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "v.npz", "--engine", "ray"], "--engine is about shards, and v.npz is one file; name a folder with -o"),
        (["-o", "v.npz", "--restart"], "--restart is about shards"),
        (["-o", "v.npz", "other"], "v.npz takes one image or folder; for tars and URLs name a folder"),
        (["-o", "http://127.0.0.1:1/x"], "http://127.0.0.1:1/x cannot be written to; name a folder"),
        (["-o", "out.v2"], "out.v2 must end in one of .npz, .npy, .jsonl. For a folder of shards end its name in /"),
        (["-o", "nope://x"], "nope://x cannot be used: Protocol not known: nope"),
        (["-o", "out", "other"], "is no tar file; name one folder of images, or any number of tars"),
        (["-o", "out", "--variant", "int8"], "has no int8 variant"),
    ],
)
def test_mistakes(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in one_error(run("embed", model, photos, *words))
    assert list(tmp_path.iterdir()) == []


def test_drafts_of_dead_processes_are_removed_and_of_others_kept(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    drafts = []

    def write(file: Any) -> None:
        drafts.extend(path.name for path in tmp_path.iterdir())
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"x cannot be written: No space left on device; make room, or see to the disk"):
        folder.write("x", write)
    (draft,) = drafts
    assert list(tmp_path.iterdir()) == []
    dead = draft.replace(f"~{os.getpid()}~", f"~{ended.pid}~")
    for name in (dead, draft, ".x~elsewhere~1~ab.partial", ".partial"):
        (tmp_path / name).touch()
    folder.make()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([draft, ".x~elsewhere~1~ab.partial", ".partial"])
    assert folder.names() == set()


def test_reading_ahead_is_bounded_in_bytes_and_ends_when_it_is_closed() -> None:
    made = []

    def images() -> Any:
        for i in range(100):
            made.append(i)
            yield Image(str(i), str(i), 40, 0, Content(b"x" * 40))

    ahead = Ahead(images, budget := Budget(100), 50)
    until(lambda: len(made) == 3)
    time.sleep(0.2)
    assert len(made) == 3  # two are held, the third waits
    budget.give_back(40)
    until(lambda: len(made) == 4)
    ahead.close()
    assert not ahead._thread.is_alive()

    def broken() -> Any:
        yield 1
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        list(Ahead(broken, Budget(1), 2))


def test_names_of_parts(model: Path, photos: Path, tmp_path: Path) -> None:
    bulk = planned(model, photos, tmp_path / "out", form="parquet")
    assert part_name(bulk.plan, 12, 0) == "part-00012.parquet"
    assert isinstance(Folder.of(f"file://{tmp_path}/out"), LocalFolder)


def test_on_a_gpu_all_batches_are_of_one_size_whatever_was_measured(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr(backends, "load_onnxruntime", lambda: FakeOrt(gpu))
    monkeypatch.setattr(backends, "why_no_cuda", lambda ort: None)
    pixels = np.random.default_rng(1).integers(0, 256, (71, SIZE, SIZE, 3), dtype=np.uint8)
    for seconds in (1.0, 1e-6):  # the larger batches pay, or none does
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_time", lambda self, pixels, s=seconds: s * len(pixels) ** (2 if s < 1 else 0.5))
            encoder = OpenModel(model, read_manifest(model).sha256, "fp32", "cuda", 33)(1)
        gpu.runs.clear()
        assert encoder.embed(pixels).shape == (71, 12) and encoder.provider == "cuda"
        assert [size for size, _ in gpu.runs] == [32, 32, 32]
        encoder.close()
