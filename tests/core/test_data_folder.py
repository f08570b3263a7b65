"""Folders of real files: flat, class folders, train and test; unreadable files; the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clf import images
from clf.config import DataSection
from clf.data import DataSource, load_source
from clf.data.folder import canvas_size
from clf.errors import ConfigError, DataError


def put(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def load(root: Path, seed: int = 0, **settings: Any) -> DataSource:
    options = settings.pop("options", {})
    return load_source(DataSection(name="folder", root=str(root), options=options, **settings), seed)


def class_folders(root: Path, per_class: int = 5) -> Path:
    for label in ("bee", "ant"):
        for i in range(per_class):
            put(root / label / f"{i}.png", seed=10 * len(label) + 100 * (label == "ant") + i)
    return root


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"{i}.jpg", seed=i)
    data = load(tmp_path)
    assert (data.image_size, data.channels, data.split_note) == (96, 3, "none")
    assert data.train.labels is None and data.test is None and data.class_names is None
    assert data.train.names == ["0.jpg", "1.jpg", "2.jpg"]
    assert data.train.images.shape == (3, 3, 110, 110) and data.train.clean.shape == (3, 3, 96, 96)


def test_clean_images_are_those_of_clf_images(tmp_path: Path) -> None:
    path = put(tmp_path / "tall.png", size=(37, 91))
    put(tmp_path / "wide.png", size=(300, 20))
    data = load(tmp_path, image_size=64)
    assert np.array_equal(data.train.clean[0].permute(1, 2, 0).numpy(), images.prepare(path, 64))
    assert canvas_size(64) == 74 and canvas_size(224) == 256


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("size", [(37, 91), (91, 37), (300, 200), (74, 74), (80, 74), (1, 5), (901, 40)])
def test_canvases_are_pillows_central_squares_to_a_level_or_two(
    tmp_path: Path, size: tuple[int, int], soft: bool
) -> None:
    grain = (5, 5) if soft else size[::-1]
    pixels = np.random.default_rng(0).integers(0, 256, (*grain, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.save(tmp_path / "0.png")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = image.crop((left, top, left + side, top + side))
    expected = np.asarray(square.resize((74, 74), Image.Resampling.BICUBIC)).astype(int)
    canvas = load(tmp_path, image_size=64).train.images[0].permute(1, 2, 0).numpy()
    difference = np.abs(canvas - expected)
    assert difference.max() <= (0 if side == 74 else 2) and difference.mean() < 0.02


def test_class_folders_give_labels_and_a_stratified_hold_out(tmp_path: Path) -> None:
    data = load(class_folders(tmp_path), image_size=16)
    assert data.class_names == ("ant", "bee") and data.split_note == "20% held out, stratified"
    assert data.train.labels is not None and data.test is not None and data.test.labels is not None
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 and data.test.labels.tolist() == [0, 1]
    assert sorted([*(data.train.names or []), *(data.test.names or [])]) == [
        f"{label}/{i}.png" for label in ("ant", "bee") for i in range(5)
    ]
    assert (load(tmp_path, seed=9, image_size=16).test or data.train).names == data.test.names


def test_classes_can_be_ignored(tmp_path: Path) -> None:
    data = load(class_folders(tmp_path), image_size=16, options={"class_folders": False})
    assert data.train.labels is None and data.test is None and len(data.train) == 10


@pytest.mark.parametrize("stray", ["loose.png", "ant/deeper/x.png"])
def test_images_elsewhere_mean_that_folders_are_not_classes(tmp_path: Path, stray: str) -> None:
    put(class_folders(tmp_path, 2) / stray)
    data = load(tmp_path, image_size=16)
    assert data.train.labels is None and len(data.train) == 5


def test_one_subfolder_is_no_class(tmp_path: Path) -> None:
    put(tmp_path / "holiday" / "a.png")
    put(tmp_path / "holiday" / "b.png")
    assert load(tmp_path, image_size=16).train.labels is None


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_folders(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "train", 3)
    put(tmp_path / name / "ant" / "x.png")
    put(tmp_path / name / "bee" / "y.png")
    data = load(tmp_path, image_size=16)
    assert data.split_note == f"test split: folder {name}" and len(data.train) == 6
    assert data.test is not None and data.test.labels is not None and data.test.labels.tolist() == [0, 1]
    assert data.test.names == [f"{name}/ant/x.png", f"{name}/bee/y.png"]


def test_unlabelled_test_images_are_not_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png")
    put(tmp_path / "test" / "b.png")
    data = load(tmp_path, image_size=16)
    assert data.train.names == ["train/a.png"] and data.test is None


def test_unreadable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"{i}.png", seed=i)
    whole = load(tmp_path, image_size=16)
    (tmp_path / "0b.png").write_bytes(b"")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    (tmp_path / "z.jpg").write_text("no image")
    data = load(tmp_path, image_size=16)
    assert data.train.names == ["0.png", "1.png", "3.png"]
    assert [s.path for s in data.skipped] == ["0b.png", "2.png", "z.jpg"]
    assert data.skipped[0].reason == "is empty" and data.skipped[1].reason.startswith("is truncated or corrupt")
    for i, name in enumerate(data.train.names or []):
        assert np.array_equal(data.train.clean[i].permute(1, 2, 0).numpy(), images.prepare(tmp_path / name, 16))
    assert torch.equal(data.train.images[:], whole.train.images[torch.tensor([0, 1, 3])])


def test_labels_follow_their_images_past_skipped_files(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "ant" / "0.png").write_bytes(b"")
    data = load(tmp_path, image_size=16, test_fraction=0)
    assert data.train.labels is not None and data.train.labels.tolist() == [0] * 4 + [1] * 5


def test_the_limit_reads_only_what_it_keeps(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / f"{i}.png", seed=i)
    seen: list[tuple[int, int]] = []
    section = DataSection(name="folder", root=str(tmp_path), image_size=16, limit=4)
    data = load_source(section, 3, progress=lambda done, total: seen.append((done, total)))
    assert len(data.train) == 4 and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert load_source(section, 3).train.names == data.train.names


def test_a_class_that_the_limit_leaves_out_keeps_its_number(tmp_path: Path) -> None:
    data = load(class_folders(tmp_path), image_size=16, limit=1, test_fraction=0)
    assert data.class_names == ("ant", "bee")


def test_the_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    put(tmp_path / "a.png", seed=0)
    put(tmp_path / "b.png", seed=1)
    prints = [load(tmp_path, image_size=16).fingerprint, load(tmp_path, image_size=16, seed=5).fingerprint]
    put(tmp_path / "b.png", seed=2)
    prints.append(load(tmp_path, image_size=16).fingerprint)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    prints.append(load(tmp_path, image_size=16).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_large_sets_are_cached_in_files_and_read_back(tmp_path: Path) -> None:
    root, cache = tmp_path / "photos", tmp_path / "cache"
    class_folders(root)
    (root / "ant" / "0.png").write_bytes(b"broken")
    in_memory = load(root, image_size=16)
    options = {"cache_above_mib": 0, "cache_dir": str(cache)}
    first = load(root, image_size=16, options=options)
    reads: list[int] = []
    section = DataSection(name="folder", root=str(root), image_size=16, options=options)
    second = load_source(section, 0, progress=lambda done, total: reads.append(done))
    assert reads == []  # nothing was decoded again
    for data in (first, second):
        assert torch.equal(data.train.images[:], in_memory.train.images)
        assert torch.equal(data.train.clean[:], in_memory.train.clean)
        assert data.train.names == in_memory.train.names and data.skipped == in_memory.skipped
        assert data.fingerprint == in_memory.fingerprint


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written .*set data\.options\.cache_dir"):
        options = {"cache_above_mib": 0, "cache_dir": str(tmp_path / "file" / "below")}
        load(tmp_path / "photos", options=options)


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    put(tmp_path / "photos" / "a.png")
    load(tmp_path / "photos", options={"cache_above_mib": 0})
    assert len(list((tmp_path / "xdg" / "clf" / "canvases").glob("*/canvases.u8"))) == 1


def test_a_class_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(tmp_path / "bee"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"data\.root: .*bee cannot be read: Permission denied"):
        load(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'folder' needs data\.root, the folder of images"):
        load_source(DataSection(name="folder"), 0)
    with pytest.raises(DataError, match=r"data\.root .*absent does not exist"):
        load(tmp_path / "absent")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load(tmp_path / "file.png")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare holds no images; files are known by their ending: .*png"):
        load(tmp_path / "bare")
    with pytest.raises(DataError, match=r"none of the 1 images in .* can be read, e\.g\. file\.png is empty"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.options\.cachedir is unknown.* Did you mean 'cache_dir'\?"):
        load(tmp_path, options={"cachedir": "x"})
    with pytest.raises(ConfigError, match=r"data\.options\.cache_limit_gib must be 0 or more, got -1"):
        load(tmp_path, options={"cache_limit_gib": -1})
