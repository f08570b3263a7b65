"""OpenVINO beside onnxruntime, and what libraries would tell their makers if they were let."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from serve_helpers import SIZE, write_model
from test_engine_life import write_variant

from clf.errors import MissingExtraError, ModelError
from clf.manifest import MODEL_FILE
from clf_serve import runtime
from clf_serve.backends import openvino as module
from clf_serve.engine import Engine

PIXELS = np.random.default_rng(2).integers(0, 256, (19, SIZE, SIZE, 3), dtype=np.uint8)

SPY = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork", "os.posix_spawn") else None)
from pathlib import Path
from clf_serve.engine import Engine
engine = Engine(Path(sys.argv[1]), sys.argv[2])
engine.warm_up()
engine.embed(engine.blank()[None])
engine.close()
print(seen)
"""


@pytest.fixture
def openvino() -> object:
    try:
        return runtime.load_openvino()
    except MissingExtraError:
        pytest.skip("openvino is not installed")


@pytest.fixture
def engine_on_openvino(openvino: object, model: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine(model, "openvino")
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3)  # every size pays
    return engine


def test_openvino_gives_onnxruntimes_vectors_whatever_shares_the_batch(
    engine: Engine, engine_on_openvino: Engine
) -> None:
    engine_on_openvino.warm_up()

    together = engine_on_openvino.embed(PIXELS)
    alone = np.concatenate([engine_on_openvino.embed(PIXELS[i : i + 1]) for i in range(len(PIXELS))])

    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(together, engine.embed(PIXELS), atol=0.02)
    facts = engine_on_openvino.facts()
    assert facts["requested_provider"] == facts["provider"] == "openvino" and facts["device"] == "cpu"
    cosine = facts["least_cosine_to_onnxruntime_fp32"]
    assert isinstance(cosine, float) and cosine >= 0.99
    assert engine_on_openvino.note is not None and f"{cosine:.5f} over 8 images" in engine_on_openvino.note


@pytest.mark.parametrize(
    ("capable", "gain", "wanted"), [(True, 1.9, "bf16"), (True, 1.05, "fp32"), (False, 9.9, "fp32")]
)
def test_bf16_is_used_where_the_cpu_has_it_and_it_is_faster(
    engine_on_openvino: Engine, monkeypatch: pytest.MonkeyPatch, capable: bool, gain: float, wanted: str
) -> None:
    backend = engine_on_openvino._backend
    assert isinstance(backend, module.OpenVinoBackend)
    monkeypatch.setattr(module, "_times_as_fast", lambda request, other, image: gain)
    core = SimpleNamespace(
        get_property=lambda device, name: ["FP32", *(["BF16"] if capable else [])],
        compile_model=backend._core.compile_model,
    )
    monkeypatch.setattr(backend, "_core", core)

    engine_on_openvino.warm_up()

    assert engine_on_openvino.facts()["precision"] == wanted
    assert engine_on_openvino.note is not None
    assert engine_on_openvino.note.startswith(f"OpenVINO computes in {wanted}")
    assert ("times as fast" in engine_on_openvino.note) is (wanted == "bf16")


def test_bf16_that_is_too_far_off_is_not_used(engine_on_openvino: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = iter([0.9999, 0.98])  # fp32's, then bf16's
    monkeypatch.setattr(module, "_times_as_fast", lambda request, other, image: 5.0)
    monkeypatch.setattr(module, "least_cosine", lambda rows, others: next(cosines, 0.98))

    engine_on_openvino.warm_up()

    assert engine_on_openvino.facts()["precision"] == "fp32"
    assert engine_on_openvino.facts()["least_cosine_to_onnxruntime_fp32"] == 0.9999


def test_embeddings_that_are_not_onnxruntimes_are_refused(
    engine_on_openvino: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "least_cosine", lambda rows, others: 0.97)

    with pytest.raises(ModelError, match=r"least cosine 0\.9700 over 8 images, needed 0\.99\. Use --provider cpu"):
        engine_on_openvino.warm_up()


def test_an_int8_graph_may_be_further_off_and_is_compared_with_fp32(openvino: object, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_variant(folder, "int8", shift=500.0)
    engine = Engine(folder, "openvino", variant="int8")

    engine.warm_up()

    cosine = engine.facts()["least_cosine_to_onnxruntime_fp32"]
    assert isinstance(cosine, float) and cosine < 0.99
    assert str(engine.facts()["precision"]).startswith("int8 and ")


def test_an_fp16_graph_that_is_far_off_is_refused(openvino: object, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_variant(folder, "fp16", shift=500.0)

    with pytest.raises(ModelError, match="than with onnxruntime"):
        Engine(folder, "openvino", variant="fp16").warm_up()


def test_files_replaced_under_openvino_do_no_harm(openvino: object, tmp_path: Path, engine: Engine) -> None:
    folder = write_model(tmp_path / "model")
    running = Engine(folder, "openvino")
    (folder / MODEL_FILE).write_bytes(b"garbage")

    running.warm_up()

    np.testing.assert_allclose(running.embed(PIXELS), engine.embed(PIXELS), atol=0.02)


def test_a_closed_openvino_refuses_to_work(engine_on_openvino: Engine) -> None:
    engine_on_openvino.close()

    with pytest.raises(RuntimeError, match="closed"):
        engine_on_openvino._backend.run(PIXELS[:1])


def test_what_openvino_cannot_read_is_told_in_one_sentence(
    openvino: object, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, precision: str) -> None:
        raise RuntimeError("Check 'ok' failed:\nlong story")

    monkeypatch.setattr(module.OpenVinoBackend, "_compile", refuse)

    with pytest.raises(ModelError, match=r"encoder\.onnx cannot be opened by openvino .*: Check 'ok' failed:$"):
        Engine(model, "openvino")


def test_without_the_package_the_extra_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'clf-vision\[openvino\]'"):
        Engine(model, "openvino")


def test_openvino_neither_talks_to_its_maker_nor_leaves_a_trace(openvino: object, model: Path, tmp_path: Path) -> None:
    """Left alone it does both while it is imported."""
    try:
        importlib.metadata.version("openvino_telemetry")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("there is nothing that could talk")
    places = {name: str(tmp_path) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | places  # silent in CI
    words = [sys.executable, "-c", SPY, str(model), "openvino"]

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n" and done.stderr == ""
    assert list(tmp_path.iterdir()) == []
