"""``clf index --watch``: what wakes it, what it waits for, what it survives, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serve_helpers import PROGRAM, picture, until, write_pictures

from clf.errors import DataError, GalleryError
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.sync import watching
from clf_serve.sync.scanning import File
from clf_serve.sync.syncing import IndexReport
from clf_serve.sync.watching import Events, Resting, Stop, follow


class Watching:
    """``clf index --watch --json`` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.rounds: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=lambda: self.rounds.extend(map(json.loads, process.stdout or ()))),
            threading.Thread(target=lambda: self.errors.extend(process.stderr or ())),
        ]
        for reader in self._readers:
            reader.start()

    def says(self, words: str) -> bool:
        return any(words in line for line in self.errors)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        for reader in self._readers:
            reader.join(20)
        return status


@contextmanager
def follows(model: Path, photos: Path, gallery: Path, *options: object) -> Iterator[Watching]:
    for path in photos.rglob("*"):  # files that were just written are left for later, as they may not be complete
        os.utime(path, (time.time() - 60,) * 2)
    words = ["index", model, photos, "-o", gallery, "--watch", "--json", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch = Watching(process)
    try:
        until(lambda: watch.says("Ctrl-C ends it") or watch.says("is looked at every"), 120)
        yield watch
    finally:
        if process.poll() is None:
            watch.end(signal.SIGKILL)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("options", [(), ("--watch-interval", "0.3")], ids=["events", "polling"])
def test_the_gallery_follows_the_folder(model: Path, engine: Engine, tmp_path: Path, options: tuple[str, ...]) -> None:
    photos = tmp_path / "photos"
    paths = write_pictures(photos, 4)
    with follows(model, photos, tmp_path / "g", *options) as watch, Gallery(tmp_path / "g") as reader:
        assert watch.rounds[0]["added"] == 4

        def found(path: Path) -> bool:  # a reader of another process sees it at its next search
            hits = reader.search(engine.embed(engine.prepare(path)[None])[0], 1)
            return bool(hits) and hits[0].uri == str(path)

        (photos / "sub").mkdir()
        picture(20).save(photos / "sub" / "new.png")
        until(lambda: found(photos / "sub" / "new.png"), 60)
        paths[0].rename(photos / "renamed.png")
        until(lambda: found(photos / "renamed.png"), 60)
        shutil.rmtree(photos / "sub")
        (photos / "bad.png").write_bytes(b"no picture")
        until(lambda: len(reader) == 4 and bool(watch.rounds[-1]["skipped"]), 60)

        with Gallery(tmp_path / "g", write=True) as other:  # the lock is free between rounds
            other.set_metadata({1: {"label": "x"}})
        with Gallery(tmp_path / "g") as fresh:
            assert fresh.page(limit=1)[0].metadata == {"label": "x"}
        assert watch.end() == 0
    assert sum(report["renamed"] for report in watch.rounds) == 1
    assert sum(report["added"] for report in watch.rounds) == 5
    assert watch.says("stopped") and not watch.says("Traceback")


@pytest.mark.slow
def test_errors_do_not_end_it(model: Path, tmp_path: Path) -> None:
    photos, gallery = tmp_path / "photos", tmp_path / "g"
    write_pictures(photos, 3)
    with follows(model, photos, gallery, "--watch-interval", "0.3") as watch:
        with Gallery(gallery, write=True):
            picture(9).save(photos / "new.png")
            until(lambda: watch.says("another process is writing"), 60)
        until(lambda: len(watch.rounds) > 1, 60)
        assert watch.rounds[1]["added"] == 1

        photos.rename(tmp_path / "away")  # the disk is gone, and comes back
        until(lambda: watch.says("does not exist"), 60)
        (tmp_path / "away").rename(photos)
        picture(10).save(photos / "newer.png")
        until(lambda: len(watch.rounds) > 2, 60)
        assert (watch.rounds[2]["added"], watch.rounds[2]["removed"], watch.rounds[2]["total"]) == (1, 0, 5)
        assert watch.end(signal.SIGINT) == 0
    assert sum("does not exist" in line for line in watch.errors) == 1


def test_a_mistake_at_the_start_ends_it(model: Path, tmp_path: Path) -> None:
    words = ["index", str(model), str(tmp_path / "none"), "-o", str(tmp_path / "g"), "--watch"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "does not exist" in done.stderr


def test_metadata_that_changes_is_taken_over(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 2)
    table = tmp_path / "m.csv"
    table.write_text("file,n\n0000.png,1\n")
    with follows(model, tmp_path / "photos", tmp_path / "g", "--metadata", table) as watch:
        table.write_text("file,n\n0000.png,2\n")
        until(lambda: len(watch.rounds) > 1, 60)
        assert watch.rounds[1]["described"] == 1
        assert watch.end() == 0


def file(path: Path) -> File:
    found = path.stat()
    return File(str(path), str(path), "", found.st_size, found.st_mtime_ns)


def test_a_file_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    path, resting = tmp_path / "a.png", Resting(0.2)
    path.write_bytes(b"1")
    assert not resting(file(path))
    resting.next_round()
    path.write_bytes(b"12")
    time.sleep(0.05)
    assert not resting(file(path))
    time.sleep(0.25)
    assert resting(file(path))


def test_the_clock_of_a_file_server_may_be_ahead(tmp_path: Path) -> None:
    path, resting = tmp_path / "a.png", Resting(0.1)
    path.write_bytes(b"1")
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(ahead, ahead))
    assert not resting(file(path))
    time.sleep(0.15)
    resting.next_round()
    assert resting(file(path))
    resting.next_round()
    resting.next_round()  # not asked about for a round: forgotten
    assert not resting(file(path))


def test_a_half_written_file_is_not_indexed_half(model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 2)
    picture(5, 300, 300).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    with follows(model, tmp_path / "photos", tmp_path / "g") as watch:
        with (tmp_path / "photos" / "slow.png").open("wb") as slow:
            for at in range(0, len(data), len(data) // 8 + 1):
                slow.write(data[at : at + len(data) // 8 + 1])
                slow.flush()
                time.sleep(0.3)
        until(lambda: len(watch.rounds) > 1, 60)
        assert watch.end() == 0
    assert [(report["added"], report["skipped"]) for report in watch.rounds] == [(2, []), (1, [])]


def test_events_are_of_images_and_folders_only(tmp_path: Path) -> None:
    photos, stop = tmp_path / "photos", Stop()
    write_pictures(photos, 1)
    (photos / "g").mkdir()
    (photos / "notes.txt").write_text("a")
    events = Events(photos, stop, ignored=photos / "g")
    try:
        if events.interval is not None:
            pytest.skip(f"no events here: {events.note}")
        for quiet in (photos / "notes.txt", photos / "g" / "gallery.sqlite-wal", photos / ".hidden.png"):
            quiet.write_text("b")
        assert not stop.wake.wait(1.5)
        picture(3).save(photos / "b.png")
        assert stop.wake.wait(20)
        stop.wake.clear()
        (photos / "sub.folder").mkdir()
        assert stop.wake.wait(20)
    finally:
        events.close()


def test_a_folder_that_was_replaced_is_watched_again(tmp_path: Path) -> None:
    photos, stop = tmp_path / "photos", Stop()
    write_pictures(photos, 1)
    events = Events(photos, stop)
    try:
        if events.interval is not None:
            pytest.skip(f"no events here: {events.note}")
        photos.rename(tmp_path / "old")
        write_pictures(photos, 1)
        events.wait(0.1)
        stop.wake.clear()
        time.sleep(0.6)  # what the replacing itself caused has arrived
        stop.wake.clear()
        picture(3).save(photos / "b.png")
        assert stop.wake.wait(20)
    finally:
        events.close()


@pytest.mark.parametrize(
    ("kind", "polled"), [("nfs4", True), ("fuse.sshfs", True), ("cifs", True), ("ext4", False), (None, False)]
)
def test_network_drives_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, polled: bool
) -> None:
    monkeypatch.setattr(watching, "_file_system", lambda path: kind)
    events = Events(tmp_path, Stop())
    events.close()
    assert (events.interval == watching.INTERVAL) is polled
    assert (events.note is not None) is polled


def test_without_watchfiles_the_folder_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    events = Events(tmp_path, Stop())
    assert events.interval == watching.INTERVAL and "watchfiles" in str(events.note)


def test_where_the_system_watches_no_more_folders_it_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr("watchfiles.watch", full)
    stop = Stop()
    events = Events(tmp_path, stop)
    events.close()
    assert events.interval == watching.INTERVAL and "limit reached" in str(events.note)
    assert stop.wake.is_set()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_system_is_known_by_name() -> None:
    assert watching._file_system(Path("/proc/self")) == "proc"


def test_each_error_is_told_once(tmp_path: Path) -> None:
    stop, told, rounds = Stop(), [], 0

    def once() -> IndexReport:
        nonlocal rounds
        rounds += 1
        if rounds == 6:
            stop.ask()
        if rounds in (1, 2, 4):
            raise DataError(f"trouble {min(rounds, 2)}")
        return IndexReport(unchanged=3, kept=12)

    class Quick(Events):
        def wait(self, seconds: float | None = None) -> None:
            pass

    events = Quick(tmp_path, stop, interval=0.01)
    follow(once, IndexReport(), events, stop, lambda report, error: told.append(error or str(report)), Resting())

    assert told == ["trouble 1", "trouble 2", str(IndexReport(unchanged=3, kept=12)), "trouble 2"]


def test_ctrl_c_stops_a_run_that_can_go_on(model: Path, engine: Engine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, 400)
    slow = (
        "import signal, time\nfrom clf_serve.engine import Engine\nembed = Engine.embed\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def slow(self, pixels):\n    time.sleep(0.1)\n    return embed(self, pixels)\nEngine.embed = slow\n"
    )
    words = ["index", str(model), str(photos), "-o", str(tmp_path / "g"), "--batch-size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow + PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def committed() -> int:
        try:
            with Gallery(tmp_path / "g") as reader:
                return len(reader)
        except GalleryError:  # it is being made
            return 0

    until(lambda: committed() >= 8, 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    assert f"stopped: {committed()} added" in err and committed() < 400
    from clf_serve.sync.indexing import index_images

    with Gallery.open_or_create(tmp_path / "g", Identity.of(engine.manifest), engine.folder) as gallery:
        before = len(gallery)
        report = index_images(gallery, engine, photos)
    assert (report.added, report.unchanged) == (400 - before, before)
