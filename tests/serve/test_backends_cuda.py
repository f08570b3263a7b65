"""The CUDA backend against a stand-in for the GPU, and its buffers with onnxruntime itself in main memory."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import ARENA_TEXT, CUBLAS_TEXT, DRIVER_TEXT, FakeGpu, FakeOrt
from serve_helpers import DIM, SIZE, write_model

from clf.errors import ModelError
from clf.manifest import read_manifest
from clf_serve import backends
from clf_serve.backends import cuda
from clf_serve.backends.base import DeviceMemoryError
from clf_serve.backends.cuda import CudaBackend
from clf_serve.backends.turns import Turns
from clf_serve.engine import Engine
from clf_serve.model_file import read_graph
from clf_serve.runtime import load_onnxruntime

PIXELS = np.random.default_rng(1).integers(0, 256, (150, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def wanted(engine: Engine) -> np.ndarray:
    return engine.embed(PIXELS)


def on(gpu: FakeGpu, model: Path, monkeypatch: pytest.MonkeyPatch, provider: str = "cuda") -> Engine:
    """An engine on that GPU, where larger batches always pay."""
    monkeypatch.setattr(backends, "load_onnxruntime", lambda: FakeOrt(gpu))
    monkeypatch.setattr(backends, "why_no_cuda", lambda ort: None)
    engine = Engine(model, provider)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3 + 1e-6 * len(pixels))
    return engine


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_the_gpu_is_used_in_fixed_sizes_with_captured_graphs(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch, provider)
    engine.warm_up()
    gpu.runs.clear()

    vectors = engine.embed(PIXELS)

    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    assert engine.device == "cuda" and engine.note is None
    assert engine.buckets == (1, 2, 4, 8, 16, 32, 64, 128)
    assert [size for size, _ in gpu.runs] == [128, 32]  # 150 images; the last batch holds 22, and 10 of padding
    assert all(int(graph) > 0 for _, graph in gpu.runs)  # replayed, neither plainly run nor onnxruntime's default graph
    facts = engine.facts()
    assert facts["provider"] == "cuda" and facts["requested_provider"] == provider
    assert facts["cuda_graphs"] == [1, 2, 4, 8, 16, 32, 64, 128] and facts["cuda_graphs_bit_identical"] is True
    assert facts["nodes_on_cpu"] == {"Shape": 1}
    engine.close()


def test_the_session_is_told_what_serving_needs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch)

    (session,) = gpu.sessions
    assert [name for name, _ in session.providers[:1]] == ["CUDAExecutionProvider"]
    assert session.options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert session.options["enable_cuda_graph"] == "1" and session.options["use_tf32"] == "0"
    engine.close()


def test_everything_on_the_gpu_happens_in_one_thread(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch)
    engine.warm_up()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: engine.embed(PIXELS[i : i + 3]), range(100)))

    for i, rows in enumerate(answers):
        np.testing.assert_allclose(rows, wanted[i : i + 3], atol=1e-6)
    assert len(gpu.threads) == 1 and gpu.threads != {threading.get_ident()}
    engine.close()
    assert not any(thread.name.startswith("clf-cuda") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("graphs", "words"),
    [("refused", "have not been partitioned"), ("break", "operation not permitted"), ("stale", "other embeddings")],
)
def test_without_graphs_that_hold_it_serves_without_them_and_says_so(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, graphs: str, words: str
) -> None:
    gpu = FakeGpu(graphs=graphs)
    engine = on(gpu, model, monkeypatch)
    engine.warm_up()

    np.testing.assert_allclose(engine.embed(PIXELS), wanted, atol=1e-6)
    assert engine.note is not None and engine.note.startswith("CUDA graphs are not used: ") and words in engine.note
    assert engine.device == "cuda" and engine.facts()["cuda_graphs"] == []
    assert gpu.sessions[-1].options["enable_cuda_graph"] == "0"
    engine.close()


def test_graphs_that_fail_late_leave_the_earlier_sizes_usable(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on(FakeGpu(graphs_hold_up_to=8), model, monkeypatch)
    engine.warm_up()

    assert engine.buckets == (1, 2, 4, 8, 16, 32, 64, 128)
    assert engine.facts()["cuda_graphs"] == []
    np.testing.assert_allclose(engine.embed(PIXELS[:21]), wanted[:21], atol=1e-6)
    engine.close()


@pytest.mark.parametrize("text", [ARENA_TEXT, DRIVER_TEXT, CUBLAS_TEXT], ids=["arena", "driver", "cublas"])
def test_sizes_that_do_not_fit_at_start_are_left_out(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    engine = on(FakeGpu(fits=32, memory_text=text), model, monkeypatch)
    engine.warm_up()

    assert engine.buckets == (1, 2, 4, 8, 16, 32)
    assert engine.note is not None and engine.note.startswith("batches of 64 and more are not used: no memory")
    np.testing.assert_allclose(engine.embed(PIXELS), wanted, atol=1e-6)
    engine.close()


def test_memory_that_runs_out_later_costs_the_large_sizes_and_no_answer(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch)
    engine.warm_up()
    gpu.fits = 16  # another program took the rest

    with caplog.at_level(logging.WARNING, "clf_serve"):
        for _ in range(3):
            np.testing.assert_allclose(engine.embed(PIXELS), wanted, atol=1e-6)

    assert engine.buckets == (1, 2, 4, 8, 16)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3, said  # 128, 64, 32: one line each
    assert said[-1].endswith("batches of at most 16 are used from now on")
    gpu.fits = 0
    with pytest.raises(DeviceMemoryError, match="no memory for a batch of 1"):
        engine.embed(PIXELS[:1])
    gpu.fits = 1_000_000
    np.testing.assert_allclose(engine.embed(PIXELS[:1]), wanted[:1], atol=1e-6)
    engine.close()


@pytest.mark.parametrize(("gpu", "words"), [(FakeGpu(starts=False), "could not start"), (FakeGpu(opens=False), "999")])
def test_a_gpu_that_does_not_work_becomes_the_cpu_and_is_told_of(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, words: str
) -> None:
    asked, auto = on(gpu, model, monkeypatch, "cuda"), on(gpu, model, monkeypatch, "auto")

    assert asked.device == auto.device == "cpu"
    assert asked.note is not None and asked.note.startswith("CUDA was asked for, the CPU is used: ")
    assert auto.note is not None and auto.note.startswith("there is a GPU, but the CPU is used: ")
    assert words in asked.note and words in auto.note
    assert asked.facts()["requested_provider"] == "cuda" and asked.facts()["provider"] == "cpu"
    np.testing.assert_array_equal(asked.embed(PIXELS[:1]), wanted[:1])


def test_a_graph_that_does_not_open_anywhere_is_an_error_of_the_graph(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", dim=DIM + 1)

    with pytest.raises(ModelError, match="differs from its manifest"):
        on(FakeGpu(), folder, monkeypatch)
    assert not any(thread.name.startswith("clf-cuda") for thread in threading.enumerate())


def test_arithmetic_that_fell_to_the_cpu_is_told_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on(FakeGpu(on_cpu=("Shape", "QLinearConv", "QLinearConv", "Gather")), model, monkeypatch)

    assert engine.note == "parts of the graph run on the CPU, as CUDA has none for them: QLinearConv"
    assert engine.facts()["nodes_on_cpu"] == {"Gather": 1, "QLinearConv": 2, "Shape": 1}
    engine.close()


def test_padding_is_black_and_never_an_earlier_image(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch)
    engine.warm_up()
    engine.embed(PIXELS[8:15])  # seven, so that the eighth place was padded already

    engine.embed(PIXELS[:6])

    slot = engine._backend._slots[8]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(slot._images.memory[:6], PIXELS[:6])
    assert not slot._images.memory[6:].any()
    engine.close()


def test_a_model_that_is_opened_beside_another_disturbs_it_not_and_is_not_disturbed(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu()
    first = on(gpu, model, monkeypatch)
    first.warm_up()
    ready = threading.Event()

    def serve() -> int:
        answers = 0
        while not ready.is_set() or answers < 10:
            np.testing.assert_allclose(first.embed(PIXELS[:3]), wanted[:3], atol=1e-6)
            answers += 1
        return answers

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        second = on(gpu, model, monkeypatch)
        try:
            second.warm_up()
        finally:
            ready.set()
        assert serving.result(60) >= 10

    assert gpu.disturbed == 0 and second.note is None
    assert second.facts()["cuda_graphs"] == [1, 2, 4, 8, 16, 32, 64, 128]
    first.close()
    second.close()


def test_a_size_that_is_prepared_again_is_captured_again(
    model: Path, wanted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on(FakeGpu(), model, monkeypatch)
    engine.warm_up()

    engine.warm_up()

    np.testing.assert_allclose(engine.embed(PIXELS[:7]), wanted[:7], atol=1e-6)
    assert engine.note is None and engine.facts()["cuda_graphs"] == [1, 2, 4, 8, 16, 32, 64, 128]
    engine.close()


def test_a_gpu_that_hangs_does_not_hold_up_the_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_CLOSING", 0.05)
    monkeypatch.setattr(cuda, "_GPU", Turns())
    gpu = FakeGpu()
    engine = on(gpu, model, monkeypatch)
    engine.warm_up()
    gpu.working.clear()
    gpu.released = threading.Event()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.embed, PIXELS[:1])
        assert gpu.working.wait(20)
        engine.close()
        assert not answer.done()
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "clf-cuda")
        assert thread.daemon  # the interpreter does not wait for it
        with pytest.raises(RuntimeError, match="closed"):
            engine._backend.run(PIXELS[:1])
        gpu.released.set()  # it was only slow: who waited gets the answer
        assert answer.result(20).shape == (1, DIM)
    thread.join(20)
    assert not thread.is_alive() and engine._backend._session is None  # type: ignore[attr-defined]


def test_a_closed_gpu_holds_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on(FakeGpu(), model, monkeypatch)
    engine.warm_up()

    engine.close()

    backend = engine._backend
    assert backend._session is None and not backend._slots  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="closed"):
        engine.embed(PIXELS[:1])


def test_buffers_bindings_and_run_options_are_onnxruntimes(model: Path, wanted: np.ndarray) -> None:
    """The same code with the real library, its buffers in main memory: names, shapes and types are right."""
    backend = CudaBackend(load_onnxruntime(), read_graph(model, read_manifest(model), "fp32"), 1, memory="cpu")
    for size in (1, 4, 16):
        backend.prepare(size, PIXELS[:16])

    np.testing.assert_allclose(backend.run(PIXELS[:11]), wanted[:11], atol=1e-6)
    np.testing.assert_allclose(backend.run(PIXELS[11:14]), wanted[11:14], atol=1e-6)
    first = backend.run(PIXELS[:4])
    kept = first.copy()
    backend.run(PIXELS[4:8])
    np.testing.assert_array_equal(first, kept)  # an answer is not overwritten by the next
    assert backend.facts()["cuda_graphs"] == [1, 4, 16]
    backend.close()
