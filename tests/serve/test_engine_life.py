"""What becomes of an engine: variants, files that are replaced, memory that runs out, many threads, and its end."""

from __future__ import annotations

import gc
import json
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from serve_helpers import DIM, SIZE, encoded, picture, write_model

from clf import images
from clf.errors import ModelError
from clf.manifest import MODEL_FILE, Manifest, Variant, read_manifest, sha256_file, write_manifest
from clf_serve import engine as engine_module
from clf_serve.backends.base import DeviceMemoryError, is_out_of_memory
from clf_serve.backends.ort import CpuBackend
from clf_serve.engine import Engine

PIXELS = np.random.default_rng(0).integers(0, 256, (23, SIZE, SIZE, 3), dtype=np.uint8)


def write_variant(folder: Path, name: str = "fp16", shift: float = 40.0, method: str = "static") -> Path:
    """Another graph beside the first: the same but for one constant, so that its vectors differ."""
    graph = onnx.load(str(folder / MODEL_FILE))
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(shift, np.float32), "one"))
    path = folder / f"encoder.{name}.onnx"
    onnx.save(graph, str(path))
    variant = Variant(
        file=path.name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        method="float16" if name == "fp16" else method,  # type: ignore[arg-type]
        images=1,
        mean_cosine=0.9,
        min_cosine=0.9,
    )
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"variants": {**manifest.variants, name: variant}}))
    return path


@pytest.mark.parametrize(("method", "largest"), [("static", 16), ("dynamic", 1)])
def test_images_of_a_variant_that_scales_by_batch_are_embedded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, largest: int
) -> None:
    """Whatever the trial of batch sizes finds: ranges may agree on its images and differ on others."""
    folder = write_model(tmp_path / "model")
    write_variant(folder, "int8", method=method)
    engine = Engine(folder, "cpu", variant="int8")
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3 + 1e-6 * len(pixels))

    engine.warm_up()

    assert engine.max_batch == largest
    assert engine.embed(np.stack([engine.blank()] * 3)).shape == (3, engine.dim)
    engine.close()


def test_a_variant_is_another_graph_of_the_same_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    path = write_variant(folder)

    usual, other = Engine(folder, "cpu"), Engine(folder, "cpu", variant="fp16")

    assert not np.allclose(usual.embed(PIXELS), other.embed(PIXELS))
    facts = other.facts()
    assert facts["variant"] == facts["precision"] == "fp16"
    assert facts["sha256"] == sha256_file(path) and usual.facts()["sha256"] == usual.manifest.sha256


def test_a_variant_that_was_not_made_is_refused_with_the_command_that_makes_it(model: Path) -> None:
    with pytest.raises(ModelError, match=r"no int8 variant.*clf export"):
        Engine(model, "cpu", variant="int8")


def test_a_variants_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_variant(folder).write_bytes((folder / MODEL_FILE).read_bytes())

    with pytest.raises(ModelError, match="SHA-256"):
        Engine(folder, "cpu", variant="fp16")


def test_a_file_replaced_between_check_and_opening_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    other = write_model(tmp_path / "other")
    later = write_variant(other).read_bytes()  # a graph that fits the manifest in all but its SHA-256

    def read_then_replace(path: Path) -> Manifest:
        manifest = read_manifest(path)
        (path / MODEL_FILE).write_bytes(later)
        return manifest

    monkeypatch.setattr(engine_module, "read_manifest", read_then_replace)

    with pytest.raises(ModelError, match="SHA-256"):
        Engine(folder, "cpu")


@pytest.mark.parametrize("ruin", ["garbage", "deleted"])
def test_a_file_that_changes_under_a_running_engine_does_no_harm(tmp_path: Path, engine: Engine, ruin: str) -> None:
    folder = write_model(tmp_path / "model")
    running = Engine(folder, "cpu")
    if ruin == "garbage":
        (folder / MODEL_FILE).write_bytes(b"garbage")
    else:
        (folder / MODEL_FILE).unlink()

    running.warm_up()

    np.testing.assert_array_equal(running.embed(PIXELS), engine.embed(PIXELS))


def test_a_batch_that_does_not_fit_is_cut_and_its_size_given_up(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(model, "cpu")
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3)
    engine.warm_up()
    wanted = engine.embed(PIXELS)
    largest, run = 2, engine._backend.run

    def cramped(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) > largest:
            raise DeviceMemoryError(f"no memory for a batch of {len(pixels)}")
        return run(pixels)

    monkeypatch.setattr(engine._backend, "run", cramped)
    with caplog.at_level(logging.WARNING, "clf_serve"):
        np.testing.assert_array_equal(engine.embed(PIXELS), wanted)

    assert engine.buckets == (1, 2) and engine.max_batch == 2
    assert len(caplog.records) == 3  # 16, 8 and 4
    largest = 0
    with pytest.raises(DeviceMemoryError):
        engine.embed(PIXELS[:1])


def test_threads_share_one_engine(engine: Engine) -> None:
    wanted = engine.embed(PIXELS)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: engine.embed(PIXELS[i % 20 : i % 20 + 3]), range(200)))

    for i, rows in enumerate(answers):
        np.testing.assert_array_equal(rows, wanted[i % 20 : i % 20 + 3])


def test_a_closed_engine_frees_its_model_and_refuses_to_work(model: Path) -> None:
    with Engine(model, "cpu") as engine:
        session = weakref.ref(engine._backend._session)  # type: ignore[attr-defined]
        engine.embed(PIXELS)
    gc.collect()

    assert session() is None
    engine.close()
    for use in (lambda: engine.embed(PIXELS), engine.warm_up):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use()
    assert engine.facts()["provider"] == "cpu"


def test_closing_does_not_disturb_who_is_at_work(model: Path) -> None:
    engine = Engine(model, "cpu")
    wanted = engine.embed(PIXELS)
    going, problems = threading.Barrier(5), []

    def work() -> None:
        going.wait()
        while True:
            try:
                np.testing.assert_array_equal(engine.embed(PIXELS), wanted)
            except RuntimeError as error:
                problems.append(str(error))
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    going.wait()
    engine.close()
    for thread in threads:
        thread.join(30)

    assert problems == ["the engine is closed"] * 4


def test_a_folder_that_does_not_fit_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[CpuBackend] = []
    monkeypatch.setattr(CpuBackend, "close", lambda backend: closed.append(backend))

    with pytest.raises(ModelError):
        Engine(write_model(tmp_path / "model", dim=DIM + 1), "cpu")
    assert len(closed) == 1


def test_the_file_is_not_kept_in_memory_beside_the_weights(model: Path) -> None:
    engine = Engine(model, "cpu")
    data = (model / MODEL_FILE).read_bytes()
    gc.collect()

    held = [found for found in gc.get_referents(*_reachable(engine)) if isinstance(found, bytes) and found == data]

    assert not held


def _reachable(root: object) -> list[object]:
    """Objects of ours and of onnxruntime's wrapper that hang on an engine."""
    seen: dict[int, object] = {}
    pending = [root]
    while pending:
        found = pending.pop()
        if id(found) in seen or type(found).__module__.partition(".")[0] not in (
            "clf_serve",
            "onnxruntime",
            "builtins",
        ):
            continue
        if isinstance(found, dict) and "__builtins__" in found:  # a module's names
            continue
        seen[id(found)] = found
        if not isinstance(found, type):
            pending += gc.get_referents(found)
    return list(seen.values())


def test_fast_decoding_is_chosen_by_name(model: Path) -> None:
    data = encoded(picture(3, 400, 300), "JPEG")
    exact, fast = Engine(model, "cpu"), Engine(model, "cpu", decoding="fast")

    np.testing.assert_array_equal(exact.prepare(data), images.prepare(data, SIZE))
    np.testing.assert_array_equal(fast.prepare(data), images.prepare_fast(data, SIZE))
    assert (exact.facts()["decoding"], fast.facts()["decoding"]) == ("exact", "fast")


def test_facts_are_plain_data(engine: Engine) -> None:
    facts = json.loads(json.dumps(engine.facts()))

    assert facts["requested_provider"] == facts["provider"] == facts["device"] == "cpu"
    assert facts["buckets"] == list(engine.buckets)
    assert facts["threads"] == engine_module.usable_cores()
    assert facts["largest_difference_by_batch"] == 0 and facts["note"] is None


@pytest.mark.parametrize(
    ("error", "means_memory"),
    [
        (RuntimeError("... BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested"), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc: bad allocation"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
        (ValueError("Invalid rank for input: images"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_failures(error: Exception, means_memory: bool) -> None:
    assert is_out_of_memory(error) is means_memory
