"""A model of Triton's Python backend: files of images to the pixels that the encoder was trained on.

``clf export --format triton`` copies this file to ``model.py`` and the modules of ``clf`` that it needs beside it, so
that nothing of clf has to be installed where Triton runs: Pillow and numpy will do (``requirements.txt``).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the copies, also where another clf is installed

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

from clf.errors import ImageError
from clf.images import prepare


class TritonPythonModel:
    """``encoded``, BYTES (n), to ``images``, UINT8 (n, S, S, 3)."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._size = int(parameters["image_size"]["string_value"])
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _answer(self, request: Any) -> Any:
        """The pixels of all files, or an error that names the first bad one and leaves other requests alone."""
        files = pb_utils.get_input_tensor_by_name(request, "encoded").as_numpy().reshape(-1)
        pixels = np.empty((len(files), self._size, self._size, 3), np.uint8)
        jobs = [self._pool.submit(self._prepared, file) for file in files]
        for number, job in enumerate(jobs):
            try:
                pixels[number] = job.result()
            except ImageError as error:
                problem = pb_utils.TritonError(f"encoded[{number}]: {error}", pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(output_tensors=[], error=problem)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", pixels)])

    def _prepared(self, file: bytes) -> NDArray[np.uint8]:
        return prepare(_unwrapped(bytes(file)), self._size)


def _unwrapped(file: bytes) -> bytes:
    """JSON holds no bytes, so a file comes as base64 there; no format of images consists of its letters alone."""
    try:
        return base64.b64decode(file, validate=True) or file
    except binascii.Error:
        return file
