"""An encoder as an ONNX graph: uint8 images in, unit vectors out, by torch's exporters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clf.evaluate.pixels import LUMA

OPSET = 18


class Embedder(nn.Module):
    """What is exported: images uint8 (N, S, S, 3) -> embeddings float32 (N, D) of unit length."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = channels
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.luma: Tensor

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255  # (N, 3, S, S) in [0, 1]
        if self.channels == 1:
            x = (x * self.luma).sum(1, keepdim=True)  # (N, 1, S, S)
        return F.normalize(self.encoder(x), dim=1)  # (N, D)


def by_tracing_export(embedder: nn.Module, size: int, path: Path) -> None:
    """torch.export; the default since torch 2.9. The example has two images: a batch of one would be taken as fixed."""
    torch.onnx.export(
        embedder,
        (example(size),),
        path,
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )


def by_torchscript(embedder: nn.Module, size: int, path: Path) -> None:
    """The older exporter, for encoders that torch.export cannot trace."""
    torch.onnx.export(
        embedder,
        (example(size),),
        str(path),
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=OPSET,
        dynamo=False,
        dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
    )


def example(size: int) -> Tensor:
    """Two images (2, size, size, 3) uint8."""
    return torch.arange(2 * size * size * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, size, size, 3)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notes about their own future and progress, which a user cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def cause(error: BaseException) -> BaseException:
    """What the exporter stumbled over first; its own message is a page about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
