"""What there is to embed: folders, tars as WebDataset writes them, and both behind URLs."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from bulk_helpers import on_the_web, write_tar
from hypothesis import given
from hypothesis import strategies as st
from serve_helpers import write_pictures

from clf import images
from clf.errors import DataError, ImageError, MissingExtraError
from clf_serve.bulk import sources
from clf_serve.bulk.sources import expand, find_source
from clf_serve.bulk.tars import DamagedTarError, read_samples


def keys(name: object) -> list[str]:
    return [listed.key for listed in find_source([str(name)]).listing()]


def samples(tar: Path, start: int = 0) -> list[tuple[str, str, int]]:
    with tar.open("rb") as file:
        return [(sample.key, sample.name, sample.left_out) for sample in read_samples(file, start)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x.tar", ["x.tar"]),
        ("x-{008..011}.tar", ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("s3://b/{train,val}.tar", ["s3://b/train.tar", "s3://b/val.tar"]),
        ("x-{3..1}.tar", []),
        ("{x}", ["{x}"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert list(expand(text)) == names


def test_a_folder_is_listed_as_everywhere_in_clf(tmp_path: Path) -> None:
    write_pictures(tmp_path / "b", 2)
    write_pictures(tmp_path / "a" / "c", 1)
    write_pictures(tmp_path / ".hidden", 1)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a.png").symlink_to("nowhere")

    found = list(find_source([str(tmp_path)]).listing())

    assert [tmp_path / each.key for each in found] == images.find_images(tmp_path)
    assert [each.size for each in found if each.key == "a.png"] == [-1]
    last = (tmp_path / found[-1].key).stat()
    assert (found[-1].size, found[-1].mtime_ns) == (last.st_size, last.st_mtime_ns)
    assert keys(tmp_path / "b" / "0001.png") == ["0001.png"]
    assert keys(f"file://{tmp_path}/b") == ["0000.png", "0001.png"]


def test_a_file_that_changed_since_it_was_listed_is_told(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, 1)
    source = find_source([str(tmp_path)])
    (listed,) = source.listing()
    assert source.read(listed) == path.read_bytes()

    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError, match=r"0000.png has changed since it was listed"):
        source.read(listed)
    path.unlink()
    with pytest.raises(ImageError, match=r"0000.png does not exist"):
        source.read(listed)


def test_tars_by_name_glob_and_braces(tmp_path: Path) -> None:
    for name in ("x-000.tar", "x-001.tar", "y.tgz"):
        write_tar(tmp_path / name, [])
    (tmp_path / "deep").mkdir()
    write_tar(tmp_path / "deep" / "x-000.tar", [])

    assert keys(tmp_path / "x-{000..001}.tar") == ["x-000.tar", "x-001.tar"]
    assert keys(tmp_path / "x-*.tar") == ["x-000.tar", "x-001.tar"]
    assert keys(tmp_path / "**" / "*.t*") == ["deep/x-000.tar", "x-000.tar", "x-001.tar", "y.tgz"]
    both = find_source([str(tmp_path / "y.tgz"), str(tmp_path / "x-000.tar"), str(tmp_path / "y.tgz")])
    assert [listed.key for listed in both.listing()] == ["y.tgz", "x-000.tar"] and both.tars


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["none"], "none does not exist; give an image, a folder of images, tar files or a URL"),
        (["none.tar"], "none.tar cannot be read: No such file or directory"),
        (["z-*.tar"], r"z-\*.tar matches no file"),
        (["a.tar", "b.zip"], "b.zip is no tar file; name one folder of images, or any number of tars"),
        (["x-{0..2000000}.tar"], "names more than 1000000 files"),
        (["x-{3..1}.tar"], "names no file; the smaller number comes first"),
        (["nope://x/y"], "nope://x/y cannot be used: Protocol not known: nope"),
        (["memory://none"], "memory://none cannot be listed"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        list(find_source(names).listing())


def test_braces_that_multiply_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MOST_TARS", 10)
    assert len(list(find_source(["x-{0..4}-{0..1}.tar"]).shown)) == 10
    with pytest.raises(DataError, match=r"x-\{0..6\}-\{0..6\}.tar names more than 10 files; name fewer"):
        find_source(["x-{0..6}-{0..6}.tar"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(url: str, **_: object) -> None:
        raise ImportError("Install s3fs to access S3") from ModuleNotFoundError("No module", name="s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", gone)
    with pytest.raises(MissingExtraError, match="s3://b/x needs a package that is not installed: pip install s3fs"):
        find_source(["s3://b/x"])
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'clf-vision\[remote\]'"):
        find_source(["gs://b/x"])


MEMBERS = [
    ("./0/a.jpg", b"1"),
    ("./0/a.mask.png", b"2"),
    ("./0/a.json", b"3"),
    ("b.seg.png", b"4"),
    ("b.PNG", b"5"),
    ("c.txt", b"6"),
    ("._d.jpg", b"7"),
    (".hidden/d.jpg", b"8"),
    ("l" * 200 + ".webp", b"9" * 2000),
    ("2024.05.jpg", b"10"),
    ("e.jpg", b"11"),
]
FOUND = [("0/a", "./0/a.jpg", 1), ("b", "b.PNG", 1), ("l" * 200, "l" * 200 + ".webp", 0), ("2024", "2024.05.jpg", 0)]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_of_a_tar_from_any_of_them_on(tmp_path: Path, name: str, kind: int) -> None:
    members = [each for each in MEMBERS if kind != tarfile.USTAR_FORMAT or len(each[0]) < 100]
    tar = write_tar(tmp_path / name, members, kind)
    wanted = [each for each in [*FOUND, ("e", "e.jpg", 0)] if kind != tarfile.USTAR_FORMAT or len(each[0]) < 100]

    assert samples(tar) == wanted
    with tar.open("rb") as file:
        offsets = [sample.offset for sample in read_samples(file)]
    for i, offset in enumerate(offsets):
        assert samples(tar, offset) == wanted[i:]


@given(cut=st.integers(0, 9000))
def test_a_cut_tar_gives_what_is_whole_and_says_so(cut: int) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, data in MEMBERS[3:7] + MEMBERS[9:]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = []
    end = 6 * 1024 + 512  # one header and one block each, then at least one block of the end
    if cut >= end:
        assert len(list(read_samples(io.BytesIO(whole.getvalue()[:cut])))) == 3
        return
    with pytest.raises(DamagedTarError, match="the tar is damaged from here on"):
        for sample in read_samples(io.BytesIO(whole.getvalue()[:cut])):
            found.append(sample.key)
    assert found == ["b", "2024", "e"][: len(found)]
    assert len(found) >= sum(cut >= whole for whole in (2 * 1024, 5 * 1024 + 512, 6 * 1024))


def test_links_in_a_tar_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.LNKTYPE), ("b.png", tarfile.SYMTYPE), ("c.txt", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.png"
            tar.addfile(info)
    with (tmp_path / "x.tar").open("rb") as file:
        found = list(read_samples(file))
    assert [sample.key for sample in found] == ["a", "b"] and all(not sample.data for sample in found)
    assert all(sample.reason.startswith("is a link, which is not followed; pack what") for sample in found)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"x") for i in range(4)])
    data = bytearray(tar.read_bytes())
    data[2 * 1024 : 2 * 1024 + 20] = b"?" * 20
    tar.write_bytes(data)
    with tar.open("rb") as file:
        reader = read_samples(file)
        assert [next(reader).key, next(reader).key] == ["0", "1"]
        with pytest.raises(DamagedTarError, match="bad checksum"):
            next(reader)
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(bytes(data))[:-30])
    with pytest.raises(DamagedTarError):
        samples(tmp_path / "y.tar.gz")


def test_a_folder_in_memory_is_listed_in_the_order_of_a_local_one(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    names = ["b/1.jpg", "a.png", "a/2.png", "a/x/a/3.jpg", "a/.h/4.png", "z.txt", "b.webp", "a/a/5.png"]
    for name in names:
        memory.pipe_file(f"/sources/photos/{name}", name.encode())
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    source = find_source(["memory://sources/photos/"])
    found = list(source.listing())

    assert [each.key for each in found] == keys(tmp_path)
    assert all(source.read(each) == each.key.encode() for each in found)
    assert source.uri("a.png") == "memory://sources/photos/a.png"
    memory.pipe_file("/sources/photos/a.png", b"longer than before")
    with pytest.raises(ImageError, match="has changed since it was listed"):
        source.read(next(each for each in found if each.key == "a.png"))
    memory.rm_file("/sources/photos/b.webp")
    with pytest.raises(ImageError, match="does not exist"):
        source.read(next(each for each in found if each.key == "b.webp"))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with on_the_web(tmp_path, {}) as address:
        yield address


def test_a_tar_behind_a_web_address_and_its_secret(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write_tar(tmp_path / "x-0.tar", MEMBERS)
    write_tar(tmp_path / "x-1.tar", MEMBERS[-1:])

    source = find_source([f"{web}/x-{{0..1}}.tar?token=hunter2"])
    listed = list(source.listing())
    with source.open(listed[0]) as file:
        read = list(read_samples(file))
    found = [sample.key for sample in read]
    for i, sample in enumerate(read):
        with source.open(listed[0]) as file:  # which cannot be moved in, and says that it could
            assert [each.key for each in read_samples(file, sample.offset)] == found[i:]

    assert [each.key for each in listed] == ["x-0.tar", "x-1.tar"]
    assert found == [key for key, _, _ in FOUND] + ["e"]
    assert source.uri("x-0.tar") == f"{web}/x-0.tar?token=***" and "hunter2" not in repr(source.shown)
    for address, why in (
        (f"{web}/none.tar", "(404|not there)"),
        ("http://127.0.0.1:1/x.tar", "Cannot connect|refused"),
    ):
        with pytest.raises(DataError, match=f"cannot be read: .*({why})") as told:
            list(find_source([f"{address}?token=hunter2"]).listing())
        assert "hunter2" not in str(told.value)
