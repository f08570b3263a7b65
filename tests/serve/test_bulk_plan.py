"""The plan of an output: written before the work, gone on with, and refused for any other work."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bulk_helpers import embedded, planned, tree, write_tar
from serve_helpers import write_model, write_pictures

from clf.errors import DataError
from clf_serve.bulk import LocalEngine, Options, run
from clf_serve.bulk.folders import LocalFolder
from clf_serve.bulk.plan import LISTING, PLAN, Plan, read_listing


def test_shards_are_slices_of_the_list(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 10)
    bulk = planned(model, tmp_path / "p", tmp_path / "out")

    assert [(shard.number, shard.images) for shard in bulk.plan.shards()] == [(0, 4), (1, 4), (2, 2)]
    parts = [[listed.key for listed in read_listing(bulk.folder, shard)] for shard in bulk.plan.shards()]
    assert [key for part in parts for key in part] == [f"{i:04d}.png" for i in range(10)]
    assert bulk.left == bulk.plan.shards() and bulk.images_left == 10
    text = (tmp_path / "out" / PLAN).read_bytes()
    assert Plan.of(text, "it") == bulk.plan and Plan.of(text, "it").id == bulk.plan.id
    assert bulk.plan.id != replace(bulk.plan, listed=9).id


def test_a_tar_is_a_shard(model: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [])
    bulk = planned(model, tmp_path / "*.tar", tmp_path / "out")

    assert [(shard.number, shard.images) for shard in bulk.plan.shards()] == [(0, 0), (1, 0)]
    assert bulk.images_left is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 3}, "was begun with --batch-size 2, not 3; name another folder with -o, or begin anew with"),
        ({"shard_size": 5}, "was begun with --shard-size 4, not 5"),
        ({"form": "parquet"}, "was begun with --format npy, not parquet"),
        ({"provider": "auto"}, "was begun with the provider cpu, not auto"),
    ],
)
def test_other_settings_are_refused(model: Path, photos: Path, tmp_path: Path, settings: Any, said: str) -> None:
    planned(model, photos, tmp_path / "out")
    before = tree(tmp_path / "out")

    with pytest.raises(DataError, match=said):
        planned(model, photos, tmp_path / "out", **settings)
    assert tree(tmp_path / "out") == before


def test_another_model_and_another_source_are_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    planned(model, photos, tmp_path / "out")
    write_pictures(tmp_path / "p", 3)

    with pytest.raises(DataError, match=r"was begun with the source .*photos.*, not .*/p; name another folder"):
        planned(model, tmp_path / "p", tmp_path / "out")
    with pytest.raises(DataError, match=r"was begun with the model tiny, not other"):
        planned(write_model(tmp_path / "m", name="other"), photos, tmp_path / "out")
    with pytest.raises(DataError, match=r"was begun with the model of SHA-256 \w{12}\.\.\., not of SHA-256 \w{12}"):
        planned(write_model(tmp_path / "n", size=16), photos, tmp_path / "out")


def test_a_changed_source_is_refused_with_the_first_change(model: Path, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "p", 6)
    out = tmp_path / "out"
    planned(model, tmp_path / "p", out)
    data = paths[3].read_bytes()
    stamp = paths[3].stat().st_mtime_ns

    paths[3].unlink()
    with pytest.raises(
        DataError, match=r"/p has lost 0003.png since .*/out was begun; name another folder with -o, or"
    ):
        planned(model, tmp_path / "p", out)
    paths[3].write_bytes(data)
    os.utime(paths[3], ns=(stamp + 5, stamp + 5))
    with pytest.raises(DataError, match=r"/p has got another 0003.png since"):
        planned(model, tmp_path / "p", out)
    os.utime(paths[3], ns=(stamp, stamp))
    assert planned(model, tmp_path / "p", out).images_left == 6
    (tmp_path / "p" / "0002b.png").write_bytes(data)
    with pytest.raises(DataError, match=r"/p has got 0002b.png since"):
        planned(model, tmp_path / "p", out)


def test_restart_removes_what_was_written_and_nothing_else(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out)
    (out / "mine.txt").write_text("kept")

    bulk = planned(model, photos, out, restart=True, batch_size=3)

    assert sorted(path.name for path in out.iterdir()) == [LISTING, "mine.txt", PLAN]
    assert len(bulk.left) == 5
    (out / PLAN).unlink()
    with pytest.raises(DataError, match=r"holds other files \(mine.txt\) and no plan.json; name another folder with"):
        planned(model, photos, out, restart=True)
    assert (out / "mine.txt").read_text() == "kept"


def test_a_restart_that_finds_nothing_removes_nothing(model: Path, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "p", 3)
    embedded(model, tmp_path / "p", tmp_path / "out")
    before = tree(tmp_path / "out")
    for path in paths:
        path.unlink()  # as when a disk is not mounted

    with pytest.raises(DataError, match=r"/p holds no images$"):
        planned(model, tmp_path / "p", tmp_path / "out", restart=True)
    assert tree(tmp_path / "out") == before


def test_a_restart_that_was_cut_off_can_be_gone_on_with(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out)
    whole = tree(out)
    remove, left = LocalFolder.remove, len(whole)
    for most in range(left):
        calls = iter(range(most))

        def cut(self: LocalFolder, name: str, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            remove(self, name)

        with monkeypatch.context() as patched:
            patched.setattr(LocalFolder, "remove", cut)
            with suppress(KeyboardInterrupt):
                planned(model, photos, out, restart=True)
        embedded(model, photos, out)
        assert tree(out) == whole, most


@pytest.mark.parametrize("damage", ["gone", "cut", "edited"])
def test_a_listing_that_was_changed_by_hand_is_written_anew(
    model: Path, photos: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    embedded(model, photos, out)
    whole = tree(out)
    (out / "part-00001.json").unlink()
    text = whole[LISTING]
    (out / LISTING).write_bytes(text[:200] if damage == "cut" else text.replace(b"0005.png", b"0004.png"))
    if damage == "gone":
        (out / LISTING).unlink()

    embedded(model, photos, out)
    assert tree(out) == whole


def test_a_listing_that_another_process_changes_meanwhile_ends_it(model: Path, photos: Path, tmp_path: Path) -> None:
    bulk = planned(model, photos, tmp_path / "out")
    text = (tmp_path / "out" / LISTING).read_bytes()
    for damaged in (text[:-1], text[:200], text.replace(b"]", b"", 1), b"7" + text[1:]):
        (tmp_path / "out" / LISTING).write_bytes(damaged)
        with pytest.raises(DataError, match=r"listing.jsonl was removed or changed meanwhile; see that nothing else"):
            run(bulk, LocalEngine(Options()), "local")
    (tmp_path / "out" / LISTING).unlink()
    with pytest.raises(DataError, match=r"listing.jsonl was removed or changed meanwhile"):
        run(bulk, LocalEngine(Options()), "local")


def test_a_folder_of_other_things_is_refused_and_a_damaged_plan_named(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").touch()
    with pytest.raises(DataError, match=r"out holds other files \(letter.txt\); name an empty or a new folder with -o"):
        planned(model, photos, out)
    (out / "letter.txt").unlink()
    (out / LISTING).write_text("cut")  # as a process leaves it that was killed between the two
    planned(model, photos, out)
    text = (out / PLAN).read_text()
    for damage in (text[: len(text) // 2], text.replace('"batch_size": 2', '"batch_size": 3'), "[]", "{}"):
        (out / PLAN).write_text(damage)
        with pytest.raises(DataError, match=r"plan.json is damaged or was not written by clf embed; name another"):
            planned(model, photos, out)
    (out / PLAN).write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="has format 2, this clf reads 1; use the clf that wrote it"):
        planned(model, photos, out)


def test_an_empty_source_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(DataError, match=r"/p holds no images$"):
        planned(model, tmp_path / "p", tmp_path / "out")
    write_tar(tmp_path / "p" / "x.tar", [])
    with pytest.raises(DataError, match=r"/p holds no images; for the tars in it name them: '.*/p/\*.tar'"):
        planned(model, tmp_path / "p", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
