"""The graph of a model folder as bytes in memory: read once, checked, and then opened, all three the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from clf.errors import ModelError
from clf.manifest import Manifest, check_model_bytes, variant_file, variant_sha256
from clf_serve.backends.base import INPUT, OUTPUT, Graph, Port

VariantName: TypeAlias = Literal["fp32", "fp16", "int8"]


def read_graph(folder: Path, manifest: Manifest, variant: VariantName) -> Graph:
    """A graph of an exported model.

    A file that is replaced at this moment is found out, and one that is replaced later does no harm.

    Raises:
        ModelError: there is no such variant, or its file cannot be read or is not the one the manifest speaks of.
    """
    path = variant_file(folder, manifest, variant)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. Export the run again.") from error
    sha256 = variant_sha256(manifest, variant)
    check_model_bytes(data, sha256, path)
    method = None if variant == "fp32" else manifest.variants[variant].method
    return Graph(
        path,
        data,
        sha256,
        manifest.image_size,
        manifest.dim,
        quantised=variant == "int8",
        by_batch=method == "dynamic",
    )


def check_ports(path: Path, ports: tuple[list[Port], list[Port]], size: int, dim: int) -> None:
    """Whether a graph takes images uint8 (n, S, S, 3) and gives embeddings float32 (n, D).

    Raises:
        ModelError: it does not.
    """
    wanted = (Port(INPUT, "tensor(uint8)", [None, size, size, 3]), Port(OUTPUT, "tensor(float)", [None, dim]))
    for found, (name, kind, shape) in zip(ports, wanted, strict=True):
        if len(found) != 1 or found[0][:2] != (name, kind) or not _fits(found[0].shape, shape):
            here = [tuple(port) for port in found]
            raise differs(path, f"{here} was found where one {name!r} {kind} {shape} belongs")


def differs(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} differs from its manifest: {what}. Export the run again.")


def _fits(found: list[int | str | None], wanted: list[int | str | None]) -> bool:
    """Symbolic sizes fit anything."""
    return len(found) == len(wanted) and all(
        not isinstance(f, int) or w is None or f == w for f, w in zip(found, wanted, strict=True)
    )
