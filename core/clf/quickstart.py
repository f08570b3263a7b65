"""``clf quickstart``: the whole way from images to a search page, by the very commands a user would type."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from rich.console import Console

from clf.errors import missing_extra
from clf.extras import EXTRA_OF

SETTINGS = (
    "data.name=shapes",
    "backbone.name=test_resnet",
    "backbone.stem=original",
    "train.epochs=8",
    "train.batch_size=64",
    "optimizer.lr=6e-3",
    "optimizer.weight_decay=0.01",
    "schedule.warmup_epochs=0.2",
    "method.temperature=0.4",
    "augment.crop_area=[0.5, 1]",
    "augment.jitter=1",
    "augment.brightness=0.3",
    "augment.contrast=0.3",
    "augment.saturation=0.8",
    "augment.hue=0.5",
    "augment.grayscale=0.7",
    *("monitor.knn_every=2", "monitor.max_images=1000"),
)
"""A good encoder of the embedded images in two minutes on two cores: colour is a matter of chance there, so the views
lose most of it, and small batches give many steps."""

TORCH_FREE = ("index", "search", "serve")
DEFAULT_PORT = 8000
QUERIES = 3
console = Console()


class StepFailed(SystemExit):
    """A command of the quickstart failed and has said why; its exit code is passed on."""


def quickstart(serve: bool = True, port: int | None = None, runs_dir: Path = Path("runs")) -> None:
    """Trains, evaluates, exports, indexes, searches, reports and serves, on the embedded image set.

    Args:
        serve: start the search page at the end.
        port: of the search page; the server's default otherwise.

    Raises:
        MissingExtraError: a package that a later step needs is absent; nothing has been done then.
        StepFailed: a step failed.
    """
    _check_packages()
    run = _free_run(runs_dir)
    model, gallery, images = run / "model", run / "gallery", run / "images"
    _say("Train an encoder with SimCLR on images that have no labels as far as training is concerned")
    _clf("train", "--plugin", "simclr", *SETTINGS, f"run.dir={runs_dir}", f"run.name={run.name}")
    _say("Measure it: does the nearest neighbour show the same thing? Raw pixels and an untrained encoder beside it")
    _clf("evaluate", str(run))
    _say("Export the encoder to ONNX; refused unless it gives the trainer's own embeddings")
    _clf("export", str(run))
    _say("Index a folder of images and search it for images that were never in it")
    queries = write_images(run, images)
    _clf("index", str(model), str(images / "gallery"), "-o", str(gallery), "--batch-size", "256")
    for query in queries:
        _clf("search", str(gallery), str(query), "-k", "5")
    _say("Write the report")
    _clf("report", str(run))
    _say(f"Done. Look at {run / 'report.html'}")
    if port is None and _port_is_taken(DEFAULT_PORT):
        port = 0  # any free one
    options = ["--port", str(port)] if port is not None else []
    command = ["serve", str(model), "--gallery", str(gallery), *options]
    if serve:
        _say("Serve the search page; Ctrl-C ends it")
        _clf(*command)
    else:
        console.print(f"The search page: {_line(command)}", markup=False, highlight=False, soft_wrap=True)


def write_images(run: Path, folder: Path) -> list[Path]:
    """A run's images as PNG files: ``gallery/CLASS/N.png`` from the training part, and some queries from the rest.

    Returns:
        The queries, of different classes.
    """
    from PIL import Image

    from clf.data import load_source
    from clf.runs import Run

    config = Run(run).config()
    data = load_source(config.data, config.seed)
    assert data.test is not None and data.test.labels is not None and data.train.labels is not None
    names = data.class_names or ()
    for i, (image, label) in enumerate(zip(data.train.clean[:], data.train.labels, strict=True)):
        path = folder / "gallery" / names[int(label)] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    queries: dict[int, Path] = {}
    for image, label in zip(data.test.clean[:], data.test.labels, strict=True):
        if len(queries) == QUERIES:
            break
        if int(label) not in queries:
            path = folder / "queries" / f"{names[int(label)]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
            queries[int(label)] = path
    return list(queries.values())


def _check_packages() -> None:
    for package, extra in EXTRA_OF.items():
        named = extra in ("train", "serve") and package not in ("multipart", "python_multipart")
        if named and find_spec(package) is None:
            raise missing_extra(package, "all", "the quickstart")


def _free_run(runs_dir: Path) -> Path:
    """``runs/quickstart``, or the first of ``quickstart-2`` ... that does not exist."""
    first = runs_dir / "quickstart"
    numbered = (runs_dir / f"quickstart-{number}" for number in count(2))
    return first if not first.exists() else next(path for path in numbered if not path.exists())


def _clf(*words: str) -> None:
    """Runs a command here, because importing torch takes seconds, or in a process of its own without torch."""
    console.print(f"$ {_line(list(words))}", style="bold", markup=False, highlight=False, soft_wrap=True)
    if words[0] in TORCH_FREE:
        code = _wait(subprocess.Popen([sys.executable, "-m", "clf", *words]))
        if code:
            raise StepFailed(code if code > 0 else 128 - code)
        return
    from clf.cli import main

    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code; Ctrl-C reaches the process too, which is left to end in its own time."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _line(words: list[str]) -> str:
    return "clf " + shlex.join(words)


def _say(text: str) -> None:
    console.print(f"\n{text}", style="cyan", markup=False, highlight=False, soft_wrap=True)
