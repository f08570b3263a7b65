"""Data sources of plugins and of files: named, trained on, resumed, evaluated on, and refused where they are wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from clf import experiment, trainer, training
from clf.config import Config, DataSection
from clf.data import DataSource
from clf.errors import ClfError, ConfigError, DataError, PluginError, RunError
from clf.evaluate import evaluate_run
from clf.runs import Run

Make = Callable[..., Config]
Install = Callable[..., Path]
BIRDS = """
import numpy as np

import clf
from clf.data import DataSection, DataSource, Progress, from_arrays, read_options, required_root


def birds(section, seed, progress):
    options = read_options(section, {"labels": True})
    images = np.load(required_root(section, "an .npy file"))
    if progress:
        progress(len(images), len(images))
    labels = np.arange(len(images)) % 3 if options["labels"] else None
    return from_arrays(section, seed, (images, labels), class_names=options["labels"] and ["hen", "owl", "tit"] or None)


def small(section: DataSection, seed: int, progress: Progress | None) -> DataSource:
    return from_arrays(section, seed, (np.arange(24, dtype=np.uint8).repeat(192).reshape(24, 3, 8, 8), None))
"""
HOOK = """
@clf.hookimpl
def clf_datasets():
    return [small, birds]
"""
ODD = """
import dataclasses
import numpy as np
import torch
import clf
from clf.data import DataSource, Split, from_arrays


def odd(section, seed, progress):
    good = from_arrays(section, seed, (np.zeros((6, 1, 8, 8), np.uint8), np.array([0, 1, 0, 1, 0, 1])))
    train = good.train
    {body}
"""
SHORT = {"train.epochs": 1, "train.batch_size": 12, "monitor.knn_every": 0, "data.options": {}}


def file(folder: Path, source: str, name: str = "birds.py") -> str:
    path = folder / name
    path.write_text(dedent(source))
    return str(path)


@pytest.fixture
def pixels(tmp_path: Path) -> str:
    path = tmp_path / "birds.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 3, 20, 16), np.uint8))
    return str(path)


def load(name: str, root: str | None = None, **settings: Any) -> DataSource:
    return experiment.load_data(DataSection(name=name, root=root, **settings), 0)


def configured(tiny: Make, folder: Path, name: str, root: str) -> Config:
    section = DataSection(name=name, root=root)
    return tiny(folder / "runs", {k: v for k, v in SHORT.items() if k != "data.options"}).model_copy(
        update={"data": section}
    )


def weights(run: Run) -> str:
    trained = experiment.load(run)
    state = trained.method.state_dict()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


def test_a_plugin_gives_its_sources_by_name(install: Install, pixels: str) -> None:
    install("clf-birds", plugins={"birds": "clf_birds"}, modules={"clf_birds": BIRDS + HOOK})
    data = load("birds", pixels)
    assert (data.image_size, data.channels, len(data.train), data.class_names) == (16, 3, 48, ("hen", "owl", "tit"))
    assert load("birds:birds", pixels).fingerprint == data.fingerprint
    assert (len(load("birds:small").train), load("birds:small").channels) == (24, 3)


def test_a_file_gives_its_sources_with_and_without_a_hook(tmp_path: Path, pixels: str) -> None:
    path, hooked = file(tmp_path, BIRDS), file(tmp_path, BIRDS + HOOK, "hooked.py")
    assert len(load(f"{path}:birds", pixels).train) == len(load(f"{hooked}:birds", pixels).train) == 48
    alone = file(tmp_path, BIRDS.partition("def small")[0], "alone.py")
    assert load(alone, pixels).class_names == ("hen", "owl", "tit")
    with pytest.raises(PluginError, match=r"more than one data source: it offers .*birds.py:birds, .*birds.py:small"):
        load(path)


def test_names_that_are_none(tmp_path: Path, install: Install) -> None:
    install("clf-birds", plugins={"birds": "clf_birds"}, modules={"clf_birds": BIRDS + HOOK})
    for name, kind, message in [
        ("brids", ConfigError, "no data source; .* Did you mean 'birds'"),
        ("digit", ConfigError, "Did you mean 'digits'"),
        ("birds:smal", PluginError, r"\(clf-birds 1.0\) provides no data source named 'smal'.*Did you mean 'small'"),
        ("simclr", PluginError, "provides no data source named 'simclr': it offers no data source"),
        ("./gone.py", PluginError, "gone.py does not exist"),
        ("no such:thing", ConfigError, "is no data source"),
    ]:
        with pytest.raises(kind, match=message):
            load(name)


def test_options_and_roots_are_checked_by_the_public_helpers(tmp_path: Path, pixels: str) -> None:
    path = file(tmp_path, BIRDS.partition("def small")[0])
    with pytest.raises(ConfigError, match=r"data.options.label is unknown to data source .*Did you mean 'labels'"):
        load(path, pixels, options={"label": 3})
    with pytest.raises(ConfigError, match=r"needs data\.root, an .npy file"):
        load(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no\\n birds.')", "failed to read its data: ValueError: no birds (birds.py, line 12)"),
        ("return 1 / 0", "ZeroDivisionError: division by zero (birds.py, line 12)"),
        ("raise SystemExit", "SystemExit: no message (birds.py, line 12)"),
        ("return {}", "returned a dict, not a clf.data.DataSource"),
        ("return dataclasses.replace(good, name='')", "a data set without a name"),
        ("return dataclasses.replace(good, fingerprint='')", "without a fingerprint"),
        ("return dataclasses.replace(good, channels=2)", "images of 2 channels; they must have 1 or 3"),
        ("return dataclasses.replace(good, train=None)", "train = a NoneType, not a clf.data.Split"),
        ("return dataclasses.replace(good, image_size=9)", "train.clean of 8 x 8 pixels; image_size is 9"),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, images=train.images.float()))",
            "train.images of torch.float32 (4, 1, 8, 8); they must be uint8 (n, 1, H, W)",
        ),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, images=train.images[:, 0]))",
            "train.images of torch.uint8 (4, 8, 8)",
        ),
        ("return dataclasses.replace(good, train=train.rows(torch.arange(0)))", "train without images"),
        (
            "return dataclasses.replace(good, test=dataclasses.replace(good.test, clean=train.clean))",
            "4 clean images for 2 test images",
        ),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, labels=train.labels[:3]))",
            "3 labels for 4 train images",
        ),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, labels=train.labels.int()))",
            "train.labels as torch.int32 (4,)",
        ),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, labels=[0, 1, 0, 1]))",
            "train.labels as a list",
        ),
        ("return dataclasses.replace(good, class_names=('owl',))", "the train label 1 and 1 class_names"),
        (
            "return dataclasses.replace(good, train=dataclasses.replace(train, names=['a']))",
            "1 names for 4 train images",
        ),
    ],
)
def test_a_source_that_is_wrong_is_named_with_the_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], body: str, reason: str
) -> None:
    path = file(tmp_path, ODD.replace("{body}", body))
    with pytest.raises(PluginError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"data source 'odd' of plugin {path} ")
    assert reason in message
    assert ("Traceback" in capfd.readouterr().err) == ("failed" in message)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ("np.zeros((6, 8, 8, 3), np.uint8), None", r"images as uint8 \(6, 8, 8, 3\); they must be uint8 \(n, 1 or 3"),
        ("np.zeros((6, 3, 8, 8)), None", r"images as float64 \(6, 3, 8, 8\)"),
        ("np.zeros((0, 3, 8, 8), np.uint8), None", "holds no images"),
        ("np.zeros((6, 3, 8, 8), np.uint8), np.arange(5)", "has 5 labels for 6 images"),
        ("np.zeros((6, 3, 8, 8), np.uint8), np.array(list('ababab'))", r"labels as <U1 \(6,\); they must be whole"),
    ],
)
def test_wrong_arrays_are_told_by_from_arrays(tmp_path: Path, arrays: str, reason: str) -> None:
    path = file(tmp_path, ODD.replace("{body}", f"return from_arrays(section, seed, ({arrays}))"))
    with pytest.raises(DataError, match=reason):
        load(path)


def test_a_file_that_cannot_be_read_is_an_error_of_the_data(tmp_path: Path) -> None:
    path = file(tmp_path, BIRDS.partition("def small")[0])
    with pytest.raises(DataError, match=r"'birds' of plugin .*FileNotFoundError: .*gone.npy.*\(birds.py, line 10\)"):
        load(path, str(tmp_path / "gone.npy"))


def test_a_run_on_a_file_is_trained_resumed_to_the_same_bits_and_evaluated(
    tmp_path: Path, tiny: Make, pixels: str
) -> None:
    path = file(tmp_path, BIRDS)
    config = configured(tiny, tmp_path, f"{path}:birds", pixels)
    whole = training.train(config)
    assert whole.name == "simclr-birds-birds-1"
    source = whole.manifest()["data"]["source"]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert source == {"name": "birds", "plugin": path, "file": "birds.py", "sha256": digest}
    stops = "import os, signal, clf\nclass Stops(clf.Callback):\n    def on_step(self, trainer):\n"
    stops += "        if trainer.step == 2:\n            os.kill(os.getpid(), signal.SIGINT)\n"
    watched = config.monitor.model_copy(update={"callbacks": (file(tmp_path, stops, "stops.py"),)})
    with pytest.raises(trainer.Interrupted) as stopped:
        training.train(config.model_copy(update={"monitor": watched}))
    run = stopped.value.run
    np.save(pixels, np.load(pixels)[::-1])
    with pytest.raises(RunError, match=r"data of run .* have changed since it was trained"):
        training.resume(run)
    np.save(pixels, np.load(pixels)[::-1])
    assert weights(training.resume(run)) == weights(whole)
    evaluation = evaluate_run(whole)
    assert (evaluation.data, evaluation.classes) == (f"{path}:birds", 3)
    small = DataSection(name=f"{path}:small")
    assert evaluate_run(run, small).train_images == 24
    assert "source" not in training.train(tiny(tmp_path, SHORT_SHAPES)).manifest()["data"]


SHORT_SHAPES = {"train.max_steps": 1, "monitor.knn_every": 0}


def test_a_table_stays_where_it_is(tmp_path: Path, tiny: Make) -> None:
    source = """
    import hashlib
    import numpy as np
    import torch
    from clf.data import from_table, read_options, required_root


    class Mapped:
        def __init__(self, path):
            self._rows = np.load(path, mmap_mode="r")

        @property
        def shape(self):
            return self._rows.shape

        def __len__(self):
            return len(self._rows)

        def __getitem__(self, rows):
            return torch.from_numpy(np.array(self._rows[rows if isinstance(rows, slice) else rows.numpy()]))


    def mapped(section, seed, progress):
        options = read_options(section, {"labelled": False})
        table = Mapped(required_root(section, "an .npy file"))
        labels = np.arange(len(table)) % 2 if options["labelled"] else None
        return from_table(section, seed, (table, labels), fingerprint="abc", names=[str(i) for i in range(len(table))])


    def arrays(section, seed, progress):
        from clf.data import from_arrays
        images = np.load(required_root(section, "an .npy file"))
        return from_arrays(section, seed, (images, np.arange(len(images)) % 2 if section.options else None))
    """
    path = file(tmp_path, source)
    root = str(tmp_path / "images.npy")
    np.save(root, np.random.default_rng(0).integers(0, 256, (50, 3, 20, 24), np.uint8))
    for options in ({}, {"labelled": True}):
        data, same = (load(f"{path}:{name}", root, limit=30, options=options) for name in ("mapped", "arrays"))
        assert not isinstance(data.train.images, torch.Tensor)
        assert (data.image_size, len(data.train), data.split_note) == (20, 30, same.split_note)
        assert torch.equal(data.train.images[:], same.train.images[:])
        assert torch.equal(data.train.clean[torch.tensor([3, 1])], same.train.clean[torch.tensor([3, 1])])
        assert list(data.train.names or []) == list(same.train.names or [])
    run, same_run = (
        training.train(configured(tiny, tmp_path, f"{path}:{name}", root)) for name in ("mapped", "arrays")
    )
    assert weights(run) == weights(same_run)


@pytest.mark.parametrize(
    ("table", "labels", "reason"),
    [
        ("np.zeros((6, 1, 8, 8), np.uint8)", "None", "train.images of a table of ndarray"),
        ("torch.zeros(0, 1, 8, 8).byte()", "None", "holds no images"),
        ("torch.zeros(6, 1, 8, 8).byte()", "np.arange(5)", "5 labels for 6 images"),
        ("torch.zeros(6, 1, 8, 8)", "None", "of torch.float32"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, labels: str, reason: str) -> None:
    body = f"from clf.data import from_table\n    return from_table(section, 0, ({table}, {labels}), fingerprint='a')"
    with pytest.raises(ClfError, match=reason):
        load(file(tmp_path, ODD.replace("{body}", body)))


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, run_cli_process: Callable[..., Any], pixels: str) -> None:
    file(tmp_path, BIRDS)
    words = ["data.name=./birds.py:birds", f"data.root={pixels}", "backbone.name=test_resnet", "train.batch_size=12"]
    words += ["train.max_steps=2", "train.device=cpu", "run.name=birds"]
    done = run_cli_process("train", *words, "--plugin", "simclr")
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "runs" / "birds" / "manifest.json").read_text())
    assert manifest["data"]["source"]["plugin"] == "./birds.py"
    done = run_cli_process("evaluate", "birds", "--on", "./birds.py:small", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["train_images"] == 24
    Path(pixels).rename(pixels + ".away")
    done = run_cli_process("evaluate", "birds")
    assert done.code == 2
    assert "data source 'birds' of plugin ./birds.py failed to read its data: FileNotFoundError" in " ".join(
        done.err.split()
    )
