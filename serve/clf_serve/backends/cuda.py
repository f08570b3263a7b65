"""onnxruntime on an NVIDIA GPU: buffers that stay where they are, fixed batch sizes, CUDA graphs where they hold.

No GPU was at hand when this was written: it has been run with onnxruntime on buffers in main memory, and with a
stand-in that behaves as onnxruntime's documentation and source say; never yet on a GPU.
``tests/benchmarks/gpu_serving.py`` is there to be run on one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

from clf_serve.backends.base import (
    INPUT,
    JSON,
    OUTPUT,
    Graph,
    Pixels,
    Port,
    Vectors,
    first_line,
    is_out_of_memory,
    least_cosine,
    memory_errors,
)
from clf_serve.backends.one_thread import OneThread
from clf_serve.backends.ort import CPU, NAMES_NODES, create_session, session_ports
from clf_serve.backends.turns import Turns

P = ParamSpec("P")
T = TypeVar("T")

CUDA = "CUDAExecutionProvider"
_CLOSING = 3.0  # seconds
LEAST_COSINE = 0.9999  # of a replayed graph's rows to those of a plain run
_GPU = Turns()
"""Of all models in this process. A capture fails, and so does what disturbs it, when another thread allocates, copies
or waits meanwhile, as a model at work or one that is being opened does (``cudaStreamCaptureModeGlobal``)."""
_HEAVY = ("Attention", "Conv", "Gemm", "MatMul", "Norm", "Quantize", "Softmax")


class CudaUnavailableError(Exception):
    """CUDA cannot be used for this graph; the message says why."""


class CudaBackend:
    """onnxruntime on one GPU.

    Everything happens in one thread: onnxruntime keeps captured graphs with the thread that captured them, and forbids
    running a session with CUDA graphs from several. TF32 is off, so that fp32 is fp32; speed is what fp16 is for.
    Images are copied as bytes; scaling and normalisation happen on the GPU, in the graph.

    Args:
        memory: ``"cpu"`` puts the buffers into main memory and runs on the CPU: all but the GPU itself.

    Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """

    provider: Literal["cuda"] = "cuda"
    device: Literal["cuda"] = "cuda"
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    exact_rows = False
    pads = True
    arithmetic = None

    def __init__(self, ort: Any, graph: Graph, threads: int, memory: Literal["cuda", "cpu"] = "cuda") -> None:
        """Raises CudaUnavailableError."""
        self.runtime = f"onnxruntime {ort.__version__}"
        self.threads = threads
        self.notes: list[str] = []
        self._ort, self._graph, self._memory = ort, graph, memory
        self._slots: dict[int, _Slot] = {}
        self._captured: dict[int, bool] = {}  # size -> whether a replay gave the very bits of a plain run
        self._graphs = True
        self._graph_ids = itertools.count(1)  # 0 is onnxruntime's own, and a captured one never captures again
        self._thread = OneThread("clf-cuda")
        try:
            self._session: Any = self._in_thread(self._open)
        except BaseException:
            self._thread.close(self._free, _CLOSING)
            raise
        self._on_cpu = _nodes_on_cpu(self._session) if memory == "cuda" else {}
        if heavy := sorted(kind for kind in self._on_cpu if any(word in kind for word in _HEAVY)):
            self.notes.append(f"parts of the graph run on the CPU, as CUDA has none for them: {', '.join(heavy)}")

    def ports(self) -> tuple[list[Port], list[Port]]:
        return session_ports(self._session)

    def settle(self, probe: Pixels) -> None:
        pass

    def prepare(self, size: int, probe: Pixels) -> None:
        """Allocates the buffers of a size, runs it, and captures it as a CUDA graph if a replay proves right."""
        self._thread(self._prepare, size, probe[:size])

    def drop(self, size: int) -> None:
        self._in_thread(self._forget, size)

    def run(self, pixels: Pixels) -> Vectors:
        """Rows (n, D). The images are padded with black ones up to the next prepared size."""
        return self._in_thread(self._run, pixels)

    def facts(self) -> dict[str, JSON]:
        return {
            "cuda_graphs": sorted(self._captured),
            "cuda_graphs_bit_identical": all(self._captured.values()) if self._captured else None,
            "nodes_on_cpu": self._on_cpu,
            "tf32": False,
        }

    def close(self) -> None:
        """Waits a few seconds for runs that have begun; those that hang are left behind."""

        def free() -> None:
            with _GPU.shared():
                self._free()

        self._thread.close(free, _CLOSING)

    def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def work() -> T:
            with _GPU.shared():
                return function(*args, **kwargs)

        return self._thread(work)

    def _open(self) -> Any:
        if self._graphs:
            try:
                return self._create("1")
            except CudaUnavailableError:
                raise
            except Exception as error:  # onnxruntime refuses graphs with control flow, or with parts on the CPU
                self._graphs = False
                self.notes.append(f"CUDA graphs are not used: {first_line(error)}")
        try:
            return self._create("0")
        except CudaUnavailableError:
            raise
        except Exception as error:
            raise CudaUnavailableError(first_line(error)) from error

    def _create(self, graphs: str) -> Any:
        options = {
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive one takes long at every new size
            "arena_extend_strategy": "kSameAsRequested",  # sizes are few and fixed: no need to reserve in doubles
            "use_tf32": "0",
            "enable_cuda_graph": graphs,
        }
        providers: list[Any] = [(CUDA, options), CPU] if self._memory == "cuda" else [CPU]
        session = create_session(self._ort, self._graph.data, providers, self.threads, {NAMES_NODES: "1"})
        if self._memory == "cuda" and session.get_providers()[0] != CUDA:
            raise CudaUnavailableError("onnxruntime could not start CUDA (its version, or cuDNN, does not match)")
        return session

    def _prepare(self, size: int, probe: Pixels) -> None:
        try:
            with memory_errors(size):
                with _GPU.shared():
                    self._slots[size] = self._slot(size)
                    self._slots[size].run(self._session, probe, captured=False)
                fault = self._capture(self._slots[size], probe) if self._graphs else None
        except BaseException:
            with _GPU.shared():
                self._forget(size)
            raise
        if fault is not None:
            with _GPU.shared():
                self._without_graphs(fault)

    def _slot(self, size: int) -> _Slot:
        return _Slot(self._ort, self._session, self._graph, size, next(self._graph_ids), self._memory)

    def _capture(self, slot: _Slot, probe: Pixels) -> str | None:
        """Captures a size; what is wrong with its replay, or ``None``."""
        other = 255 - probe  # a replay that reads from elsewhere than its buffers would not notice new images
        try:
            with _GPU.shared():
                expected = slot.run(self._session, other, captured=False)
            with _GPU.alone():
                slot.run(self._session, probe, captured=True)
            with _GPU.shared():
                found = slot.run(self._session, other, captured=True)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return first_line(error)
        cosine = least_cosine(expected, found)
        if cosine < LEAST_COSINE:
            return f"at batch {slot.size} a replay gave other embeddings (least cosine {cosine:.4f})"
        self._captured[slot.size] = np.array_equal(expected, found)
        return None

    def _without_graphs(self, why: str) -> None:
        """A session that failed in a capture is not to be trusted: all is made anew without graphs."""
        self.notes.append(f"CUDA graphs are not used: {why}")
        sizes = list(self._slots)
        self._graphs = False
        self._free()
        self._session = self._open()
        for size in sizes:
            with memory_errors(size):
                self._slots[size] = self._slot(size)
                self._slots[size].run(
                    self._session, np.zeros((size, *self._graph.image_shape), np.uint8), captured=False
                )

    def _run(self, pixels: Pixels) -> Vectors:
        n = len(pixels)
        with memory_errors(n):
            size = min((size for size in self._slots if size >= n), default=None)
            if size is None:
                size = n
                self._slots[n] = self._slot(n)
            return self._slots[size].run(self._session, pixels, captured=size in self._captured)

    def _forget(self, size: int) -> None:
        self._slots.pop(size, None)
        self._captured.pop(size, None)

    def _free(self) -> None:
        self._slots.clear()
        self._captured.clear()
        self._session = None


class _Slot:
    """The buffers of one batch size, bound to the session for good, since a CUDA graph remembers their addresses."""

    def __init__(self, ort: Any, session: Any, graph: Graph, size: int, graph_id: int, memory: str) -> None:
        new = ort.OrtValue.ortvalue_from_shape_and_type
        self.size = size
        self._host = np.zeros((size, *graph.image_shape), np.uint8)
        self._images = new([size, *graph.image_shape], np.uint8, memory, 0)
        self._vectors = new([size, graph.dim], np.float32, memory, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._images)
        self._binding.bind_ortvalue_output(OUTPUT, self._vectors)
        self._plain, self._replay = ort.RunOptions(), ort.RunOptions()
        self._plain.add_run_config_entry("gpu_graph_id", "-1")
        self._replay.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, session: Any, pixels: Pixels, *, captured: bool) -> Vectors:
        """Rows (n, D) of n <= size images. The first run with ``captured`` captures, the next ones replay."""
        n = len(pixels)
        if n < self.size:
            self._host[:n], self._host[n:] = pixels, 0
        self._images.update_inplace(self._host if n < self.size else np.ascontiguousarray(pixels))
        self._binding.synchronize_inputs()  # a copy from ordinary memory may still be under way when it returns
        session.run_with_iobinding(self._binding, self._replay if captured else self._plain)
        return np.array(self._vectors.numpy()[:n])


def _nodes_on_cpu(session: Any) -> dict[str, int]:
    """Kinds and numbers of the nodes that were not given to CUDA; empty where onnxruntime cannot tell (before 1.24)."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    kinds: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == CPU:
            kinds.update(node.op_type for node in part.get_nodes())
    return dict(sorted(kinds.items()))
