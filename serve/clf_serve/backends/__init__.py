"""Where a graph runs: onnxruntime on the CPU or on CUDA, or OpenVINO on the CPU."""

from __future__ import annotations

from clf_serve.backends.base import Backend, Graph
from clf_serve.backends.cuda import CudaBackend, CudaUnavailableError
from clf_serve.backends.openvino import OpenVinoBackend
from clf_serve.backends.ort import CpuBackend
from clf_serve.runtime import Provider, load_onnxruntime, load_openvino, why_no_cuda


def open_backend(graph: Graph, reference: Graph, provider: Provider, threads: int) -> Backend:
    """``graph`` on the device asked for. ``auto`` is CUDA where it works, else the CPU by onnxruntime.

    CUDA that was asked for and does not work becomes the CPU, and the first of ``notes`` says so and why.

    Args:
        reference: the graph in fp32, for those who must compare.

    Raises:
        ModelError: the graph cannot be opened.
        MissingExtraError: onnxruntime, or OpenVINO when that is asked for, is not installed.
    """
    if provider == "openvino":
        return OpenVinoBackend(load_openvino(), load_onnxruntime(), graph, reference, threads)
    ort = load_onnxruntime()
    if provider == "cpu":
        return CpuBackend(ort, graph, threads)
    why = why_no_cuda(ort)
    tried = why is None
    if why is None:
        try:
            return CudaBackend(ort, graph, threads)
        except CudaUnavailableError as error:
            why = str(error)
    backend = CpuBackend(ort, graph, threads)
    if provider == "cuda":
        backend.notes.append(f"CUDA was asked for, the CPU is used: {why}")
    elif tried:
        backend.notes.append(f"there is a GPU, but the CPU is used: {why}")
    return backend
