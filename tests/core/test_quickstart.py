"""The whole way from images to a search, as one command, on a set and a training small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clf import quickstart
from clf.errors import MissingExtraError
from clf.extras import EXTRA_OF

SMALL = (
    "data.name=shapes",
    "data.image_size=16",
    "data.options.train_images=96",
    "data.options.test_images=48",
    "backbone.name=test_resnet",
    "backbone.stem=original",
    "train.epochs=1",
    "train.batch_size=32",
    "train.threads=1",
)


@pytest.mark.slow
def test_every_step_leaves_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "SETTINGS", SMALL)
    quickstart.quickstart(serve=False)
    run = tmp_path / "runs" / "quickstart"
    names = ("config.yaml", "evaluation.json", "report.html", "model/encoder.onnx", "gallery/gallery.sqlite")
    assert all((run / name).is_file() for name in names)
    rows = next(iter(json.loads((run / "evaluation.json").read_text())["evaluations"].values()))["representations"]
    assert [row["name"] for row in rows] == ["raw pixels", "random encoder", "trained encoder"]
    assert len(list((run / "images" / "gallery").glob("*/*.png"))) == 96
    printed = capfd.readouterr().out
    for command in ("train", "evaluate", "export", "index", "search", "report"):
        assert f"$ clf {command} " in printed
    assert printed.count("$ clf search ") == 3
    assert "clf serve runs/quickstart/model --gallery runs/quickstart/gallery" in printed


def test_a_second_one_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert quickstart._free_run(tmp_path).name == "quickstart"
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert quickstart._free_run(tmp_path).name == "quickstart-3"


def test_packages_of_other_extras_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name for name, extra in EXTRA_OF.items() if extra not in ("train", "serve")}
    asked: list[str] = []

    def found(name: str) -> object:
        asked.append(name)
        return None if name in others else object()

    monkeypatch.setattr("clf.quickstart.find_spec", found)
    quickstart._check_packages()
    assert "openvino" in others
    assert "torch" in asked and "faiss" in asked and not others & set(asked)


def test_a_missing_package_is_noticed_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., object] = quickstart.find_spec
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None if name == "faiss" else real(name))
    with pytest.raises(MissingExtraError, match=r"quickstart needs the package 'faiss'.*clf-vision\[all\]"):
        quickstart.quickstart(serve=False)


def test_a_failed_step_passes_its_code_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        quickstart._clf("train", "--plugin", "no-such-plugin")
    assert stopped.value.code == 2
    with pytest.raises(quickstart.StepFailed) as failed:
        quickstart._clf("search", "no-gallery", "no-image.png")
    assert failed.value.code == 2
