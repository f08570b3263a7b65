"""A stand-in for onnxruntime with CUDA: computes on the CPU, and minds what onnxruntime minds on a GPU.

It behaves as the documentation and the source of onnxruntime 1.2x say
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, ``cuda_execution_provider.cc``): a
captured graph reads and writes the addresses it was captured with, and memory that runs out is a RuntimeError with a
certain text. A copy to the GPU may not be there before it is waited for, and a capture fails, as does what disturbs it,
when another thread uses the GPU meanwhile.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clf_serve.runtime import load_onnxruntime

ARENA_TEXT = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'conv1' "
    "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 64"
)
DRIVER_TEXT = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=gpu ; expr=cudaMalloc(&p, size);"
)
CUBLAS_TEXT = "[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=gpu"
NOT_PARTITIONED = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user as all "
    "compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)

DISTURBED = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted when stream is capturing"


@dataclass
class FakeGpu:
    """What the GPU does, and what was asked of it."""

    fits: int = 1_000_000
    """Images of the largest batch that fits its memory."""
    memory_text: str = ARENA_TEXT
    starts: bool = True
    """Whether the library can start CUDA at all."""
    opens: bool = True
    graphs: str = "hold"
    """``hold``, ``refused`` (by the session), ``break`` (the capture fails) or ``stale`` (replays give old rows)."""
    graphs_hold_up_to: int = 1_000_000
    on_cpu: tuple[str, ...] = ("Shape",)
    sessions: list[FakeSession] = field(default_factory=list)
    runs: list[tuple[int, str]] = field(default_factory=list)
    """Batch size and graph id of each run."""
    threads: set[int] = field(default_factory=set)
    capturing: int | None = None
    """The thread that captures now."""
    disturbed: int = 0
    working: threading.Event = field(default_factory=threading.Event)
    """Set by each run when it begins."""
    released: threading.Event | None = None
    """What runs hang on."""

    def touch(self) -> None:
        """Whatever CUDA forbids while another thread captures."""
        if self.capturing not in (None, threading.get_ident()):
            self.disturbed += 1
            raise RuntimeError(DISTURBED)

    def check(self, size: int) -> None:
        if size > self.fits:
            raise RuntimeError(self.memory_text)


class FakeOrtValue:
    def __init__(self, gpu: FakeGpu, shape: list[int], kind: Any, device: str) -> None:
        assert device == "cuda"
        gpu.touch()
        gpu.check(shape[0])
        self._gpu = gpu
        self._on_its_way: np.ndarray | None = None
        self.memory = np.full(shape, 77, kind)

    def update_inplace(self, data: np.ndarray) -> None:
        assert data.flags.c_contiguous and data.shape == self.memory.shape and data.dtype == self.memory.dtype
        self._gpu.touch()
        self._on_its_way = data.copy()

    def arrive(self) -> None:
        if self._on_its_way is not None:
            self.memory[:], self._on_its_way = self._on_its_way, None

    def numpy(self) -> np.ndarray:
        self._gpu.touch()
        return self.memory.copy()


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, FakeOrtValue] = {}
        self.outputs: dict[str, FakeOrtValue] = {}

    def bind_ortvalue_input(self, name: str, value: FakeOrtValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: FakeOrtValue) -> None:
        self.outputs[name] = value

    def synchronize_inputs(self) -> None:
        for value in self.inputs.values():
            value.arrive()


class FakeSession:
    def __init__(self, gpu: FakeGpu, data: bytes, options: Any, providers: list[Any], enable_fallback: int) -> None:
        assert enable_fallback == 0, "onnxruntime would print its troubles and go on with the CPU"
        gpu.touch()
        self.gpu = gpu
        self.providers = providers
        self.options = dict(providers[0][1]) if isinstance(providers[0], tuple) else {}
        ort = load_onnxruntime()
        self.real = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.with_graphs = self.options.get("enable_cuda_graph") == "1"
        self.captured: dict[str, tuple[FakeBinding, np.ndarray]] = {}
        if self.options and not gpu.opens:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 999: unknown error ; GPU=0")
        if self.with_graphs and gpu.graphs == "refused":
            raise RuntimeError(NOT_PARTITIONED)
        gpu.sessions.append(self)

    def get_providers(self) -> list[str]:
        on_gpu = self.options and self.gpu.starts
        return ["CUDAExecutionProvider", "CPUExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def get_provider_graph_assignment_info(self) -> list[Any]:
        part = type("Part", (), {"ep_name": "CPUExecutionProvider"})()
        nodes = [type("Node", (), {"op_type": kind})() for kind in self.gpu.on_cpu]
        part.get_nodes = lambda: nodes
        return [part]

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        assert not self.options, "a session on the GPU is run with its buffers bound"
        return self.real.run(names, feeds)

    def run_with_iobinding(self, binding: FakeBinding, run_options: Any) -> None:
        graph = run_options.get_run_config_entry("gpu_graph_id")
        size = binding.inputs["images"].memory.shape[0]
        self.gpu.touch()
        self.gpu.working.set()
        if self.gpu.released is not None:
            self.gpu.released.wait(60)
        self.gpu.runs.append((size, graph))
        self.gpu.threads.add(threading.get_ident())
        self.gpu.check(size)
        if not self.with_graphs or graph == "-1":
            self._compute(binding)
            return
        if graph not in self.captured:
            if self.gpu.graphs == "break" or size > self.gpu.graphs_hold_up_to:
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted")
            self._capture(binding)
            self.captured[graph] = (binding, binding.outputs["embeddings"].memory.copy())
            return
        bound, first = self.captured[graph]
        if self.gpu.graphs == "stale":
            bound.outputs["embeddings"].memory[:] = first
        else:
            self._compute(bound)

    def _capture(self, binding: FakeBinding) -> None:
        before, self.gpu.capturing = self.gpu.disturbed, threading.get_ident()
        try:
            self._compute(binding)
            time.sleep(0.005)
        finally:
            self.gpu.capturing = None
        if self.gpu.disturbed > before:
            raise RuntimeError(DISTURBED)

    def _compute(self, binding: FakeBinding) -> None:
        (name, output), (feed, value) = *binding.outputs.items(), *binding.inputs.items()
        output.memory[:] = self.real.run([name], {feed: value.memory})[0]


class FakeOrt:
    """The module."""

    def __init__(self, gpu: FakeGpu) -> None:
        real = load_onnxruntime()
        self.__version__ = real.__version__
        self.SessionOptions = real.SessionOptions
        self.RunOptions = real.RunOptions
        self.OrtValue = type(
            "OrtValue",
            (),
            {
                "ortvalue_from_shape_and_type": lambda shape, kind, device, number: FakeOrtValue(
                    gpu, shape, kind, device
                )
            },
        )
        self._gpu = gpu

    def InferenceSession(  # noqa: N802
        self, data: bytes, options: Any, providers: list[Any], enable_fallback: int
    ) -> FakeSession:
        return FakeSession(self._gpu, data, options, providers, enable_fallback)
