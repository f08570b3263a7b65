"""``clf index`` killed at any moment while its folder changes: what must hold then, and after the run that follows.

The folder is changed at random (new pictures, other content, renames, copies, deletions), ``clf index`` is started and
killed. Then each entry must have the vector of the very bytes that its digest names, and after an undisturbed run the
gallery must hold the folder as it is: every file once, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from serve_helpers import PROGRAM, SIZE, expected, picture

from clf import images
from clf_serve.gallery import Gallery


def change(folder: Path, draw: random.Random) -> None:
    """A few random changes of the folder; it never becomes empty."""
    for _ in range(draw.randint(2, 12)):
        files = sorted(folder.rglob("*.png"))
        new = folder / draw.choice("abc") / f"{draw.randrange(10**9):09d}.png"
        new.parent.mkdir(parents=True, exist_ok=True)
        kind = draw.choice(("new", "new", "change", "rename", "copy", "delete", "touch")) if len(files) > 12 else "new"
        some = draw.choice(files) if files else None
        if kind == "new" or some is None:
            picture(draw.randrange(10**6), 40, 40).save(new)
        elif kind == "change":
            picture(draw.randrange(10**6), 40, 40).save(some)
        elif kind == "rename":
            some.rename(new)
        elif kind == "copy":
            shutil.copy2(some, new)
        elif kind == "touch":
            stamp = time.time_ns() - draw.randrange(10**12)
            os.utime(some, ns=(stamp, stamp))
        else:
            some.unlink()


def start(model: Path, folder: Path, gallery: Path) -> subprocess.Popen[str]:
    words = ["index", str(model), str(folder), "-o", str(gallery), "--batch-size", "2", "--json"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def is_sound(gallery: Path, contents: dict[str, bytes]) -> int:
    """Each entry has the vector of the bytes that its digest names. The number of entries; 0 without a gallery."""
    if not (gallery / "gallery.sqlite").exists():
        return 0
    with Gallery(gallery) as opened:
        items = opened.page(limit=10_000)
        assert len({item.key for item in items}) == len(items) == len(opened)
        for item, vector in zip(items, opened.vectors([item.id for item in items]), strict=True):
            wanted = expected(images.prepare(contents[item.sha256], SIZE))
            assert np.allclose(vector, wanted, atol=1e-5), f"{item.key} has the vector of another picture"
        for vector in opened.vectors([item.id for item in items[:3]]):
            found = opened.search(vector, len(items) + 1)
            assert sorted(hit.id for hit in found) == sorted(item.id for item in items)
    return len(items)


def remember(folder: Path, contents: dict[str, bytes]) -> dict[str, str]:
    """The digest of each file now, by its key; their bytes go to ``contents``."""
    now = {}
    for path in folder.rglob("*.png"):
        blob = path.read_bytes()
        digest = hashlib.sha256(blob).hexdigest()
        contents[digest] = blob
        now[str(path.parent.resolve() / path.name)] = digest
    return now


def rounds(place: Path, model: Path, number: int, seed: int = 0) -> Iterator[int]:
    """Changes the folder and kills ``clf index`` so many times; yields how many entries there are after each."""
    draw = random.Random(seed)
    folder, gallery = place / "photos", place / "gallery"
    contents: dict[str, bytes] = {}
    usual = 1.0  # seconds of a run that is left alone, about
    for _ in range(number):
        change(folder, draw)
        remember(folder, contents)
        process = start(model, folder, gallery)
        try:
            process.communicate(timeout=usual * draw.uniform(0.4, 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        is_sound(gallery, contents)
        if draw.random() < 0.5:
            change(folder, draw)
        now = remember(folder, contents)
        began = time.monotonic()
        process = start(model, folder, gallery)
        out, err = process.communicate(timeout=120)
        usual = time.monotonic() - began
        assert process.returncode == 0, err
        assert json.loads(out)["skipped"] == []
        assert is_sound(gallery, contents) == len(now)
        with Gallery(gallery) as opened:
            assert {item.key: item.sha256 for item in opened.page(limit=10_000)} == now
        yield len(now)
