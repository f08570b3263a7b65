"""clf embed from the command line, and mistakes of users with any command."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_helpers import Run, one_error
from serve_helpers import DIM, write_model, write_pictures

import clf_serve
from clf.manifest import MODEL_FILE
from clf_serve.engine import Engine


def test_embed_writes_npz_without_pickle(run: Run, model: Path, engine: Engine, photos: Path, tmp_path: Path) -> None:
    code, out, _ = run("embed", model, photos, "-o", tmp_path / "v.npz")

    assert code == 0 and "20 images, 12 numbers each" in out
    with np.load(tmp_path / "v.npz", allow_pickle=False) as file:
        assert file["paths"].tolist() == sorted(map(str, photos.iterdir()))
        vectors, _, _ = engine.embed_files(sorted(photos.iterdir()))
        np.testing.assert_array_equal(file["vectors"], vectors)
        assert str(file["model"]) == f"tiny@{engine.manifest.sha256}"


def test_embed_writes_npy_and_jsonl(run: Run, model: Path, engine: Engine, photos: Path, tmp_path: Path) -> None:
    for name in ("v.npy", "v.jsonl"):
        assert run("embed", model, photos, "-o", tmp_path / name)[0] == 0

    vectors, paths, _ = engine.embed_files(sorted(photos.iterdir()))
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors)
    assert json.loads((tmp_path / "v.json").read_text())["paths"] == list(map(str, paths))
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == list(map(str, paths))
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors)


def test_embed_takes_one_image(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    code, _, _ = run("embed", model, photos / "0003.png", "-o", tmp_path / "v.npy")

    assert code == 0 and np.load(tmp_path / "v.npy").shape == (1, DIM)


def test_skipped_files_are_counted_and_the_first_ten_listed(run: Run, model: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 1)
    for i in range(12):
        (tmp_path / "p" / f"bad{i:02}.jpg").write_bytes(b"no picture at all")

    _, out, _ = run("embed", model, tmp_path / "p", "-o", tmp_path / "v.npy")
    assert "12 files skipped" in out and "bad09.jpg" in out and "bad10.jpg" not in out and "and 2 more" in out
    _, text, _ = run("embed", model, tmp_path / "p", "-o", tmp_path / "v.npy", "--json")
    report = json.loads(text)
    assert report["embedded"] == 1 and len(report["skipped"]) == 12
    assert "not an image" in report["skipped"][11]["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "MODEL", "none", "-o", "v.npz"], "none does not exist"),
        (["embed", "MODEL", "PHOTOS", "-o", "v.npx"], "must end in one of .npz, .npy, .jsonl. Did you mean"),
        (["embed", "MODEL", "PHOTOS", "-o", "none/v.npz"], "the folder none of v.npz does not exist"),
        (["embed", "PHOTOS", "PHOTOS", "-o", "v.npz"], "is not an exported model"),
        (["index", "MODEL", "EMPTY", "-o", "g"], "holds no images"),
        (["index", "MODEL", "PHOTOS", "-o", "PHOTOS"], "is not a gallery; name a new folder"),
        (["search", "PHOTOS", "a.png"], "is not a gallery; make one: clf index"),
        (["search", "GALLERY", "none.png"], "none.png does not exist"),
        (["search", "GALLERY", "BAD"], "not an image"),
        (["search", "GALLERY", "PHOTO", "--model", "OTHER"], "was made with model tiny"),
        (["search", "GALLERY"], "there is nothing to look for; name an image, or one of the gallery by --id"),
        (["search", "GALLERY", "--id", "99"], "has no image with the id 99"),
        (["search", "GALLERY", "PHOTO", "--where", "{"], "JSON"),
        (["search", "GALLERY", "PHOTO", "--where", '{"a": {"$like": 1}}'], "$like"),
        (["index", "MODEL", "PHOTOS", "-o", "g", "--metadata", "m.xls"], "must end in one of .csv"),
        (["index", "MODEL", "PHOTOS", "-o", "g", "--memory", "much"], "'much' is no size; write one like 700MiB"),
        (["serve", "PHOTOS", "--port", "0"], "is not an exported model"),
        (["serve", "MODEL", "--gallery", "PHOTOS", "--port", "0"], "is not a gallery"),
        (["serve", "OTHER", "--gallery", "GALLERY", "--port", "0"], "was made with model tiny"),
        (["serve", "MODEL", "--host", "host.invalid"], "host 'host.invalid' is unknown"),
        (["serve", "FILE", "--port", "0"], "is not an exported model"),
        (["serve", "MODEL", "MODEL", "--port", "0"], "is given twice; name it once"),
        (["serve", "MODEL", "-g", "GALLERY", "-g", "GALLERY", "--port", "0"], "is given twice; name it once"),
        (["serve", "MODEL", "--api-key", ""], "holds no key; write one, or leave it out"),
        (["serve", "MODEL", "--api-key", " , "], "holds no key; write one, or leave it out"),
        (["serve", "MODEL", "--api-key", "two words"], "has a blank or a character outside of printable ASCII"),
        (["serve", "MODEL", "--api-key-file", "PHOTOS"], "cannot be read: Is a directory"),
        (["serve", "MODEL", "--tls-cert", "FILE"], "--tls-cert needs --tls-key too"),
        (["serve", "MODEL", "--cors", "app.example.org"], "is no origin"),
        (["serve", "MODEL", "--otlp", "localhost:4318", "--port", "0"], "is no address of a collector"),
        (["serve", "MODEL", "--log-clients"], "--log-clients needs --access-log"),
        (["serve", "MODEL", "--variant", "int8", "--port", "0"], "int8"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(
    run: Run,
    model: Path,
    photos: Path,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    names = {
        "MODEL": model,
        "FILE": model / MODEL_FILE,
        "PHOTOS": photos,
        "PHOTO": photos / "0000.png",
        "GALLERY": gallery,
        "EMPTY": tmp_path / "empty",
        "BAD": tmp_path / "bad.png",
        "OTHER": write_model(tmp_path / "other", name="other", cells=4, dim=48) if "OTHER" in words else "",
    }

    code, _, err = run(*(names.get(word, word) for word in words))

    assert code == 2
    assert message in " ".join(err.split()) and "Traceback" not in err


@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_variable_without_keys_does_not_open_the_door(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CLF_API_KEYS", value)

    assert "CLF_API_KEYS is given and holds no key" in one_error(run("serve", model, "--port", "0"))


def test_a_mistake_leaves_the_signals_as_they_were(run: Run, photos: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    one_error(run("serve", photos, "--port", "0"))
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    "words", [["embed", "MODEL", "PHOTOS", "-o", "v.npz"], ["index", "MODEL", "PHOTOS", "-o", "g"], ["serve", "MODEL"]]
)
def test_a_model_that_was_replaced_is_refused(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "model")
    with (model / MODEL_FILE).open("ab") as file:
        file.write(b"changed")
    names = {"MODEL": model, "PHOTOS": photos}
    port = ["--port", "0"] if words[0] == "serve" else []

    said = one_error(run(*(names.get(word, word) for word in words), *port))

    assert "does not match its manifest" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_port_in_use_is_named(run: Run, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = one_error(run("serve", model, "--port", port))

    assert f"cannot listen on 127.0.0.1 port {port}" in said and "choose another --port" in said


def test_an_output_that_cannot_be_written_shows_before_the_work(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.npz").mkdir()
    (tmp_path / "v.json").mkdir()

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "__init__", no_work)
    assert "d.npz is a folder" in one_error(run("embed", model, photos, "-o", tmp_path / "d.npz"))
    assert "v.json is a folder" in one_error(run("embed", model, photos, "-o", tmp_path / "v.npy"))

    def locked(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", locked)
    said = one_error(run("embed", model, photos, "-o", tmp_path / "v.npz"))
    assert "v.npz cannot be written: Permission denied" in said


@pytest.mark.parametrize("name", ["v.npz", "v.npy", "v.jsonl"])
def test_a_full_disk_leaves_the_earlier_vectors(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"earlier")

    def full(*_: object, **__: object) -> None:
        raise OSError("240 requested and 0 written")

    for place in ("numpy.savez", "numpy.save", "clf_serve.output.json.dumps"):
        monkeypatch.setattr(place, full)

    said = one_error(run("embed", model, photos, "-o", tmp_path / name))

    assert f"{name} cannot be written: 240 requested and 0 written" in said
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"earlier")]


def test_the_module_of_the_commands_is_light(run_cli_process: Callable[..., object]) -> None:
    heavy = "('onnxruntime', 'faiss', 'fastapi', 'gradio', 'numpy', 'torch', 'PIL', 'uvicorn', 'rich.progress')"
    before = (
        "import sys, clf_serve.commands.embed\n"
        f"heavy = [name for name in {heavy} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    outcome = run_cli_process("serve", "--help", before=before)

    assert outcome.code == 0, outcome.err  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("onnxruntime", ["embed", "MODEL", "PHOTOS", "-o", "v.npz"]),
        ("faiss", ["index", "MODEL", "PHOTOS", "-o", "g"]),
        ("uvicorn", ["serve", "MODEL", "--port", "0"]),
        ("gradio", ["serve", "MODEL", "--port", "0"]),
        ("prometheus_client", ["serve", "MODEL", "--port", "0", "--no-ui"]),
    ],
)
def test_a_missing_package_says_what_to_install(
    run: Run,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("clf_serve.")]:
        if name.count(".") == 1:  # put back behind the test, or names of modules would lead to those loaded in it
            monkeypatch.setattr(clf_serve, name.partition(".")[2], sys.modules[name])
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    names = {"MODEL": model, "PHOTOS": photos}

    code, _, err = run(*(names.get(word, word) for word in words))

    assert code == 2
    assert f"'{missing}', which is not installed: pip install 'clf-vision[serve]'" in " ".join(err.split())
