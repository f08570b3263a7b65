"""The model at work in bulk embedding, and what stands in for it in the checks of engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from clf.errors import ModelError
from clf_serve.backends.base import Pixels, Vectors
from clf_serve.model_file import VariantName
from clf_serve.runtime import Provider


class Encoder(Protocol):
    """What turns pixels into vectors. Called by one thread at a time."""

    @property
    def image_size(self) -> int: ...

    @property
    def provider(self) -> str:
        """What runs it; all parts of an output must come from the same."""

    @property
    def note(self) -> str:
        """What is worth knowing of it, above all a device that is not the one asked for; may be empty."""

    def embed(self, pixels: Pixels) -> Vectors:
        """(n, S, S, 3) uint8 -> (n, D) float32. The bits depend on the pixels and on n, and on nothing else."""

    def close(self) -> None: ...


OpenEncoder: TypeAlias = "Callable[[int | None], Encoder]"
"""Opens the model with so many threads, or with all cores. Can be pickled."""


@dataclass(frozen=True)
class OpenModel:
    """Opens an exported model.

    Args:
        sha256: that its manifest must name, as all processes of one output must use the same.
        batch: images that are embedded together.
    """

    folder: Path
    sha256: str
    variant: VariantName
    provider: Provider
    batch: int

    def __call__(self, threads: int | None) -> Encoder:
        """Raises ModelError: there is no such model on this machine, or another."""
        from clf.manifest import read_manifest, variant_sha256

        manifest = read_manifest(self.folder)
        if variant_sha256(manifest, self.variant) != self.sha256:
            raise ModelError(f"{self.folder} holds another model on this machine; put the same one on all of them")
        return ModelEncoder(self, threads)


class ModelEncoder:
    """An exported model. On a device where rows depend on the size of their batch all batches are of one size."""

    def __init__(self, model: OpenModel, threads: int | None) -> None:
        from clf_serve.engine import Engine

        self._engine = Engine(model.folder, model.provider, threads, variant=model.variant)
        try:
            self._engine.warm_up()
            self._engine.fix_batches(model.batch)
        except BaseException:
            self._engine.close()
            raise

    @property
    def image_size(self) -> int:
        return self._engine.image_size

    @property
    def provider(self) -> str:
        return str(self._engine.facts()["provider"])

    @property
    def note(self) -> str:
        return self._engine.note or ""

    def embed(self, pixels: Pixels) -> Vectors:
        return self._engine.embed(pixels)

    def close(self) -> None:
        self._engine.close()
