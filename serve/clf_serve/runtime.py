"""The machine and the libraries that run graphs on it: what is there, without a word to anybody else."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from typing import Any, Literal, TypeAlias

from clf.errors import missing_extra
from clf_serve.cores import usable_cores

__all__ = ["Provider", "load_onnxruntime", "load_openvino", "usable_cores", "why_no_cuda"]

Provider: TypeAlias = Literal["auto", "cpu", "cuda", "openvino"]


def load_onnxruntime() -> Any:
    """The module, quiet. Raises MissingExtraError."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports to its maker otherwise, and reads this while it is imported
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "serve", "running a model") from None
    onnxruntime.set_default_logger_severity(4)  # a GPU build without a GPU fills the terminal otherwise
    return onnxruntime


def load_openvino() -> Any:
    """The module, silent. Raises MissingExtraError."""
    # It reports to its maker while it is imported, and leaves an identifier in the user's home. Without this package,
    # which does that and nothing else, it uses a stub of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError:
        raise missing_extra("openvino", "openvino", "--provider openvino") from None
    return openvino


def why_no_cuda(ort: Any) -> str | None:
    """None when CUDA can be tried."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this build of onnxruntime has no CUDA; install onnxruntime-gpu"
    if not _gpu_present():
        return "no NVIDIA GPU or driver was found"
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()
    return None


def _gpu_present() -> bool:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
