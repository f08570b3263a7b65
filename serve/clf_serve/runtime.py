"""An onnxruntime session on the device that truly works, with a word when that is not the one asked for."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clf.errors import ModelError, missing_extra

Provider = Literal["auto", "cpu", "cuda"]


class Session(NamedTuple):
    handle: Any
    """``onnxruntime.InferenceSession``."""
    device: Literal["cpu", "cuda"]
    note: str | None
    """What differs from what was asked for, in words."""


def open_session(model: Path, provider: Provider, threads: int | None = None) -> Session:
    """Opens ``model`` on CUDA where it is asked for (or ``auto``) and works, else on the CPU.

    Raises:
        ModelError: onnxruntime cannot read the file.
        MissingExtraError: onnxruntime is not installed.
    """
    ort = _onnxruntime()
    reason = None if provider == "cpu" else _why_no_cuda(ort)
    note = None
    if provider != "cpu" and reason is None:
        session = _create(ort, model, ["CUDAExecutionProvider", "CPUExecutionProvider"], threads)
        if session.get_providers()[0] == "CUDAExecutionProvider":
            return Session(session, "cuda", None)
        note = "the GPU is not used: onnxruntime could not start CUDA (its version, or cuDNN, does not match)"
    if provider == "cuda":
        note = f"CUDA was asked for, the CPU is used: {reason or note}"
    return Session(_create(ort, model, ["CPUExecutionProvider"], threads), "cpu", note)


def usable_cores() -> int:
    """Cores this process may use; container limits of affinity are honoured."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _onnxruntime() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reports to its maker otherwise, and reads this while it is imported
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "serve", "running a model") from None
    onnxruntime.set_default_logger_severity(4)  # a GPU build without a GPU fills the terminal otherwise
    return onnxruntime


def _create(ort: Any, model: Path, providers: list[str], threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoding shares the cores
    try:
        return ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{model} cannot be opened by onnxruntime {ort.__version__}: {first}") from error


def _why_no_cuda(ort: Any) -> str | None:
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
