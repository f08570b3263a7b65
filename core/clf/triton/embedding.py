"""A model of Triton's Python backend: pixels to vectors by onnxruntime, where Triton has no onnxruntime backend.

``clf export --format triton-python`` copies this file to ``model.py`` and the modules of ``clf`` that it needs beside
it, so that nothing of clf has to be installed where Triton runs: onnxruntime and numpy will do (``requirements.txt``).
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the copies, also where another clf is installed

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from clf.onnx_session import session


class TritonPythonModel:
    """``images``, UINT8 (n, S, S, 3), to ``embeddings``, FP32 (n, D)."""

    def initialize(self, args: dict[str, str]) -> None:
        if find_spec("onnxruntime") is None:
            raise pb_utils.TritonModelException("Triton's Python has no onnxruntime: pip install onnxruntime")
        threads = len(os.sched_getaffinity(0))
        self._embed = session(Path(__file__).resolve().parent / "model.onnx", threads)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Image by image: on a CPU that is as quick, and no vector depends on what else is in its batch."""
        answers = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            vectors = np.concatenate([self._embed(images[i : i + 1]) for i in range(len(images))])
            answers.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("embeddings", vectors)]))
        return answers
