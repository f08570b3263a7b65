"""OpenVINO on the CPU: bf16 arithmetic where the CPU has it and it is faster, checked against onnxruntime."""

from __future__ import annotations

import io
import statistics
import threading
import time
from typing import Any, Literal

import numpy as np

from clf.errors import ModelError
from clf_serve.backends.base import JSON, Graph, Pixels, Port, Vectors, closed, least_cosine, memory_errors
from clf_serve.backends.ort import CpuBackend, cannot_be_opened

LEAST_COSINE = 0.99
_WORTH = 1.1  # times as fast as fp32, for bf16 to be worth its rounding
_ROUNDS = 7
_PATIENCE = 3.0  # seconds for comparing the two
_KINDS = {"u8": "tensor(uint8)", "f32": "tensor(float)", "f16": "tensor(float16)"}


class OpenVinoBackend:
    """OpenVINO on the CPU.

    In fp32 until :meth:`settle` has found that bf16 is worth it. Batches go through one request, one at a time, which
    uses all threads. The library's own report to its maker is switched off, see ``load_openvino``.

    Args:
        ort: onnxruntime, for the reference.
        reference: the fp32 graph; the same as ``graph`` unless that is a variant.
    """

    provider: Literal["openvino"] = "openvino"
    device: Literal["cpu"] = "cpu"
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    exact_rows = True
    pads = False

    def __init__(self, openvino: Any, ort: Any, graph: Graph, reference: Graph, threads: int) -> None:
        """Raises ModelError: OpenVINO cannot open the graph."""
        self.runtime = f"openvino {openvino.__version__.partition('-')[0]}"
        self.threads = threads
        self.notes: list[str] = []
        self._ort = ort
        self._reference: Graph | None = reference
        self._compiled: Any = None
        self._request: Any = None
        self._quantised = graph.quantised
        self._cosine: float | None = None
        self._gain: float | None = None
        self._lock = threading.Lock()
        try:
            self._core: Any = openvino.Core()
            self._model: Any = self._core.read_model(io.BytesIO(graph.data))
            self._use("fp32", self._compile("f32"))
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise cannot_be_opened(graph, self.runtime, error) from error

    def ports(self) -> tuple[list[Port], list[Port]]:
        with self._lock:
            compiled = self._compiled
            return [_port(end) for end in compiled.inputs], [_port(end) for end in compiled.outputs]

    def settle(self, probe: Pixels) -> None:
        """Takes bf16 if it is at least 1.1 times as fast as fp32 on one image and close enough to onnxruntime.

        Raises:
            ModelError: the least cosine to onnxruntime's fp32 is below 0.99, and the graph is not quantised.
        """
        if self._reference is None:
            return
        exact = CpuBackend(self._ort, self._reference, self.threads)
        wanted = _one_by_one(exact.run, probe)
        exact.close()
        self._cosine = least_cosine(wanted, _one_by_one(self.run, probe))
        if "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            self._try_bf16(probe, wanted)
        if self._cosine < LEAST_COSINE and not self._quantised:
            raise ModelError(
                f"{self._reference.path} gives other embeddings with {self.runtime} than with onnxruntime: least "
                f"cosine {self._cosine:.4f} over {len(probe)} images, needed {LEAST_COSINE}. Use --provider cpu"
            )
        gain = f" ({self._gain:.1f} times as fast as its fp32 here)" if self._gain and self.arithmetic == "bf16" else ""
        self.notes = [
            f"OpenVINO computes in {self.arithmetic}{gain}; the least cosine to onnxruntime's fp32 is "
            f"{self._cosine:.5f} over {len(probe)} images"
        ]
        self._reference = None
        self._model = None

    def prepare(self, size: int, probe: Pixels) -> None:
        pass

    def drop(self, size: int) -> None:
        pass

    def run(self, pixels: Pixels) -> Vectors:
        with self._lock, memory_errors(len(pixels)):
            if self._request is None:
                raise closed()
            return _infer(self._request, pixels)

    def facts(self) -> dict[str, JSON]:
        return {"least_cosine_to_onnxruntime_fp32": self._cosine, "bf16_times_as_fast_as_fp32": self._gain}

    def close(self) -> None:
        # Without the lock, which a run that hangs would hold for ever; one that has begun has its request in hand.
        self._compiled = self._request = self._model = self._core = self._reference = None

    def _compile(self, precision: str) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # threads of decoding, and other processes, run on the same cores
        }
        return self._core.compile_model(self._model, "CPU", options)

    def _use(self, arithmetic: str, compiled: Any) -> None:
        self.arithmetic = f"int8 and {arithmetic}" if self._quantised else arithmetic
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def _try_bf16(self, probe: Pixels, wanted: Vectors) -> None:
        compiled = self._compile("bf16")
        request = compiled.create_infer_request()
        cosine = least_cosine(wanted, _one_by_one(lambda image: _infer(request, image), probe))
        self._gain = _times_as_fast(request, self._request, probe[:1])
        if self._gain >= _WORTH and (cosine >= LEAST_COSINE or self._quantised):
            with self._lock:
                self._use("bf16", compiled)
            self._cosine = cosine


def _infer(request: Any, pixels: Pixels) -> Vectors:
    request.infer([np.ascontiguousarray(pixels)], share_inputs=True)
    return np.array(request.get_output_tensor(0).data, np.float32)  # a copy: the next run overwrites the tensor


def _one_by_one(run: Any, probe: Pixels) -> Vectors:
    return np.concatenate([run(probe[i : i + 1]) for i in range(len(probe))])


def _times_as_fast(request: Any, other: Any, image: Pixels) -> float:
    """Median seconds of ``other`` over those of ``request``, run in turn after one run of each."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    begun = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        for which, candidate in enumerate((request, other)):
            start = time.perf_counter()
            _infer(candidate, image)
            if turn:
                seconds[which].append(time.perf_counter() - start)
        if turn and time.perf_counter() - begun > _PATIENCE:
            break
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def _port(end: Any) -> Port:
    kind = end.element_type.get_type_name()
    shape = [d.get_length() if d.is_static else None for d in end.partial_shape]
    return Port(end.any_name, _KINDS.get(kind, kind), shape)
