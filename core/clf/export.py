"""``clf export``: a run's encoder as one ONNX file with everything between pixels and embedding inside it.

The graph maps uint8 (N, S, S, 3) RGB images to float32 (N, D) embeddings of unit length, for any N. Before the folder
gets its name, onnxruntime must give the same embeddings as the trainer's encoder on images of the run. What comes of it
is a folder for ``clf serve``, or a model repository for Triton (:mod:`clf.triton`).
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import clf
from clf import experiment
from clf.data import Split
from clf.errors import ClfError, ExportError
from clf.evaluate.features import encode
from clf.evaluate.pixels import adapt
from clf.experiment import Experiment
from clf.images import prepare
from clf.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    VARIANT_FILES,
    Manifest,
    Parity,
    VariantName,
    sha256_file,
    write_manifest,
)
from clf.onnx_graph import Embedder, by_torchscript, by_tracing_export, cause, example, quiet
from clf.onnx_session import session
from clf.runs import Run
from clf.triton import check_repository, put_in_place, repository_name, write_repository
from clf.variants import CALIBRATION, HELD_OUT, Refused, Say, make_variants

Layout: TypeAlias = Literal["onnx", "triton", "triton-python"]
"""``onnx`` for clf serve; ``triton`` for Triton's onnxruntime backend, ``triton-python`` for its Python backend."""

MIN_COSINE = 0.9999
COMPARED = 64
"""Images of each split that the exported model is compared on, at most."""
LARGEST_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which cannot hold 2 GiB."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it was asked for and did not."""

    folder: Path
    manifest: Manifest
    file: Path
    """The graph in full precision."""
    refused: Sequence[Refused] = ()
    dropped: Sequence[VariantName] = ()
    """Variants that an earlier export in this folder had."""


def export_run(run: Run, out: Path | None = None) -> Path:
    """:func:`export` without variants; the folder."""
    return export(run, out).folder


def export(
    run: Run,
    out: Path | None = None,
    variants: Sequence[VariantName] = (),
    say: Say = lambda what: None,
    layout: Layout = "onnx",
) -> Exported:
    """Writes ``encoder.onnx`` and ``manifest.json`` of a run's newest checkpoint and proves that they agree with it.

    Args:
        out: the folder to write, by default ``model`` in the run folder. An earlier export there is replaced. A
            repository for Triton, by default ``triton``, may hold other models, which stay.
        variants: further graphs to write, with what each keeps of the first one's embeddings in the manifest. One that
            loses too much, or cannot be made, is left out and told of; the rest of the export stays.
        say: called with what is being done now.
        layout: what the folder is for.

    Raises:
        RunError: the run cannot be loaded.
        ExportError: the encoder cannot be expressed in ONNX, is too large, disagrees with the trainer's encoder, or
            ``out`` holds anything but an earlier export or cannot be written. Nothing is left behind and an earlier
            export stays.
    """
    say("reading the run")
    trained = experiment.load(run, same_data=False)
    folder = out or run.path / ("model" if layout == "onnx" else "triton")
    check = partial(_check_target, folder) if layout == "onnx" else partial(check_repository, folder, run.name)
    try:
        check()
        target = folder.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            draft = Path(name) / "draft"
            draft.mkdir()
            manifest, refused = _drafted(run, trained, draft, variants, say)
            check()  # minutes have passed
            if layout == "onnx":
                dropped = _dropped(target, manifest)
                _replace(target, draft)
            else:
                dropped = _put_repository(target, draft, manifest, layout)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"{folder} cannot be written ({reason}): choose another folder with -o") from error
    file = folder / (MODEL_FILE if layout == "onnx" else f"{repository_name(run.name)}/1/model.onnx")
    return Exported(folder, manifest, file, refused, dropped)


def _drafted(
    run: Run, trained: Experiment, draft: Path, variants: Sequence[VariantName], say: Say
) -> tuple[Manifest, list[Refused]]:
    """Writes the folder that ``clf serve`` reads. Raises ExportError and OSError."""
    say("exporting the encoder")
    with trained.calls.anywhere():
        parity = _export(trained, draft / MODEL_FILE)
    manifest = _manifest(run, trained, draft / MODEL_FILE, parity)
    refused: list[Refused] = []
    if variants:
        made, refused = make_variants(draft / MODEL_FILE, variants, *_for_variants(trained), say)
        manifest = manifest.model_copy(update={"variants": made})
    write_manifest(draft, manifest)
    return manifest, refused


def _dropped(target: Path, manifest: Manifest) -> list[VariantName]:
    return [v for v, file in VARIANT_FILES.items() if (target / file).exists() and v not in manifest.variants]


def _put_repository(target: Path, draft: Path, manifest: Manifest, layout: Layout) -> list[VariantName]:
    """Makes Triton's models of ``draft`` and puts them into ``target``; variants that it had before and has no more."""
    made = draft.parent / "repository"
    made.mkdir()
    write_repository(draft, made, "onnxruntime" if layout == "triton" else "python")
    gone = put_in_place(made, target, run=manifest.run)
    return [variant for variant in VARIANT_FILES if f"{repository_name(manifest.run)}_{variant}" in gone]


def _check_target(folder: Path) -> None:
    """Only an earlier export with nothing beside it, or an empty folder, may be replaced."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names and MODEL_FILE not in names:
        raise ExportError(f"{folder} exists and is not an exported model: choose another folder with -o")
    if others := sorted(names - {MODEL_FILE, MANIFEST_FILE, *VARIANT_FILES.values()}):
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
    for exporter in (by_tracing_export, by_torchscript):
        try:
            with quiet():
                exporter(embedder, trained.data.image_size, path)
            return compare(path, trained)
        except ClfError:
            raise
        except Exception as error:  # exporters fail with errors of any type
            failures.append(cause(error))
            path.unlink(missing_ok=True)
    for failure in failures:
        if isinstance(failure, OSError) and failure.errno:  # a full disk; inspect raises OSError too, without a number
            raise failure
    reason = f"{type(failures[0]).__name__}: {' '.join(str(failures[0]).split())[:200]}"
    name = trained.config.backbone.name
    raise ExportError(f"the encoder ({name}) cannot be exported to ONNX: {reason}; another backbone.name may be")


def compare(path: Path, trained: Experiment) -> Parity:
    """Embeddings of the model file against the encoder's, on images of the run in batches of 1, 2, 5 and the rest.

    The encoder goes the trainer's way: clean images of the data source, :func:`clf.evaluate.features.encode`. The
    model goes the server's: for a folder of images the same files through :func:`clf.images.prepare`.

    Raises:
        ExportError: the least cosine is below MIN_COSINE.
    """
    clean, served = _samples(trained)
    ours = F.normalize(encode(trained.method.encoder(), clean), dim=1).numpy()  # (n, D)
    embed = session(path, torch.get_num_threads())
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


def _samples(trained: Experiment) -> tuple[Tensor, NDArray[np.uint8]]:
    """Images from both splits, evenly spaced: as the trainer has them (n, C, S, S), and as a server gets them."""
    data = trained.data
    splits = [data.train, *([data.test] if data.test else [])]
    chosen = [split.rows(_spread(len(split), COMPARED)) for split in splits]
    served = np.concatenate([_served(split, trained) for split in chosen])
    return torch.cat([split.clean[:] for split in chosen]), served


def _for_variants(trained: Experiment) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images to calibrate on and others to compare on: held-out ones, or training images where none are held out."""
    train, test = trained.data.train, trained.data.test
    rows = _spread(len(train), CALIBRATION if test else CALIBRATION + HELD_OUT)
    if test:
        held_out = test.rows(_spread(len(test), HELD_OUT))
    else:
        every = (CALIBRATION + HELD_OUT) // CALIBRATION
        others = torch.arange(len(rows)) % every != 0
        held_out = train.rows(rows[others]) if others.any() else train.rows(rows)
        rows = rows[::every]
    return _served(train.rows(rows), trained), _served(held_out, trained)


def _spread(n: int, most: int) -> Tensor:
    """At most ``most`` of n row numbers, evenly spaced."""
    return torch.linspace(0, n - 1, min(most, n)).long()


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
        dim=session(path, 1)(example(trained.data.image_size).numpy()).shape[1],
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
