"""``manifest.json``: what an exported model is, so that a server needs no torch and no training code.

Imports neither torch nor onnxruntime: the exporter writes it, the server reads it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clf.errors import ModelError

MODEL_FILE = "encoder.onnx"
MANIFEST_FILE = "manifest.json"


class Parity(BaseModel):
    """How well the exported graph agrees with the trainer's encoder on the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1, description="number of images compared")
    min_cosine: float = Field(ge=-1, le=1.000001)
    max_abs_error: float = Field(ge=0)


class Manifest(BaseModel):
    """Sidecar of ``encoder.onnx``.

    The graph maps ``images`` uint8 (N, image_size, image_size, 3), RGB, to ``embeddings`` float32 (N, dim) of unit
    length. Scaling, grey conversion for one-channel encoders, normalisation and the L2 norm are inside the graph;
    decoding and resizing are :func:`clf.images.prepare`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(min_length=1, description="name under which the model is served")
    image_size: int = Field(ge=1, description="side of the square input in pixels")
    dim: int = Field(ge=1, description="length of an embedding")
    channels: Literal[1, 3] = Field(description="channels the encoder was trained on; the graph input is RGB always")
    preprocessing: Literal["shorter-side-bicubic-center-crop-v1"] = "shorter-side-bicubic-center-crop-v1"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description=f"SHA-256 of {MODEL_FILE}")
    plugin: str = Field(description="method that trained the encoder")
    plugin_version: str = ""
    backbone: str = ""
    run: str = Field(default="", description="name of the run it came from")
    step: int = Field(default=0, ge=0, description="optimiser steps of training")
    clf_version: str = ""
    created: str = Field(default="", description="ISO 8601, UTC")
    parity: Parity


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    path = folder / MANIFEST_FILE
    path.write_text(manifest.model_dump_json(indent=2) + "\n")
    return path


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported model folder, checked against the model file beside it.

    Raises:
        ModelError: a file is missing, the manifest is not valid, or the model's SHA-256 differs from the manifest's.
    """
    path, model = folder / MANIFEST_FILE, folder / MODEL_FILE
    for needed in (path, model):
        if not needed.is_file():
            raise ModelError(f"{folder} is not an exported model: {needed.name} is missing. Make one: clf export RUN")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{path} is not a valid manifest: {where}: {first['msg']}. Export the run again.") from error
    found = sha256_file(model)
    if found != manifest.sha256:
        raise ModelError(
            f"{model} does not match its manifest: SHA-256 is {found[:12]}…, {MANIFEST_FILE} says "
            f"{manifest.sha256[:12]}…. One of the two was replaced; export the run again."
        )
    return manifest
