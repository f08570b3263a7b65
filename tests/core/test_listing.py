"""Listings of very many files: the same files in the same order as find_images, in little memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clf import images
from clf.data.listing import Listing, Names, list_folder
from clf.errors import DataError, ImageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def classes_of(listing: Listing) -> list[str]:
    assert listing.classes is not None and listing.labels is not None
    return [listing.classes[i] for i in listing.labels]


PART = st.text("ab-.Z é\U0001f600", min_size=1, max_size=3).filter(lambda s: s.strip(". "))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(PART, max_size=2), PART), max_size=12))
def test_the_order_is_that_of_sorted_paths(tmp_path_factory: pytest.TempPathFactory, found: list) -> None:
    root = tmp_path_factory.mktemp("listing")
    for folders, name in found:
        touch(root, "/".join([*(f"{folder}_" for folder in folders), f"{name}.jpg"]))
    expected = sorted(  # pathlib's own walk and order
        path for path in root.rglob("*.jpg") if not any(p.startswith(".") for p in path.relative_to(root).parts)
    )
    assert [root / name for name in images.walk(root)] == expected == images.find_images(root)
    if expected:
        assert list(list_folder(root).names) == [path.relative_to(root).as_posix() for path in expected]


def test_a_folder_sorts_before_a_longer_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg", "a-b/x.jpg", "a.jpg", "a b.jpg")
    assert list(list_folder(tmp_path).names) == ["a/x.jpg", "a b.jpg", "a-b/x.jpg", "a.jpg"]


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "bee/1.png", "ant/2.png", "bee/0.png", "ant-lion/3.png")
    listing = list_folder(tmp_path)
    assert listing.classes == ("ant", "ant-lion", "bee")
    assert classes_of(listing) == ["ant", "ant-lion", "bee", "bee"]


@pytest.mark.parametrize("stray", ["loose.png", "ant/deeper/x.png"])
def test_images_elsewhere_mean_that_folders_are_not_classes(tmp_path: Path, stray: str) -> None:
    listing = list_folder(touch(tmp_path, "ant/1.png", "bee/1.png", stray))
    assert listing.classes is None and listing.labels is None and len(listing) == 3


def test_several_subfolders_are_numbered_together(tmp_path: Path) -> None:
    touch(tmp_path, "train/bee/1.png", "train/cat/1.png", "test/ant/1.png", "test/cat/2.png")
    listing = list_folder(tmp_path, "train", "test")
    assert list(listing.names) == ["train/bee/1.png", "train/cat/1.png", "test/ant/1.png", "test/cat/2.png"]
    assert listing.classes == ("ant", "bee", "cat") and classes_of(listing) == ["bee", "cat", "ant", "cat"]
    touch(tmp_path, "test/loose.png")
    assert list_folder(tmp_path, "train", "test").classes is None


def test_a_linked_folder_is_listed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "set", "cats/x.png")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "cats", target_is_directory=True)
    (tmp_path / "set" / "cats" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    assert list(list_folder(tmp_path / "set").names) == ["again/x.png"]  # the first path in order


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "test/readme.txt", "test/.hidden.png")
    with pytest.raises(DataError, match=r"test holds no images; files are known by their ending: .*\.png"):
        list_folder(tmp_path, "train", "test")


def test_the_list_is_whole_or_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="b cannot be read: Permission denied"):
        list_folder(tmp_path)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        os.close(os.open(raw, os.O_CREAT))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (name,) = list_folder(tmp_path).names
    assert (tmp_path / name).exists() and os.fsencode(name) == b"caf\xe9.png"


def test_names_are_a_sequence(tmp_path: Path) -> None:
    names = list_folder(touch(tmp_path, "a.png", "b.png", "c.png")).names
    assert names == ["a.png", "b.png", "c.png"] and names != ["a.png"] and names != "abc"
    assert names[-1] == "c.png" and names[1:] == ["b.png", "c.png"] and "b.png" in names
    assert names.rows(np.array([2, 0])) == ["c.png", "a.png"]
    assert repr(names.rows(np.array([0]))) == "Names('a.png'; 1)"
    assert isinstance(names, Names)
    with pytest.raises(IndexError):
        names[3]


def test_a_name_costs_little_memory(tmp_path: Path) -> None:
    """In one flat folder, all of whose names are in memory at a time, as strings, before they are sorted."""
    n = 4000
    touch(tmp_path, *(f"photo-{i:08d}.jpg" for i in range(n)))
    tracemalloc.start()
    try:
        listing = list_folder(tmp_path)
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing) == n and listing.names[n - 1] == f"photo-{n - 1:08d}.jpg"
    assert current < 60 * n and peak < 120 * n
