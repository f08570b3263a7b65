"""The cache of canvases: killed, shared, bounded, damaged; and a training on it is the training without it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clf import checkpoint, images, training
from clf.config import Config, DataSection
from clf.data import DataSource, canvases, load_source
from clf.data.cache import FILES, KNOWN, RECORD, RECORDS, RESERVE, STORED, read_records, take_place
from clf.errors import DataError
from clf.evaluate.features import encode
from clf.evaluate.pixels import adapt, raw_pixels

SIZE = 16
ROW = 3 * (19**2 + 16**2)  # bytes of a canvas and a clean image


def put(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    return path


def photos(root: Path, n: int) -> Path:
    for i in range(n):
        put(root / "photos" / f"{i:03d}.png", seed=i)
    return root / "photos"


def load(root: Path, cache: Path | None = None, workers: int | None = 2, **options: Any) -> DataSource:
    where = {"cache_above_mib": 0, "cache_dir": str(cache), **options} if cache else {}
    return load_source(DataSection(name="folder", root=str(root), image_size=SIZE, workers=workers, options=where), 0)


def same(a: DataSource, b: DataSource) -> bool:
    equal = torch.equal(a.train.images[:], b.train.images[:]) and torch.equal(a.train.clean[:], b.train.clean[:])
    return equal and a.train.names == b.train.names and a.skipped == b.skipped and a.fingerprint == b.fingerprint


def file_of(cache: Path, name: str) -> Path:
    (found,) = cache.glob(f"*/{name}")
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that the cache decodes, as they come."""
    names: list[str] = []
    decode = canvases.decode

    def note(path: Path) -> Any:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(canvases, "decode", note)
    yield names


CHILD = """
import os, sys, time
from pathlib import Path
from clf.config import DataSection
from clf.data import canvases, load_source

root, cache, log = sys.argv[1:]
fill = canvases.Store._fill_one

def slowly(store, i, found):  # notes a file when its row and its record are written
    time.sleep(0.01)
    fill(store, i, found)
    with open(log, "a") as file:
        file.write(store._names[i] + "\\n")

canvases.Store._fill_one = slowly
options = {"cache_above_mib": 0, "cache_dir": cache}
print("ready", flush=True)
sys.stdin.readline()
section = DataSection(name="folder", root=root, image_size=16, workers=2, options=options)
print(load_source(section, 0).fingerprint, flush=True)
"""


def start_children(root: Path, cache: Path, logs: list[Path]) -> list[subprocess.Popen[str]]:
    """Processes that fill one cache from now on, as the ranks of one machine."""
    children = []
    for rank, log in enumerate(logs):
        log.touch()
        environment = {"OMP_NUM_THREADS": "1", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(logs))}
        command = [sys.executable, "-c", CHILD, str(root), str(cache), str(log)]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **environment})
        children.append(child)
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return children


def kill_after(child: subprocess.Popen[str], log: Path, files: int) -> None:
    """SIGKILL when at least so many files are in the cache."""
    while len(log.read_text().splitlines()) < files:
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.mark.slow
def test_a_killed_fill_goes_on_where_it_stopped(tmp_path: Path, decoded: list[str]) -> None:
    root, cache, log = photos(tmp_path, 80), tmp_path / "cache", tmp_path / "log"
    kill_after(*start_children(root, cache, [log]), log, files=20)
    before = set(log.read_text().splitlines())
    data = load(root, cache)
    assert 20 <= len(before) < 80
    assert not before & set(decoded) and len(decoded) == len(set(decoded)) <= 80 - len(before)
    assert same(data, load(root))


@pytest.mark.slow
def test_processes_share_the_filling_and_outlive_one_that_is_killed(tmp_path: Path) -> None:
    root, cache = photos(tmp_path, 480), tmp_path / "cache"
    logs = [tmp_path / f"log{i}" for i in range(3)]
    children = start_children(root, cache, logs)
    kill_after(children[0], logs[0], files=5)
    prints = [child.communicate(timeout=120)[0].split()[-1] for child in children[1:]]
    assert prints == [load(root).fingerprint] * 2
    done = [name for log in logs for name in log.read_text().splitlines()]
    assert all(log.read_text() for log in logs)  # each took part
    assert len(done) == len(set(done)) >= 480 - 2  # nothing twice; the killed one's two threads may not have noted


def test_only_what_changed_is_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = photos(tmp_path, 6), tmp_path / "cache"
    (root / "broken.png").write_text("no image")
    first = load(root, cache)
    assert len(decoded) == 7 and [(s.path, s.reason) for s in first.skipped] == [
        ("broken.png", "is not an image of a known format")
    ]
    decoded.clear()
    assert same(load(root, cache), first) and decoded == []  # the unreadable one is remembered too
    del first
    gc.collect()
    put(root / "003.png", seed=99)
    put(root / "new.png", seed=100)
    (root / "001.png").unlink()
    found = load(root, cache)
    assert sorted(decoded) == ["003.png", "new.png"] and same(found, load(root))


def test_cache_workers_and_limit_change_neither_pixels_nor_fingerprint(tmp_path: Path, decoded: list[str]) -> None:
    root = photos(tmp_path, 9)
    resident = load(root, workers=1)
    for i, options in enumerate([{}, {"cache_limit_gib": 4 * ROW / 2**30}, {"cache_limit_gib": 0}]):
        for workers in (1, 3):
            assert same(load(root, tmp_path / f"cache{i}", workers, **options), resident)


def test_the_limit_bounds_the_files_and_the_rest_is_decoded_when_drawn(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = photos(tmp_path, 10), tmp_path / "cache"
    load(root, cache, cache_limit_gib=4 * ROW / 2**30)
    decoded.clear()
    data = load(root, cache, cache_limit_gib=4 * ROW / 2**30)
    assert decoded == []
    assert data.notes == [
        "4 of 10 images are in the cache, as many as data.options.cache_limit_gib allows; the others are decoded anew "
        "each time they are drawn, which is slower and changes nothing else"
    ]
    assert sum(file_of(cache, name).stat().st_size for name in FILES) == 4 * ROW
    for _ in range(2):
        decoded.clear()
        assert torch.equal(data.train.images[torch.tensor([9, 0, 5])], load(root).train.images[[9, 0, 5]])
        assert sorted(decoded) == ["005.png", "009.png"]
    del data
    gc.collect()
    decoded.clear()
    assert load(root, cache).notes == []  # now there is room for all
    assert sorted(decoded) == [f"{i:03d}.png" for i in range(4, 10)]
    gc.collect()
    load(root, cache, cache_limit_gib=2 * ROW / 2**30)  # and now for less
    assert sum(file_of(cache, name).stat().st_size for name in FILES) == 2 * ROW
    assert read_records(file_of(cache, RECORDS).parent)["status"].tolist() == [STORED] * 2 + [KNOWN] * 8
    gc.collect()
    decoded.clear()
    load(root, cache)
    assert sorted(decoded) == [f"{i:03d}.png" for i in range(2, 10)]


def test_the_disk_keeps_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=RESERVE + 3 * ROW))
    data = load(photos(tmp_path, 5), tmp_path / "cache")
    assert data.notes[0].startswith(
        f"3 of 5 images are in the cache, as many as the free space of {tmp_path / 'cache'}"
    )


def test_what_other_sets_have_yet_to_fill_in_is_not_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=RESERVE + 7 * ROW))
    names, states = np.array([b"%d" % i for i in range(5)], "S16"), np.zeros((5, 3), np.int64)
    places = [take_place(tmp_path, key, names, states, [3 * 19**2, 3 * 16**2], 10**9) for key in "ab"]
    assert [place.room for place in places] == [5, 2]


def test_old_sets_make_room_unless_they_are_in_use(tmp_path: Path, decoded: list[str]) -> None:
    cache, limit = tmp_path / "cache", 10 * ROW / 2**30
    roots = [photos(tmp_path / name, 5) for name in "abc"]
    kept = [load(root, cache, cache_limit_gib=limit) for root in roots[:2]]
    third = load(roots[2], cache, cache_limit_gib=limit)  # both others are in use
    assert len(third.notes) == 1 and third.notes[0].startswith("0 of 5")
    assert all(same(data, load(root)) for data, root in zip([*kept, third], roots, strict=True))
    del kept[0], third
    gc.collect()
    assert load(roots[2], cache, cache_limit_gib=limit).notes == []  # the first, which nobody uses, is gone
    gc.collect()
    decoded.clear()
    load(roots[1], cache, cache_limit_gib=limit)
    assert decoded == []
    load(roots[0], cache, cache_limit_gib=limit)
    assert len(decoded) == 5


@pytest.mark.parametrize("deletable", [True, False])
def test_a_set_that_was_deleted_by_half_counts_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletable: bool
) -> None:
    cache, limit = tmp_path / "cache", 6 * ROW / 2**30
    load(photos(tmp_path / "a", 5), cache, cache_limit_gib=limit)
    gc.collect()
    file_of(cache, RECORDS).unlink()
    if not deletable:
        monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    data = load(photos(tmp_path / "b", 5), cache, cache_limit_gib=limit)
    assert (
        sum(path.stat().st_size for name in FILES for path in cache.glob(f"*/{name}")) == (5 if deletable else 6) * ROW
    )
    assert (data.notes == []) == deletable


def test_rows_of_deleted_files_are_used_again_when_room_is_short(tmp_path: Path) -> None:
    root, cache, limit = photos(tmp_path, 4), tmp_path / "cache", 4 * ROW / 2**30
    load(root, cache, cache_limit_gib=limit)
    gc.collect()
    for i in range(2):
        (root / f"{i:03d}.png").rename(root / f"moved{i}.png")
    data = load(root, cache, cache_limit_gib=limit)
    assert data.notes == [] and same(data, load(root))


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_row_is_noticed_decoded_again_and_repaired(tmp_path: Path, decoded: list[str], kind: str) -> None:
    root, cache = photos(tmp_path, 5), tmp_path / "cache"
    load(root, cache)
    good = file_of(cache, kind).read_bytes()
    with file_of(cache, kind).open("r+b") as file:
        file.seek(len(good) // 5 * 3 + 7)
        file.write(bytes([good[len(good) // 5 * 3 + 7] ^ 1]))
    decoded.clear()
    data = load(root, cache)
    assert decoded == []  # found at the first read, not before
    assert same(data, load(root)) and len(decoded) == 1
    assert file_of(cache, kind).read_bytes() == good


def test_a_damaged_row_that_cannot_be_repaired_is_decoded_when_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = photos(tmp_path, 5), tmp_path / "cache"
    load(root, cache)
    file_of(cache, FILES[0]).write_bytes(bytes(5 * 3 * 19**2))
    data = load(root, cache)

    def full(handle: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(2):
        assert same(data, load(root))


def test_pixels_that_another_process_uses_stay_when_their_file_changes(tmp_path: Path, decoded: list[str]) -> None:
    """Two locks of one process exclude each other as those of two do."""
    root, cache = photos(tmp_path, 4), tmp_path / "cache"
    first, before = load(root, cache), load(root)
    first.train.images[:2]  # the others are unread as yet
    for i in (1, 3):
        put(root / f"{i:03d}.png", seed=90 + i)
    second = load(root, cache)
    assert same(first, before) and same(second, load(root))
    assert second.notes == [
        "2 of 4 images have changed since another process, which still runs, put them into the cache; they are decoded "
        "anew each time they are drawn, which is slower and changes nothing else"
    ]
    del first, second
    gc.collect()
    decoded.clear()
    third = load(root, cache)
    assert sorted(decoded) == ["001.png", "003.png"] and third.notes == [] and same(third, load(root))


def test_pixels_in_use_serve_on_when_only_the_time_of_their_file_changes(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = photos(tmp_path, 3), tmp_path / "cache"
    first = load(root, cache)
    os.utime(root / "001.png")
    decoded.clear()
    second = load(root, cache)
    assert decoded == ["001.png"] and second.notes == [] and same(second, first)
    assert same(load(root, cache), first) and decoded == ["001.png"]


def test_a_file_of_the_same_size_and_time_is_not_taken_for_the_earlier_one(tmp_path: Path) -> None:
    root, cache = tmp_path / "photos", tmp_path / "cache"
    path = put(root / "a.bmp", seed=0)
    then = path.stat()
    load(root, cache)
    gc.collect()
    time.sleep(0.02)  # clocks of file systems are coarse
    put(path, seed=1)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (then.st_size, then.st_mtime_ns)
    assert same(load(root, cache), load(root))


def test_a_format_that_becomes_known_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = photos(tmp_path, 2), tmp_path / "cache"
    put(root / "a.bmp", seed=5)
    with monkeypatch.context() as without:
        without.setattr(images, "_FORMATS", ("PNG",))
        assert [(s.path, s.reason) for s in load(root, cache).skipped] == [
            ("a.bmp", "is not an image of a known format")
        ]
    assert load(root, cache).skipped == []


@pytest.mark.parametrize("cached", [True, False])
def test_want_of_memory_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    root, cache = photos(tmp_path, 2), tmp_path / "cache" if cached else None

    def starve(data: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as poor:
        poor.setattr(images, "_open", starve)
        with pytest.raises(
            DataError, match=r"00\d\.png cannot be decoded for lack of memory: free some memory, or set"
        ):
            load(root, cache)
    with monkeypatch.context() as poor:
        poor.setattr(torch.nn.functional, "interpolate", lambda *_, **__: torch.empty(2**60, dtype=torch.uint8))
        with pytest.raises(
            DataError, match=r"00\d\.png cannot be resized for lack of memory: free some memory, or set"
        ):
            load(root, cache)
    assert load(root, cache).skipped == []


def test_an_error_of_the_progress_is_not_one_of_the_cache(tmp_path: Path) -> None:
    options = {"cache_above_mib": 0, "cache_dir": str(tmp_path / "cache")}
    section = DataSection(name="folder", root=str(photos(tmp_path, 3)), image_size=SIZE, options=options)

    def gone(done: int, total: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        load_source(section, 0, progress=gone)


def test_a_file_system_without_locks_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(DataError, match=r"its file system has no file locks \(No locks available\); set .* local disk"):
        load(photos(tmp_path, 1), tmp_path / "cache")


@pytest.mark.parametrize("damage", [b"", b"x" * 50, np.random.default_rng(0).bytes(3 * RECORD.itemsize)])
def test_damaged_records_count_as_absent(tmp_path: Path, damage: bytes) -> None:
    root, cache = photos(tmp_path, 5), tmp_path / "cache"
    load(root, cache)
    file_of(cache, RECORDS).write_bytes(damage)
    assert same(load(root, cache), load(root))
    assert same(load(root, cache), load(root))


def test_a_full_disk_is_explained_and_what_was_filled_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    root, cache = photos(tmp_path, 40), tmp_path / "cache"
    write, written = os.pwrite, []

    def full(handle: int, data: Any, offset: int) -> int:
        written.append(offset)
        if len(written) > 60:  # three for each image
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match=r"disk of the image cache .*cache is full after \d+ of 40 images, which stay"):
        load(root, cache, workers=1)
    monkeypatch.setattr(os, "pwrite", write)
    decoded.clear()
    assert same(load(root, cache), load(root)) and len(decoded) == 20


def test_a_file_that_has_to_be_decoded_again_must_be_the_same(tmp_path: Path) -> None:
    root = photos(tmp_path, 3)
    data = load(root, tmp_path / "cache", cache_limit_gib=0)
    put(root / "001.png", seed=50)
    (root / "002.png").unlink()
    assert data.train.images[:1].shape == (1, 3, 19, 19)
    with pytest.raises(
        DataError, match=r"001\.png has changed since the run began, .*: restore it, or train a new run"
    ):
        data.train.images[1:2]
    with pytest.raises(DataError, match=r"002\.png does not exist, but could be read .*: put it back, or start again"):
        data.train.clean[torch.tensor([2])]


def test_a_file_that_vanishes_before_it_is_read_is_skipped_but_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = photos(tmp_path, 3), tmp_path / "cache"
    decode, aside = canvases.decode, tmp_path / "aside.png"

    def vanish(path: Path) -> Any:
        if path.name == "001.png" and path.exists():
            path.rename(aside)
        return decode(path)

    monkeypatch.setattr(canvases, "decode", vanish)
    assert [(s.path, s.reason) for s in load(root, cache).skipped] == [("001.png", "does not exist")]
    monkeypatch.setattr(canvases, "decode", decode)
    aside.rename(root / "001.png")
    assert load(root, cache).skipped == []


@pytest.mark.slow
def test_a_training_on_the_cache_ends_with_the_same_weights(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    root, killed, log = photos(tmp_path, 40), tmp_path / "killed", tmp_path / "log"
    kill_after(*start_children(root, killed, [log]), log, files=10)

    def train(name: str, workers: int, **options: Any) -> tuple[dict[str, torch.Tensor], str]:
        data = DataSection(name="folder", root=str(root), image_size=SIZE, workers=workers, options=options)
        config = tiny(tmp_path / "runs", {"run.name": name}).model_copy(update={"data": data})
        run = training.train(config, callbacks=[])
        return checkpoint.load_newest(run.checkpoints)[0]["method"], run.manifest()["data"]["fingerprint"]

    weights, fingerprint = train("resident", 1)
    for name, workers, options in [
        ("cached", 3, {"cache_dir": str(tmp_path / "cache")}),
        ("bounded", 2, {"cache_dir": str(tmp_path / "bounded"), "cache_limit_gib": 5 * ROW / 2**30}),
        ("killed", 1, {"cache_dir": str(killed)}),
    ]:
        found, same_data = train(name, workers, cache_above_mib=0, **options)
        assert same_data == fingerprint
        assert all(torch.equal(found[key], value) for key, value in weights.items()), name


def test_evaluation_takes_tables_as_it_takes_tensors(tmp_path: Path) -> None:
    root = photos(tmp_path, 7)
    table, tensor = load(root, tmp_path / "cache", cache_limit_gib=3 * ROW / 2**30).train, load(root).train
    flat = torch.nn.Flatten()
    assert torch.equal(encode(flat, table.clean, batch_size=3), encode(flat, tensor.clean))
    assert torch.equal(raw_pixels(table.clean), raw_pixels(tensor.clean))
    assert adapt(table.clean, SIZE, 3) is table.clean  # unread
    assert torch.equal(adapt(table.clean, 12, 1)[:], adapt(tensor.clean, 12, 1)[:])
    some = torch.tensor([5, 2])
    assert torch.equal(table.rows(some).clean[:], tensor.rows(some).clean)
    assert table.rows(some).names == tensor.rows(some).names == ["005.png", "002.png"]
