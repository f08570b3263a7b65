"""The engine against numpy, against itself, and against folders that lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serve_helpers import DIM, SIZE, expected, sign, write_model, write_pictures

from clf import images
from clf.errors import ImageError, ModelError
from clf.manifest import MODEL_FILE, read_manifest, write_manifest
from clf_serve import engine as engine_module
from clf_serve.engine import Engine


def random_pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def test_embeddings_are_what_numpy_computes(engine: Engine) -> None:
    pixels = random_pixels(7)

    vectors = engine.embed(pixels)

    assert vectors.shape == (7, DIM) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [expected(image) for image in pixels], atol=1e-6)


def test_an_embedding_does_not_depend_on_its_neighbours_by_a_single_bit(engine: Engine) -> None:
    pixels = random_pixels(37)

    together = engine.embed(pixels)
    alone = np.concatenate([engine.embed(pixels[i : i + 1]) for i in range(37)])

    np.testing.assert_array_equal(together, alone)


def test_no_images_give_no_vectors(engine: Engine) -> None:
    assert engine.embed(random_pixels(0)).shape == (0, DIM)


@pytest.mark.parametrize("bad", [np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((1, SIZE, SIZE + 1, 3), np.uint8)])
def test_pixels_of_another_type_or_shape_are_refused(engine: Engine, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        engine.embed(bad)


def test_warm_up_drops_batch_sizes_that_change_a_bit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model, "cpu")
    run = engine._backend.run
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3)  # larger ones look faster per image
    monkeypatch.setattr(
        engine._backend, "run", lambda pixels: run(pixels) * np.float32(1 if len(pixels) in (1, 2, 8) else 1 + 1e-6)
    )

    engine.warm_up()

    assert engine.buckets == (1, 2, 8)
    assert engine.facts()["largest_difference_by_batch"] == 0


def test_warm_up_stops_at_batches_that_are_long_and_leaves_out_those_that_gain_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, "cpu")
    seconds = {1: 0.1, 2: 0.15, 4: 0.4, 8: 0.1}
    monkeypatch.setattr(engine, "_time", lambda pixels: seconds[len(pixels)])

    engine.warm_up()

    assert engine.buckets == (1, 2)


def test_files_come_back_in_order_and_bad_ones_with_a_reason(engine: Engine, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 9)
    paths[4].write_bytes(b"not an image")
    paths[7].write_bytes(paths[0].read_bytes()[:60])
    seen: list[int] = []

    vectors, kept, skipped = engine.embed_files(paths, batch_size=4, progress=seen.append)

    assert kept == [paths[i] for i in (0, 1, 2, 3, 5, 6, 8)]
    assert [path for path, _ in skipped] == [paths[4], paths[7]]
    assert all(str(path) in reason for path, reason in skipped)
    assert sum(seen) == 9
    np.testing.assert_array_equal(vectors, engine.embed(np.stack([images.prepare(path, SIZE) for path in kept])))


def test_decoding_runs_only_so_far_ahead(engine: Engine, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 60)
    opened: list[Path] = []

    def load(path: Path) -> tuple[np.ndarray, Path]:
        opened.append(path)
        return engine.prepare(path), path

    stream = engine.stream(paths, load, batch_size=4)
    next(stream)

    assert len(opened) <= 2 * 4 + engine_module.usable_cores() + 4
    assert [path for chunk in stream for path in chunk.items] == paths[4:]


def test_an_image_without_a_finite_vector_is_skipped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_pictures(tmp_path, 3)
    vectors = np.full((3, DIM), 0.5, np.float32)
    vectors[1, 3] = np.nan
    monkeypatch.setattr(engine, "embed", lambda pixels: vectors)

    _, kept, skipped = engine.embed_files(paths)

    assert kept == [paths[0], paths[2]]
    assert skipped == [(paths[1], f"{paths[1]} has no finite embedding")]


def test_prepare_refuses_a_missing_file(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        engine.prepare(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": DIM + 1}, "differs from its manifest"),
        ({"output": "features"}, "differs from its manifest"),
    ],
)
def test_a_graph_that_differs_from_its_manifest_is_refused(
    tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    folder = write_model(tmp_path / "model", **arguments)  # type: ignore[arg-type]

    with pytest.raises(ModelError, match=words):
        Engine(folder, "cpu")


def test_an_image_size_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_manifest(folder, read_manifest(folder).model_copy(update={"image_size": 64}))

    with pytest.raises(ModelError, match="differs from its manifest"):
        Engine(folder, "cpu")


def test_a_replaced_model_file_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_model(tmp_path / "other", cells=4, dim=48)
    (folder / MODEL_FILE).write_bytes((tmp_path / "other" / MODEL_FILE).read_bytes())

    with pytest.raises(ModelError, match="SHA-256"):
        Engine(folder, "cpu")


def test_a_file_that_is_no_graph_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / MODEL_FILE).write_bytes(b"nonsense")
    sign(folder)

    with pytest.raises(ModelError, match="cannot be opened by onnxruntime") as caught:
        Engine(folder, "cpu")
    assert "\n" not in str(caught.value)


def test_onnxruntime_is_kept_from_reporting(model: Path, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from clf_serve.engine import Engine\n"
        "Engine(Path(sys.argv[1]), 'cpu').warm_up()\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    places = {name: str(tmp_path) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | places
    words = [sys.executable, "-c", program, str(model)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []  # its uploader leaves an identifier of the machine


def test_asking_for_cuda_without_a_gpu_says_so_and_prints_nothing_else(model: Path) -> None:
    program = (
        "import ctypes, sys\n"
        "real = ctypes.CDLL\n"
        "def none(name, *a, **k):\n"
        "    if 'cuda' in str(name): raise OSError('no driver')\n"
        "    return real(name, *a, **k)\n"
        "ctypes.CDLL = none\n"
        "from pathlib import Path\n"
        "from clf_serve.engine import Engine\n"
        "engine = Engine(Path(sys.argv[1]), 'cuda')\n"
        "print(engine.device, '|', engine.note)\n"
        "print(Engine(Path(sys.argv[1]), 'auto').note)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True)

    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("cpu | CUDA was asked for, the CPU is used: ")
    assert second == "None"
