"""A plugin from outside: scaffolded, built as a wheel, installed by pip into another environment, used there, removed.

Fresh here: the virtual environment (without pip, made for this test), the plugin's package, its wheel and its
installation, the working folder, and every process. Nothing of the plugin is importable by the tests themselves.

Not fresh: clf and what it depends on. They are not installed anew but lent, by one ``.pth`` file in the new
environment that names the folders where the environment of the tests finds them (the source roots too, where clf is
installed as editable). So whether clf's own requirements are complete is not shown here. Nothing is downloaded: the
build runs hatchling of this environment, without isolation, and pip has no index.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clf.catalogue import list_plugins
from clf.runs import Run
from clf.scaffold import create

pytestmark = pytest.mark.slow

NAME = "from_outside"
SETTINGS = (
    *("data.image_size=16", "data.options.train_images=96", "data.options.test_images=32"),
    *("backbone.name=test_resnet", "train.batch_size=16", "train.max_steps=60", "train.checkpoint_every=1"),
    *("train.threads=1", "train.device=cpu", "monitor.knn_every=0", "run.dir=runs"),
)


@dataclass(frozen=True)
class Outside:
    """A virtual environment and a working folder of its own."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def start(self, *words: str) -> subprocess.Popen[str]:
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CLF_DISABLE_PLUGINS"}
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        environment = {**kept, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder / "cache")}
        return subprocess.Popen(
            [self.python, "-m", "clf", *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def clf(self, *words: str, code: int = 0) -> str:
        """What a command prints, on standard error where it is to fail."""
        child = self.start(*words)
        out, err = child.communicate(timeout=240)
        assert child.returncode == code, (words, out, err)
        assert "Traceback" not in err
        return err if code else out

    def pip(self, *words: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, *words, "--disable-pip-version-check"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=240)


def lent_folders() -> list[str]:
    """Where a fresh interpreter of this environment finds packages, and where it finds clf."""
    told = "import json, sys, sysconfig; print(json.dumps([sys.path, sysconfig.get_path('stdlib')]))"
    done = subprocess.run([sys.executable, "-I", "-c", told], check=True, capture_output=True, text=True)
    paths, standard = json.loads(done.stdout)
    own = [path for path in paths if os.path.isdir(path) and not path.startswith(standard)]  # noqa: PTH112
    site = [path for path in paths if path.endswith(("site-packages", "dist-packages"))]
    modules = ["clf", "clf_serve", *(row.value for row in list_plugins() if row.builtin)]
    origins = [spec.origin for spec in map(find_spec, modules) if spec is not None and spec.origin is not None]
    return list(dict.fromkeys([*own, *site, *(str(Path(origin).parent.parent) for origin in origins)]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scaffolded package, built."""
    folder = create(NAME, tmp_path_factory.mktemp("source")).folder
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, timeout=120)
    (found,) = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """An environment with the plugin installed."""
    return environment(tmp_path_factory.mktemp("outside"), wheel)


def environment(folder: Path, wheel: Path) -> Outside:
    made = Outside(folder)
    venv = [sys.executable, "-m", "venv", "--without-pip", str(made.folder / "venv")]
    subprocess.run(venv, check=True, capture_output=True, timeout=120)
    (packages,) = (made.folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text("\n".join(lent_folders()) + "\n")
    made.pip("install", "--no-index", "--no-deps", str(wheel))
    return made


@pytest.fixture(scope="module")
def run(outside: Outside) -> Path:
    """A run that was left alone."""
    outside.clf("train", "--plugin", NAME, *SETTINGS, "run.name=alone")
    return outside.folder / "runs" / "alone"


@pytest.fixture(scope="module")
def gallery(outside: Outside, run: Path) -> Path:
    """Twelve pictures, indexed with the exported encoder."""
    photos = _pictures(outside.folder / "photos", 12)
    outside.clf("export", str(run), "-o", "model")
    outside.clf("index", "model", str(photos), "-o", "gallery", "--provider", "cpu")
    return outside.folder / "gallery"


def test_clfs_own_wheel_has_the_templates(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=240)
    (found,) = tmp_path.iterdir()
    with zipfile.ZipFile(found) as archive:
        names = {name for name in archive.namelist() if name.startswith("clf/templates/plugin/")}
    folder = root / "core"
    here = {path.relative_to(folder).as_posix() for path in folder.glob("clf/templates/plugin/**/*") if path.is_file()}
    assert names == here
    assert len(here) == 16


def test_the_wheel_has_the_package_its_licence_and_its_requirement(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        text = archive.read(metadata).decode()
    info = metadata.partition("/")[0]
    assert names == {
        f"clf_{NAME}/__init__.py",
        f"clf_{NAME}/py.typed",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")),
    }
    (needs,) = [line for line in text.splitlines() if line.startswith("Requires-Dist: clf-vision")]
    assert "[train]" in needs and "<0." in needs and ">=0." in needs
    assert "License-Expression: MIT" in text


def test_it_is_listed_and_shown_without_being_known_here(outside: Outside) -> None:
    assert find_spec(f"clf_{NAME}") is None
    rows = json.loads(outside.clf("plugins", "list", "--json"))
    (row,) = [row for row in rows if row["name"] == NAME]
    assert (row["state"], row["distribution"], row["version"]) == ("available", f"clf-{NAME}", "0.1.0")
    shown = outside.clf("plugins", "show", NAME)
    assert "temperature" in shown and "projection_dim" in shown and f"--plugin {NAME}" in shown


def test_a_run_that_is_killed_and_resumed_has_the_bits_of_one_left_alone(outside: Outside, run: Path) -> None:
    from clf.verify.compare import differences, end_of

    _kill_in_the_middle(outside)
    outside.clf("train", "--resume", "runs/killed")
    alone, killed = end_of(Run(run)), end_of(Run(outside.folder / "runs" / "killed"))
    assert differences(alone, killed, ("left alone", "killed")) == []
    assert alone.state_sha256 == killed.state_sha256
    assert alone.records_sha256 == killed.records_sha256


def test_it_is_evaluated_beside_what_needs_no_training(outside: Outside, run: Path) -> None:
    measured = json.loads(outside.clf("evaluate", str(run), "--json"))["representations"]
    assert [row["name"] for row in measured] == ["raw pixels", "random encoder", "trained encoder"]


def test_its_encoder_finds_a_picture_in_a_folder(outside: Outside, gallery: Path) -> None:
    assert _first_found(outside, gallery) == "7.png"


def test_what_is_said_and_what_goes_on_when_it_is_uninstalled(
    wheel: Path, run: Path, gallery: Path, tmp_path: Path
) -> None:
    """In an environment of its own, so that the order of these tests does not matter."""
    other = environment(tmp_path, wheel)
    assert NAME in other.clf("plugins", "list")
    other.pip("uninstall", "--yes", f"clf-{NAME}")
    assert NAME not in other.clf("plugins", "list")
    for words in (["train", "--plugin", NAME], ["train", "--resume", str(run)]):
        assert f"{NAME!r}" in other.clf(*words, code=2)
    assert _first_found(other, gallery) == "7.png", "an exported model needs no plugin"


def _kill_in_the_middle(outside: Outside) -> None:
    """SIGKILL once there is a checkpoint besides the first."""
    child = outside.start("train", "--plugin", NAME, *SETTINGS, "run.name=killed")
    folder, limit = outside.folder / "runs" / "killed" / "checkpoints", time.monotonic() + 200
    while not any("000000000" not in path.name for path in folder.glob("step-*.pt")):
        assert child.poll() is None and time.monotonic() < limit, child.communicate()
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    killed = Run(outside.folder / "runs" / "killed")
    steps = [record["step"] for record in killed.metrics()]
    assert not steps or max(steps) < 60


def _pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return folder


def _first_found(outside: Outside, gallery: Path) -> str:
    picture = gallery.parent / "photos" / "7.png"
    told = json.loads(outside.clf("search", str(gallery), str(picture), "--json", "--provider", "cpu"))
    return Path(told["hits"][0]["uri"]).name
