"""``clf export``: a run's encoder as one ONNX file with everything between pixels and embedding inside it.

The graph maps uint8 (N, S, S, 3) RGB images to float32 (N, D) embeddings of unit length, for any N. Before the folder
gets its name, onnxruntime must give the same embeddings as the trainer's encoder on images of the run.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import clf
from clf import experiment
from clf.data import Split
from clf.errors import ClfError, ExportError, missing_extra
from clf.evaluate.features import encode
from clf.evaluate.pixels import LUMA, adapt
from clf.experiment import Experiment
from clf.images import prepare
from clf.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, Parity, sha256_file, write_manifest
from clf.runs import Run

OPSET = 18
MIN_COSINE = 0.9999
COMPARED = 64
"""Images of each split that the exported model is compared on, at most."""
LARGEST_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which cannot hold 2 GiB."""


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


def export_run(run: Run, out: Path | None = None) -> Path:
    """Writes ``encoder.onnx`` and ``manifest.json`` of a run's newest checkpoint and proves that they agree with it.

    Args:
        out: the folder to write, by default ``model`` in the run folder. An earlier export there is replaced.

    Returns:
        The folder.

    Raises:
        RunError: the run cannot be loaded.
        ExportError: the encoder cannot be expressed in ONNX, is too large, disagrees with the trainer's encoder, or
            ``out`` holds anything but an earlier export or cannot be written. Nothing is left behind and an earlier
            export stays.
    """
    trained = experiment.load(run, same_data=False)
    folder = out or run.path / "model"
    try:
        _check_target(folder)
        target = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            draft = Path(name) / "draft"
            draft.mkdir()
            parity = _export(trained, draft / MODEL_FILE)
            write_manifest(draft, _manifest(run, trained, draft / MODEL_FILE, parity))
            _check_target(folder)  # minutes have passed
            _replace(target, draft)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"{folder} cannot be written ({reason}): choose another folder with -o") from error
    return folder


def _check_target(folder: Path) -> None:
    """Only an earlier export with nothing beside it, or an empty folder, may be replaced."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names and MODEL_FILE not in names:
        raise ExportError(f"{folder} exists and is not an exported model: choose another folder with -o")
    if others := sorted(names - {MODEL_FILE, MANIFEST_FILE}):
        raise ExportError(
            f"{folder} holds more than an exported model ({others[0]}), which an export would delete: "
            "move it elsewhere or choose another folder with -o"
        )


def _replace(target: Path, draft: Path) -> None:
    """``draft`` becomes ``target``; whatever goes wrong, an interrupt too, an earlier ``target`` is put back."""
    if not target.exists():
        draft.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    earlier = aside / target.name
    try:
        target.rename(earlier)
        draft.rename(target)
    except BaseException:
        if earlier.exists() and not target.exists():
            earlier.rename(target)
        raise
    finally:
        if target.exists():  # else the earlier export could not be put back: better there than nowhere
            shutil.rmtree(aside, ignore_errors=True)


def _export(trained: Experiment, path: Path) -> Parity:
    """Writes the model file and compares it; tries the older exporter when the newer one fails on an encoder."""
    encoder = trained.method.encoder()
    embedder = Embedder(copy.deepcopy(encoder).float(), trained.data.channels).eval()
    size = sum(tensor.nbytes for tensor in embedder.state_dict().values())
    if size > LARGEST_BYTES:
        raise ExportError(f"the encoder has {size / 2**30:.1f} GiB of weights; one ONNX file holds at most 2 GiB")
    failures: list[BaseException] = []
    for exporter in (_by_tracing_export, _by_torchscript):
        try:
            with _quiet():
                exporter(embedder, trained.data.image_size, path)
            return compare(path, trained)
        except ClfError:
            raise
        except Exception as error:  # exporters fail with errors of any type
            failures.append(_cause(error))
            path.unlink(missing_ok=True)
    for cause in failures:
        if isinstance(cause, OSError) and cause.errno:  # a full disk; inspect raises OSError too, without a number
            raise cause
    reason = f"{type(failures[0]).__name__}: {' '.join(str(failures[0]).split())[:200]}"
    name = trained.config.backbone.name
    raise ExportError(f"the encoder ({name}) cannot be exported to ONNX: {reason}; another backbone.name may be")


def _by_tracing_export(embedder: nn.Module, size: int, path: Path) -> None:
    """torch.export; the default since torch 2.9. The example has two images: a batch of one would be taken as fixed."""
    torch.onnx.export(
        embedder,
        (_example(size),),
        path,
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )


def _by_torchscript(embedder: nn.Module, size: int, path: Path) -> None:
    torch.onnx.export(
        embedder,
        (_example(size),),
        str(path),
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=OPSET,
        dynamo=False,
        dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
    )


def _example(size: int) -> Tensor:
    return torch.arange(2 * size * size * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, size, size, 3)


def compare(path: Path, trained: Experiment) -> Parity:
    """Embeddings of the model file against the encoder's, on images of the run in batches of 1, 2, 5 and the rest.

    The encoder goes the trainer's way: clean images of the data source, :func:`clf.evaluate.features.encode`. The
    model goes the server's: for a folder of images the same files through :func:`clf.images.prepare`.

    Raises:
        ExportError: the least cosine is below MIN_COSINE.
    """
    clean, served = _samples(trained)
    ours = F.normalize(encode(trained.method.encoder(), clean), dim=1).numpy()  # (n, D)
    embed = session(path)
    parts = [served[:1], served[1:3], served[3:8], served[8:]]
    theirs = np.concatenate([embed(part) for part in parts if len(part)])
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        raise ExportError(
            f"the exported model gives embeddings {theirs.shape}, the encoder {ours.shape}, or no numbers"
        )
    cosine = float((ours.astype(np.float64) * theirs).sum(1).min())
    if cosine < MIN_COSINE:
        raise ExportError(
            f"the exported model disagrees with the encoder: least cosine {cosine:.6f} over {len(ours)} images, "
            f"needed {MIN_COSINE}. Nothing was written; another backbone.name may export well"
        )
    return Parity(images=len(ours), min_cosine=cosine, max_abs_error=float(np.abs(ours - theirs).max()))


def session(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The exported model on the CPU: images uint8 (N, S, S, 3) -> embeddings float32 (N, D)."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import; onnxruntime 1.31 on Linux reports home without it
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnxruntime", "train", "clf export") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    model = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def embed(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = model.run(["embeddings"], {"images": batch})[0]
        return embeddings

    return embed


def _samples(trained: Experiment) -> tuple[Tensor, NDArray[np.uint8]]:
    """Images from both splits, evenly spaced: as the trainer has them (n, C, S, S), and as a server gets them."""
    data = trained.data
    splits = [data.train, *([data.test] if data.test else [])]
    picks = [torch.linspace(0, len(split) - 1, min(COMPARED, len(split))).long() for split in splits]
    chosen = [split.rows(rows) for split, rows in zip(splits, picks, strict=True)]
    served = np.concatenate([_served(split, trained) for split in chosen])
    return torch.cat([split.clean[:] for split in chosen]), served


def _served(split: Split, trained: Experiment) -> NDArray[np.uint8]:
    """(n, S, S, 3) RGB: from the files themselves where the data are a folder of them, else from the clean images."""
    size, section = trained.data.image_size, trained.config.data
    if section.name == "folder" and section.root and split.names:
        root = Path(section.root).expanduser()
        return np.stack([prepare(root / name, size) for name in split.names])
    array: NDArray[np.uint8] = adapt(split.clean, size, 3)[:].permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(array)


def _manifest(run: Run, trained: Experiment, path: Path, parity: Parity) -> Manifest:
    origin = run.manifest()
    return Manifest(
        name=run.name,
        image_size=trained.data.image_size,
        dim=session(path)(_example(trained.data.image_size).numpy()).shape[1],
        channels=1 if trained.data.channels == 1 else 3,
        sha256=sha256_file(path),
        plugin=trained.config.plugin,
        plugin_version=str(origin.get("plugin_source", {}).get("version", "")),
        backbone=trained.config.backbone.name,
        run=run.name,
        step=trained.step,
        clf_version=clf.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parity=parity,
    )


@contextmanager
def _quiet() -> Iterator[None]:
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


def _cause(error: BaseException) -> BaseException:
    """What the exporter stumbled over first; its own message is a page about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
