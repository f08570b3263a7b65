"""What a user can get wrong, through the command line: one sentence, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clf.runs import Run

SETTINGS = ["backbone.name=test_resnet", "train.epochs=1", "train.batch_size=8", "train.threads=1", "train.device=cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A flat folder: twelve good photos of many kinds, and four files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), np.uint8)).save(folder / f"plain-{i}.png")
    picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(folder / "rotated.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (40, 60), np.uint16)).save(folder / "deep.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    whole = (folder / "rotated.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (12000, 12000)).save(folder / "bomb.png")
    return folder


def one_sentence(done: Any) -> str:
    assert done.code == 2, done.err
    assert "Traceback" not in done.err and done.err.startswith("error: ")
    return str(done.err)


def test_a_mixed_folder_trains_and_the_rest_is_listed(photos: Path, run_cli: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(photos.parent)
    done = run_cli("train", "photos", "--plugin", "simclr", "data.image_size=16", *SETTINGS)
    assert done.code == 0, done.err
    assert "4 files skipped" in done.err
    for name, reason in (("empty.jpg", "empty"), ("text.png", "not an image"), ("cut.jpg", ""), ("bomb.png", "pixels")):
        line = next(line for line in done.err.splitlines() if name in line)
        assert reason in line
    manifest = Run(photos.parent / "runs" / "simclr-folder-1").manifest()
    assert manifest["data"]["train_images"] == 12
    assert {Path(item["path"]).name for item in manifest["data"]["skipped"]} == {
        "empty.jpg",
        "text.png",
        "cut.jpg",
        "bomb.png",
    }


def test_fewer_images_than_a_batch(photos: Path, run_cli: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(photos.parent)
    done = run_cli("train", "photos", "--plugin", "simclr", "data.image_size=16", *SETTINGS, "train.batch_size=64")
    assert "12 training images, fewer than train.batch_size = 64" in one_sentence(done)
    assert not (photos.parent / "runs").exists()


def test_a_folder_that_may_not_be_read(photos: Path, run_cli: Any, monkeypatch: Any) -> None:
    def locked(path: Any = ".") -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(os, "scandir", locked)
    done = run_cli("train", "photos", "--plugin", "simclr", "data.image_size=16", *SETTINGS)
    assert "photos" in one_sentence(done) and "Permission denied" in done.err


def test_a_loss_that_explodes(run_cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data.name=shapes", "data.image_size=16", "data.options.train_images=64", "data.options.test_images=16"]
    wild = ["optimizer.name=sgd", "optimizer.lr=1e30", "schedule.warmup_epochs=0"]
    done = run_cli("train", "--plugin", "simclr", *data, *SETTINGS, *wild, "run.name=wild")
    message = done.err[done.err.index("error: ") :]
    assert done.code == 2 and "Traceback" not in done.err
    assert "not finite at step" in message and "step-000000000.pt" in message
    assert Run(tmp_path / "runs" / "wild").state() == "failed"


def test_a_run_whose_checkpoints_are_all_damaged(run_cli: Any, tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "damaged")))
    for path in run.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    for words in (["evaluate", str(run.path)], ["export", str(run.path)], ["train", "--resume", str(run.path)]):
        assert "no checkpoint in" in one_sentence(run_cli(*words))
    assert len(list(run.checkpoints.iterdir())) == len(list(tiny_run.checkpoints.iterdir()))
