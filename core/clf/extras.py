"""Which extra brings which optional package, so that a missing one is explained in the same words everywhere."""

from __future__ import annotations

from clf.errors import MissingExtraError, missing_extra

EXTRA_OF = {
    "onnx": "train",
    "onnxscript": "train",
    "sklearn": "train",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
    "faiss": "serve",
    "fastapi": "serve",
    "gradio": "serve",
    "multipart": "serve",
    "onnxruntime": "serve",
    "orjson": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "httptools": "serve",
    "httpx": "serve",
    "uvicorn": "serve",
    "opentelemetry": "otel",
    "openvino": "openvino",
    "fsspec": "remote",
    "psycopg": "postgres",
    "pyarrow": "parquet",
    "qdrant_client": "qdrant",
    "ray": "ray",
    "umap": "map",
    "watchfiles": "serve",
}
"""Import name -> extra of clf-vision."""


def explain(error: ImportError, purpose: str) -> MissingExtraError | None:
    """The error to show when ``error`` is the absence of an optional package; ``None`` for any other import error.

    A package that is installed but fails inside (a broken shared library) is not absent, and keeps its traceback.
    """
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRA_OF:
        return None
    return missing_extra(package, EXTRA_OF[package], purpose)
