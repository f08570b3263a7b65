"""``manifest.json``: what an exported model is, so that a server needs no torch and no training code.

Imports neither torch nor onnxruntime: the exporter writes it, the server reads it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clf.errors import ConfigError, ModelError, did_you_mean

MODEL_FILE = "encoder.onnx"
MANIFEST_FILE = "manifest.json"
VariantName: TypeAlias = Literal["fp16", "int8"]
VARIANTS: tuple[VariantName, ...] = get_args(VariantName)
VARIANT_FILES = {name: f"encoder.{name}.onnx" for name in VARIANTS}
_SHA256 = r"^[0-9a-f]{64}$"


class Parity(BaseModel):
    """How well the exported graph agrees with the trainer's encoder on the same images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(ge=1, description="number of images compared")
    min_cosine: float = Field(ge=-1, le=1.000001)
    max_abs_error: float = Field(ge=0)


class Variant(BaseModel):
    """The same graph in fewer bits, beside ``encoder.onnx``, and what it keeps of that graph's embeddings.

    All figures are of images of the run that calibration has not seen, where the run holds images out; each image was
    embedded alone, by onnxruntime on a CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.onnx$", description="name in the model folder")
    sha256: str = Field(pattern=_SHA256)
    bytes: int = Field(ge=1, description="size of the file")
    method: Literal["float16", "static", "dynamic"] = Field(
        description="float16: half-precision weights and arithmetic; static: 8-bit integers whose ranges are fixed by "
        "calibration; dynamic: ranges taken from each batch, so an embedding may depend on its neighbours in the batch"
    )
    images: int = Field(ge=1, description="images compared")
    mean_cosine: float = Field(ge=-1, le=1.000001, description="to the embeddings of encoder.onnx")
    min_cosine: float = Field(ge=-1, le=1.000001)
    neighbours_kept: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of each image's 10 nearest others by encoder.onnx that are its 10 nearest by the variant "
        "too (recall@10, queries and searched images of the variant); null below 21 images",
    )
    neighbours_kept_in_fp32: float | None = Field(
        default=None, ge=0, le=1, description="the same with searched images embedded by encoder.onnx, queries only not"
    )
    speed_ratio: float | None = Field(
        default=None,
        gt=0,
        description="times as fast as encoder.onnx: median over single images run by both in turn; null: not measured",
    )
    speed_device: str = Field(default="", description="where the speed was measured")


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
    sha256: str = Field(pattern=_SHA256, description=f"SHA-256 of {MODEL_FILE}")
    plugin: str = Field(description="method that trained the encoder")
    plugin_version: str = ""
    backbone: str = ""
    run: str = Field(default="", description="name of the run it came from")
    step: int = Field(default=0, ge=0, description="optimiser steps of training")
    clf_version: str = ""
    created: str = Field(default="", description="ISO 8601, UTC")
    parity: Parity
    variants: dict[VariantName, Variant] = Field(default_factory=dict, description="made by clf export --variants")


def variant_names(text: str) -> tuple[VariantName, ...]:
    """Variants as a person lists them: ``fp16,int8``, ``all``, or nothing.

    Raises:
        ConfigError: another word.
    """
    words = [word for part in text.split(",") if (word := part.strip().lower())]
    for word in words:
        if word not in ("all", *VARIANTS):
            hint = did_you_mean(word, VARIANTS)
            raise ConfigError(f"{word!r} is no variant of a model; there are {', '.join(VARIANTS)} and all.{hint}")
    return tuple(name for name in VARIANTS if name in words or "all" in words)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes the sidecar. Without variants it is what versions that know none can read: they refuse unknown fields."""
    path = folder / MANIFEST_FILE
    path.write_text(manifest.model_dump_json(indent=2, exclude=None if manifest.variants else {"variants"}) + "\n")
    return path


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported model folder, checked against the model file beside it.

    Variants are checked when they are read, by :func:`check_model_bytes`.

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
    _check(sha256_file(model), manifest.sha256, model)
    return manifest


def variant_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The graph to open for ``name``: ``fp32``, ``fp16`` or ``int8``. Its bytes are not read.

    Raises:
        ModelError: the export has no such variant, or its file is missing.
    """
    if name == "fp32":
        return folder / MODEL_FILE
    run = manifest.run or "RUN"
    if name not in VARIANTS:
        known = ("fp32", *VARIANTS)
        raise ModelError(f"{name!r} is no variant of a model; there are {', '.join(known)}.{did_you_mean(name, known)}")
    variant = manifest.variants.get(name)
    if variant is None:
        raise ModelError(f"{folder} has no {name} variant. Make one: clf export {run} --variants {name} -o {folder}")
    path = folder / variant.file
    if not path.is_file():
        raise ModelError(f"{path} is missing. Export the run again: clf export {run} --variants {name} -o {folder}")
    return path


def variant_sha256(manifest: Manifest, name: str) -> str:
    """SHA-256 that the file of :func:`variant_file` must have. Raises KeyError where that raises ModelError."""
    sums: dict[str, str] = {key: variant.sha256 for key, variant in manifest.variants.items()}
    return {**sums, "fp32": manifest.sha256}[name]


def check_model_bytes(data: bytes, sha256: str, path: Path) -> None:
    """Whether bytes read from ``path`` are those that a manifest speaks of; so what is checked is what gets opened.

    Raises:
        ModelError: they are others.
    """
    _check(hashlib.sha256(data).hexdigest(), sha256, path)


def _check(found: str, wanted: str, path: Path) -> None:
    if found != wanted:
        raise ModelError(
            f"{path} does not match its manifest: SHA-256 is {found[:12]}…, {MANIFEST_FILE} says "
            f"{wanted[:12]}…. One of the two was replaced; export the run again."
        )
