"""An exported graph at work on this machine's CPU, for exporting and proving; a server has its own engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clf.errors import missing_extra

Embed: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def onnxruntime_module() -> Any:
    """onnxruntime, told before it is imported that it is not to report home, as 1.31 does on Linux.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnxruntime", "train", "clf export") from None
    return onnxruntime


def session(path: Path, threads: int) -> Embed:
    """The graph as a function: images uint8 (N, S, S, 3) -> embeddings float32 (N, D)."""
    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    model = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def embed(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = model.run(["embeddings"], {"images": batch})[0]
        return embeddings

    return embed
