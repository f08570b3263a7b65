"""Sources made of arrays, and what every source shares: names, hold-out, limit, clean images, fingerprint."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clf import images
from clf.config import DataSection
from clf.data import DataSource, Progress, from_arrays, load_source, source_names
from clf.data.source import Split, limit_rows, stratified
from clf.errors import ConfigError, DataError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def archive(folder: Path, **arrays: Any) -> str:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return str(path)


def load(root: str, seed: int = 0, **settings: Any) -> DataSource:
    return load_source(DataSection(name="npz", root=root, **settings), seed)


def test_unknown_sources_are_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'cifar' is no data source; there are shapes, digits, .* Did you mean"):
        load_source(DataSection(name="cifar"), 0)


def test_further_sources_are_found_by_name_and_do_not_replace_built_in_ones() -> None:
    def mine(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
        return from_arrays(section, seed, (noise(4, 3, 8, 8), None))

    assert load_source(DataSection(name="mine"), 0, extra={"mine": mine}).name == "mine"
    assert source_names({"mine": mine})[-1] == "mine"
    assert load_source(DataSection(name="digits"), 0, extra={"digits": mine}).channels == 1


@pytest.mark.parametrize("shape", [(6, 9, 9), (6, 9, 9, 1), (6, 1, 9, 9), (6, 9, 9, 3), (6, 3, 9, 9)])
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    data = load(archive(tmp_path, images=x))
    channels = 3 if 3 in shape else 1
    assert data.train.images.shape == (6, channels, 9, 9) and data.channels == channels
    first = x[0].transpose(2, 0, 1) if shape[-1] in (1, 3) else x[0].reshape(channels, 9, 9)
    assert np.array_equal(data.train.images[0].numpy(), first)
    assert data.test is None and data.train.labels is None and data.class_names is None
    assert data.split_note == "none" and data.image_size == 9


def test_npz_floats_in_unit_range_are_converted(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 4 * 8 * 8).reshape(4, 8, 8)
    assert np.array_equal(load(archive(tmp_path, images=x)).train.images[:, 0].numpy(), np.rint(x * 255))


def test_npz_own_test_split_and_class_names(tmp_path: Path) -> None:
    root = archive(
        tmp_path,
        train_images=noise(6, 8, 8),
        train_labels=np.array([0, 1, 2, 0, 1, 2]),
        test_images=noise(2, 8, 8, seed=1),
        test_labels=np.array([2, 0]),
        class_names=np.array(["ant", "bee", "cat"]),
    )
    data = load(root)
    assert data.class_names == ("ant", "bee", "cat") and data.split_note == "test split of the file"
    assert data.test is not None and data.test.labels is not None and data.test.labels.tolist() == [2, 0]
    assert len(data.train) == 6


def test_npz_labels_of_any_kind_become_numbers(tmp_path: Path) -> None:
    x = noise(4, 8, 8)
    for given_labels, names in [
        (np.array([40, 7, 7, 40]), ("7", "40")),
        (np.array(["dog", "cat", "cat", "dog"]), ("cat", "dog")),
        (np.array([b"dog", b"cat", b"cat", b"dog"]), ("cat", "dog")),
        (np.array([[1], [0], [0], [1]]), ("0", "1")),
    ]:
        data = load(archive(tmp_path, images=x, labels=given_labels), test_fraction=0)
        assert data.train.labels is not None
        assert data.train.labels.tolist() == [1, 0, 0, 1] and data.class_names == names
    root = archive(tmp_path, images=x, labels=np.array(["b", "a", "a", "b"]), class_names=np.array(["b", "z", "a"]))
    data = load(root, test_fraction=0)
    assert data.train.labels is not None and data.train.labels.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": noise(4, 8, 8)}, r"holds no images: its keys are x, wanted are images or train_images"),
        ({"images": noise(4, 8)}, r"images have shape \(4, 8\); wanted are"),
        ({"images": noise(4, 8, 8, 2)}, r"images have shape \(4, 8, 8, 2\)"),
        ({"images": noise(0, 8, 8)}, r"images have shape"),
        ({"images": noise(4, 8, 8).astype(np.int32)}, "images are int32; wanted is uint8"),
        ({"images": noise(4, 8, 8) / 1.0}, "images are floats from 0 to 255"),
        ({"images": np.full((4, 8, 8), np.nan)}, "images are floats from nan to nan"),
        ({"images": noise(4, 8, 8), "labels": np.arange(3)}, r"labels are int64 of shape \(3,\); wanted are 4"),
        ({"images": noise(4, 8, 8), "labels": np.ones(4)}, "labels are float64"),
        ({"images": noise(4, 8, 8), "labels": np.ones(4, int)}, "all 4 labels .* are the same"),
        ({"images": noise(4, 8, 8), "test_images": noise(4, 9, 9)}, r"test_images are \(1, 9, 9\) but the training"),
        (
            {"images": noise(4, 8, 8), "labels": np.array([0, 1, 5, 0]), "class_names": np.array(["a", "b"])},
            "label '0' is none of the 2 class_names",
        ),
        ({"images": np.array([{}], dtype=object)}, "is not a readable .npz archive of plain arrays"),
    ],
)
def test_npz_errors_name_the_array(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(archive(tmp_path, **arrays))


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'npz' needs data\.root, the \.npz file"):
        load_source(DataSection(name="npz"), 0)
    with pytest.raises(DataError, match=r"absent\.npz does not exist"):
        load(str(tmp_path / "absent.npz"))
    with pytest.raises(DataError, match="is not a file"):
        load(str(tmp_path))
    np.save(tmp_path / "one.npy", noise(4, 8, 8))
    with pytest.raises(DataError, match="is a single array"):
        load(str(tmp_path / "one.npy"))
    for name, content in [("text.npz", b"hello"), ("empty.npz", b""), ("p.npz", pickle.dumps({"images": 1}))]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"is not a readable \.npz archive"):
            load(str(tmp_path / name))
    whole = Path(archive(tmp_path, images=noise(40, 8, 8))).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"is not a readable \.npz archive"):
        load(str(tmp_path / "cut.npz"))


def zipped(folder: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(folder / "set.npz", "w", method) as file:
        file.writestr(name, content)
    return (folder / "set.npz").read_bytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["packed data", "header", "encrypted", "method"])
def test_damaged_npz_files(tmp_path: Path, kind: str) -> None:
    whole = npy(noise(4, 8, 8))
    if kind == "header":
        whole = whole.replace(b"}", b"(")
    data = bytearray(zipped(tmp_path, "images.npy", whole, zipfile.ZIP_DEFLATED))
    central = data.index(b"PK\1\2")
    if kind == "packed data":
        data[60:80] = b"\xff" * 20
    elif kind == "encrypted":
        data[6], data[central + 8] = 1, 1
    elif kind == "method":
        data[8], data[central + 10] = 97, 97
    (tmp_path / "set.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.npz is not a readable \.npz archive of plain arrays: ."):
        load(str(tmp_path / "set.npz"))


def test_a_member_of_an_npz_file_that_is_no_array(tmp_path: Path) -> None:
    zipped(tmp_path, "images", b"hello")
    with pytest.raises(DataError, match=r"set\.npz: images is not an array; write the archive with numpy\.savez"):
        load(str(tmp_path / "set.npz"))


@pytest.mark.parametrize(
    ("given_labels", "names", "numbers", "classes"),
    [
        ([-1, 5, 7, -1, 5, 7], None, [-1, 0, 1, -1, 0, 1], ("5", "7")),
        ([-1, 0, 1, -2, 2, 0], ["ant", "bee", "cat"], [-1, 0, 1, -1, 2, 0], ("ant", "bee", "cat")),
        ([-1, 1, 1, -1, 1, -1], ["1", "-1"], [1, 0, 0, 1, 0, 1], ("1", "-1")),
    ],
)
def test_negative_labels_of_npz_files_are_unknown(
    tmp_path: Path, given_labels: list[int], names: list[str] | None, numbers: list[int], classes: tuple[str, ...]
) -> None:
    more = {"class_names": np.array(names)} if names else {}
    root = archive(tmp_path, images=noise(6, 8, 8), labels=np.array(given_labels), **more)
    data = load(root, test_fraction=0)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == numbers and data.class_names == classes


def test_unknown_labels_are_trained_on_and_not_held_out(tmp_path: Path) -> None:
    y = torch.tensor([-1] * 10 + [0] * 10 + [1] * 10)
    train, test = stratified(y, 0.3)
    assert train.tolist()[:10] == list(range(10)) and y[test].tolist() == [0] * 3 + [1] * 3
    assert torch.equal(test, 10 + stratified(y[10:], 0.3)[1])  # what is held out does not depend on the others
    assert len(stratified(y[:10], 0.3)[1]) == 0
    x = torch.from_numpy(noise(10, 1, 8, 8))
    assert Split(x, x, y[:10]).labelled() is None
    root = archive(tmp_path, images=noise(4, 8, 8), labels=np.array([1, -1, 1, -1]))
    with pytest.raises(DataError, match=r"all 2 labels that are not negative, which means unknown, of .* are the same"):
        load(root)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_stratified_hold_out(labels: list[int], fraction: float) -> None:
    y = torch.tensor(labels)
    train, test = stratified(y, fraction)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist()) and test.tolist() == sorted(test.tolist())
    for label in set(labels):
        n, held = labels.count(label), int((y[test] == label).sum())
        assert held == (0 if n == 1 else min(max(round(fraction * n), 1), n - 1))


def test_the_hold_out_is_the_same_for_all_seeds_and_sizes_of_run(tmp_path: Path) -> None:
    root = archive(tmp_path, images=noise(50, 8, 8), labels=np.arange(50) % 5)
    a, b = load(root, seed=0), load(root, seed=1, limit=7)
    assert a.test is not None and b.test is not None and a.test.labels is not None
    assert torch.equal(a.test.images, b.test.images) and a.test.names == b.test.names
    assert a.test.labels.bincount().tolist() == [2] * 5 and len(a.train) == 40
    assert a.split_note == "20% held out, stratified"
    assert set(a.train.names or []).isdisjoint(a.test.names or [])
    assert a.fingerprint == b.fingerprint
    assert len(b.train) == 7 and set(b.train.names or []) <= set(a.train.names or [])


def test_no_hold_out_when_the_fraction_is_zero(tmp_path: Path) -> None:
    data = load(archive(tmp_path, images=noise(4, 8, 8), labels=np.array([0, 1, 0, 1])), test_fraction=0)
    assert data.test is None and data.split_note == "none" and len(data.train) == 4


def test_the_limit_is_a_seeded_choice() -> None:
    assert limit_rows(5, None, 0) is None and limit_rows(5, 5, 0) is None and limit_rows(5, 9, 0) is None
    a, b, c = limit_rows(100, 10, 0), limit_rows(100, 10, 0), limit_rows(100, 10, 1)
    assert a is not None and b is not None and c is not None
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert len(a.unique()) == 10 and a.tolist() == sorted(a.tolist())


def test_the_fingerprint_changes_with_any_pixel_and_any_label(tmp_path: Path) -> None:
    x, y = noise(4, 8, 8), np.array([0, 1, 0, 1])
    prints = [load(archive(tmp_path, images=x, labels=y)).fingerprint]
    x[3, 7, 7] ^= 1
    prints.append(load(archive(tmp_path, images=x, labels=y)).fingerprint)
    prints.append(load(archive(tmp_path, images=x, labels=y[::-1])).fingerprint)
    prints.append(load(archive(tmp_path, images=x)).fingerprint)
    assert len(set(prints)) == 4 and all(len(p) == 64 for p in prints)


@pytest.mark.parametrize("size", [8, 12, 20, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_clean_images_are_what_serving_makes_of_the_same_pixels(tmp_path: Path, size: int, channels: int) -> None:
    x = noise(3, channels, 12, 20)
    data = load(archive(tmp_path, images=x), image_size=size)
    assert data.image_size == size and data.train.images.shape == (3, channels, 12, 20)
    for i in range(3):
        picture = Image.fromarray(x[i].transpose(1, 2, 0) if channels == 3 else x[i, 0])
        expected = np.atleast_3d(images.resize(picture, size)).transpose(2, 0, 1)
        assert np.array_equal(data.train.clean[i].numpy(), expected)


def test_clean_images_share_memory_with_canvases_of_the_same_size(tmp_path: Path) -> None:
    data = load(archive(tmp_path, images=noise(4, 8, 8), labels=np.array([0, 1, 0, 1])))
    assert data.train.clean is data.train.images


def test_digits() -> None:
    data = load_source(DataSection(name="digits"), 0)
    assert (data.image_size, data.channels) == (32, 1)
    assert data.test is not None and len(data.train) + len(data.test) == 1797
    assert data.class_names == tuple("0123456789")
    assert data.train.images.shape[1:] == (1, 32, 32) and data.train.images.max() == 255
    assert load_source(DataSection(name="digits", image_size=16), 0).train.images.shape[1:] == (1, 16, 16)


def test_only_labelled_images_are_labelled() -> None:
    x = torch.from_numpy(noise(3, 1, 8, 8))
    some = Split(x, x, torch.tensor([1, -1, 0]), ["a", "b", "c"]).labelled()
    assert some is not None and some.labels is not None
    assert some.labels.tolist() == [1, 0] and some.names == ["a", "c"] and torch.equal(some.images, x[[0, 2]])
    assert Split(x, x).labelled() is None
    whole = Split(x, x, torch.tensor([1, 0, 0]))
    assert whole.labelled() is whole


def write_idx(path: Path, array: np.ndarray, zipped: bool) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_files_are_read_gzipped_or_not(tmp_path: Path, name: str, folder: str, zipped: bool) -> None:
    x, y = noise(20, 28, 28), np.arange(20) % 10
    raw = tmp_path / folder / "raw"
    for part, n in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", x[:n], zipped)
        write_idx(raw / f"{part}-labels-idx1-ubyte", y[:n], zipped)
    data = load_source(DataSection(name=name, root=str(tmp_path)), 0)
    assert np.array_equal(data.train.images[:, 0].numpy(), x) and data.image_size == 28
    assert data.test is not None and data.test.labels is not None and data.test.labels.tolist() == list(range(10))
    assert data.class_names is not None and len(data.class_names) == 10


def test_damaged_mnist_files_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", noise(6, 28, 28), False)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(6), False)
    section = DataSection(name="mnist", root=str(tmp_path))
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(5), False)
    with pytest.raises(DataError, match="6 train images but 5 labels"):
        load_source(section, 0)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is damaged \(.*\); fetch it again"):
        load_source(section, 0)
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="is damaged"):
        load_source(section, 0)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "stl10"])
def test_absent_sets_say_how_to_get_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"'{name}' is not complete in .*; set data.download=true to fetch it, or"):
        load_source(DataSection(name=name, root=str(tmp_path)), 0)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "stl10"])
def test_a_failed_download_is_explained(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match=rf"'{name}' could not be downloaded \(.*\); check the network, or put its"):
        load_source(DataSection(name=name, root=str(tmp_path), download=True), 0)


def test_cifar_and_stl_arrays_are_put_into_the_same_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layouts that torchvision documents: CIFAR (N, H, W, C) with a list of targets, STL-10 (N, C, H, W)."""

    class Fake:
        def __init__(self, root: str, download: bool, train: bool = True, split: str = "") -> None:
            n = 6 if train and split != "test" else 2
            self.data = noise(n, 3, 96, 96) if split else noise(n, 32, 32, 3)
            self.labels = np.array([0, 1, -1, -1, 1, 0][:n])
            self.targets = [0, 1, 1, 0, 1, 0][:n]
            self.classes = ["cat", "dog"]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    monkeypatch.setattr("torchvision.datasets.STL10", Fake)
    cifar = load_source(DataSection(name="cifar10", root=str(tmp_path)), 0)
    assert torch.equal(cifar.train.images, torch.from_numpy(noise(6, 32, 32, 3)).permute(0, 3, 1, 2))
    assert cifar.class_names == ("cat", "dog") and cifar.image_size == 32
    stl = load_source(DataSection(name="stl10", root=str(tmp_path)), 0)
    assert stl.train.images.shape == (6, 3, 96, 96) and stl.train.labels is not None
    assert stl.train.labels.tolist() == [0, 1, -1, -1, 1, 0]
    labelled = stl.train.labelled()
    assert labelled is not None and len(labelled) == 4


def test_an_official_training_batch_of_cifar10_can_be_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images in the same order as an archive made of the other batches, so the fingerprint is the same too."""
    pictures, labels = noise(10, 32, 32, 3), np.arange(10) % 2

    class Fake:
        def __init__(self, root: str, download: bool, train: bool) -> None:
            self.data = pictures if train else noise(2, 32, 32, 3, seed=1)
            self.targets = labels.tolist() if train else [0, 1]
            self.classes = ["cat", "dog"]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)

    def cifar(batch: object) -> DataSource:
        section = DataSection(name="cifar10", root=str(tmp_path), options={"held_out_batch": batch})
        return load_source(section, 0)

    source, first = cifar(5), np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    assert source.test is not None and source.split_note == "official training batch 5 held out"
    assert np.array_equal(source.train.images[:], first[:8]) and np.array_equal(source.test.images[:], first[8:])
    same = load(archive(tmp_path, images=first[:8], labels=labels[:8], test_images=first[8:], test_labels=labels[8:]))
    assert source.fingerprint == same.fingerprint
    middle = cifar(2)
    assert middle.test is not None and np.array_equal(middle.test.images[:], first[2:4])
    assert np.array_equal(middle.train.images[:], np.delete(first, [2, 3], axis=0))
    assert cifar(0).split_note == "official test split" and len(cifar(0).train) == 10
    with pytest.raises(
        ConfigError, match=r"held_out_batch must be one of CIFAR-10's training batches, 1 to 5, .* got 6"
    ):
        cifar(6)
    with pytest.raises(ConfigError, match="held_out_batch must be of type int"):
        cifar("5")
    with pytest.raises(ConfigError, match=r"data.options.held_out_batch is unknown to data source 'cifar100'"):
        load_source(DataSection(name="cifar100", root=str(tmp_path), options={"held_out_batch": 1}), 0)
