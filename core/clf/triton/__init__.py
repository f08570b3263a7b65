"""A model repository for NVIDIA's Triton Inference Server, made of an exported model.

For a model NAME, and for each of its variants NAME_fp16 and NAME_int8, clients have

- ``NAME``: ``images``, UINT8 (n, S, S, 3), pixels prepared as in training, to ``embeddings``, FP32 (n, D);
- ``NAME_encoded``: ``encoded``, BYTES (n), files of images, to the same ``embeddings``,

which are the tensors that ``clf serve`` has below ``/v2``. The second is an ensemble of ``NAME_decode``, a model of
Triton's Python backend around copies of this package's own modules, so that pixels are those of training, and of the
first.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import PIL

from clf.errors import ExportError
from clf.manifest import MANIFEST_FILE, MODEL_FILE, VARIANTS, Manifest, read_manifest
from clf.triton.configs import decoding, embedding, ensemble

Backend: TypeAlias = Literal["onnxruntime", "python"]
"""Who runs the graph: Triton's own backend, or onnxruntime inside its Python backend, on the CPU."""

_FILES = {"1", "config.pbtxt", MANIFEST_FILE, "requirements.txt"}
_HERE = Path(__file__).parent
_NEEDED = {
    "decoding.py": ("__init__.py", "errors.py", "colours.py", "images.py"),
    "embedding.py": ("__init__.py", "errors.py", "onnx_session.py"),
}
"""Modules of this package that a model of the Python backend takes along."""


@dataclass(frozen=True)
class _Graph:
    """One graph of an exported model, and the most images of one batch that it may run."""

    name: str
    file: str
    most: int


def repository_name(text: str) -> str:
    """A model's name as folders and URLs of Triton can have it.

    >>> repository_name("bees & ants, 2nd")
    'bees_ants_2nd'
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.-") or "encoder"


def write_repository(model: Path, folder: Path, backend: Backend, *, most: int = 256) -> list[str]:
    """Writes the models of ``model``, a folder of ``clf export``, into a new folder; their names.

    Args:
        most: images of a batch, and of a request for pixels.

    Raises:
        ModelError: ``model`` is damaged.
        OSError: it cannot be written.
    """
    manifest = read_manifest(model)
    name = repository_name(manifest.name)
    graphs = [_Graph(name, MODEL_FILE, most)]
    for variant, about in manifest.variants.items():
        # ranges of a dynamic variant are those of the whole batch: an image must be alone in it
        graphs.append(_Graph(f"{name}_{variant}", about.file, 1 if about.method == "dynamic" else most))
    decoder = f"{name}_decode"
    _python_model(folder / decoder, "decoding.py", f"pillow=={PIL.__version__}")
    _config(folder / decoder, manifest, decoding(decoder, manifest.image_size))
    for graph in graphs:
        own = folder / graph.name
        if backend == "python":
            _python_model(own, "embedding.py", "onnxruntime")
        else:
            (own / "1").mkdir(parents=True)
        shutil.copyfile(model / graph.file, own / "1" / "model.onnx")
        shutil.copyfile(model / MANIFEST_FILE, own / MANIFEST_FILE)
        _config(own, manifest, embedding(graph.name, manifest, backend, graph.most))
        whole = folder / f"{graph.name}_encoded"
        (whole / "1").mkdir(parents=True)  # of an ensemble Triton wants a version too, with nothing in it
        (whole / "1" / ".keep").touch()  # for what copies files and no folders, as object stores do
        _config(whole, manifest, ensemble(whole.name, decoder, graph.name, manifest))
    return sorted(path.name for path in folder.iterdir())


def check_repository(folder: Path, run: str) -> None:
    """A repository may hold models of others, but what would be replaced must come from an earlier export of this run.

    Raises:
        ExportError: something else has one of its names, or was put among its files.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a model repository: choose another folder with -o")
    if (folder / MODEL_FILE).exists():
        raise ExportError(f"{folder} is an exported model, not a model repository: choose another folder with -o")
    for name in _names(run):
        there = folder / name
        if not there.exists():
            continue
        if not _of_run(there, run):
            raise ExportError(
                f"{there} exists and is not an export of the run {run}: "
                "move it elsewhere or choose another folder with -o"
            )
        if others := sorted({path.name for path in there.iterdir()} - _FILES):
            raise ExportError(
                f"{there} holds more than an export ({others[0]}), which another would delete: "
                "move it elsewhere or choose another folder with -o"
            )


def put_in_place(draft: Path, folder: Path, run: str) -> list[str]:
    """The models of ``draft`` become those of ``folder``; names of earlier ones that are not made again.

    Both are on one file system. Whatever goes wrong, what was there before is put back.
    """
    if not folder.exists():
        draft.rename(folder)
        return []
    new = sorted((path.name for path in draft.iterdir()), key=lambda name: name.endswith("_encoded"))  # after its parts
    old = [name for name in _names(run) if (folder / name).exists()]
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    moves = [(folder / name, aside / name) for name in old] + [(draft / name, folder / name) for name in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if not source.exists():
                target.rename(source)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return sorted(set(old) - set(new))


def _names(run: str) -> list[str]:
    """Of all models that an export of a run may write."""
    name = repository_name(run)
    graphs = [name, *(f"{name}_{variant}" for variant in VARIANTS)]
    return [*graphs, *(f"{graph}_encoded" for graph in graphs), f"{name}_decode"]


def _python_model(folder: Path, program: str, requirement: str) -> None:
    package = folder / "1" / "clf"
    package.mkdir(parents=True)
    shutil.copyfile(_HERE / program, folder / "1" / "model.py")
    for module in _NEEDED[program]:
        shutil.copyfile(_HERE.parent / module, package / module)
    (folder / "requirements.txt").write_text(f"numpy\n{requirement}\n")


def _config(folder: Path, manifest: Manifest, text: str) -> None:
    (folder / "config.pbtxt").write_text(f"{_mark(manifest.run)}\n{text}")


def _mark(run: str) -> str:
    return f"# Written by clf export from the run {json.dumps(run)}."


def _of_run(folder: Path, run: str) -> bool:
    try:
        return (folder / "config.pbtxt").read_text().startswith(_mark(run) + "\n")
    except (OSError, UnicodeDecodeError):
        return False
