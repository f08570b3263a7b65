"""The peer of ``serving.py``: LitServe around the same ONNX file in its documented way, by an interpreter of its own.

    PYTHON serving_litserve.py FOLDER PORT BATCH WORKERS

BATCH above 1 switches its batching on (``max_batch_size`` and a window of 10 ms); WORKERS processes share the cores.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from PIL import Image

SIZE = 224


class Tower(litserve.LitAPI):  # type: ignore[misc]
    folder: Path
    threads: int

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            str(self.folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe looks at the annotation
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        batch = x if x.ndim == 4 else x[None]
        rows: np.ndarray[Any, Any] = self.session.run(["embeddings"], {"images": batch})[0]
        return rows if x.ndim == 4 else rows[0]

    def encode_response(self, output: np.ndarray[Any, Any]) -> dict[str, str]:
        return {"embedding": base64.b64encode(output.astype("<f4").tobytes()).decode()}


if __name__ == "__main__":
    folder, port, batch, workers = sys.argv[1:]
    api = Tower(max_batch_size=int(batch), batch_timeout=0.01 if int(batch) > 1 else 0.0)
    api.folder, api.threads = Path(folder), max(1, len(os.sched_getaffinity(0)) // int(workers))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers), timeout=600)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")
