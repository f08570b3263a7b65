"""The source of a single-file plugin, kept in the folder of each run that is trained with it.

A run goes on with this copy, and is evaluated, exported and reported with it, whatever becomes of the user's file. The
manifest's ``plugin_source`` tells its name (``kept``), its SHA-256, and where the user's file was (``path``).

The copy is code, and the digest beside it guards against accidents, not against whoever wrote the folder: to open the
run of a stranger is to run the stranger's program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf import runs, single
from clf.config import Config
from clf.errors import RunError
from clf.manifest import sha256_file
from clf.runs import Run
from clf.single import Source

FOLDER = "plugin"


def keep(run: Run, source: Source) -> None:
    """Writes the copy, whole or not at all.

    Raises:
        RunError: it cannot be written, for instance because the disk is full.
    """
    folder = run.path / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise runs.unwritable(folder, error) from error
    runs.replace_bytes(folder / source.path.name, source.content)


def description(source: Source) -> dict[str, str]:
    """What the manifest says of the plugin of a run."""
    return {
        "file": source.path.name,
        "path": str(source.path.absolute()),
        "kept": f"{FOLDER}/{source.path.name}",
        "sha256": source.sha256,
    }


def plugin_of(run: Run, config: Config | None = None) -> str:
    """What a run's method is loaded from: the name of an installed plugin, or the path of the kept file.

    Of a run from before files were kept it is the user's own file.

    Args:
        config: the run's, when the caller has it already.

    Raises:
        RunError: the kept file is missing, or is not what the run was trained with.
    """
    name = (config or run.config()).plugin
    told = source_of(run) if single.is_path(name) else {}
    if "kept" not in told:
        return name
    copy = _copy(run, told)
    found = _digest(copy)
    if found is None or found != told.get("sha256"):
        state = "is missing" if found is None else "was changed since"
        raise RunError(
            f"the source that run {run.name!r} was trained with, {copy}, {state} (SHA-256 "
            f"{str(told.get('sha256'))[:12]} in manifest.json{f', {found[:12]} now' if found else ''}), and no other "
            f"code may stand for it: {_remedy(told, copy)}"
        )
    return str(copy)


def word_of(run: Run) -> str:
    """What to give to ``--plugin`` here and now, to train with the source of a run.

    Raises:
        RunError: as :func:`plugin_of` does.
    """
    name = run.config().plugin
    if not single.is_path(name):
        return name
    path = Path(name).expanduser()
    if _digest(path) == source_of(run).get("sha256"):
        return name
    return plugin_of(run)


def notice(run: Run) -> str | None:
    """A sentence for the person whose file is no longer what the run was trained with; None where there is no need."""
    told = source_of(run) if single.is_path(run.config().plugin) else {}
    if "kept" not in told or "path" not in told:
        return None
    path = Path(str(told["path"]))
    found = _digest(path)
    if found == told.get("sha256"):
        return None
    state = "has changed" if found else "is gone"
    rest = "; train a new run for the edited file" if found else ""
    return (
        f"{path} {state} since run {run.name!r} was trained with it: the run goes on with the source it was trained "
        f"with, kept in {_copy(run, told)}{rest}"
    )


def is_plugin_of(run: Run, name: str) -> bool:
    """Whether a name or path means the plugin that the run was trained with, however the path is spelt."""
    own = run.config().plugin
    if name == own or not (single.is_path(name) and single.is_path(own)):
        return name == own
    told = source_of(run)
    places = {Path(str(told["path"]))} if "path" in told else set()
    if "kept" in told:
        places.add(_copy(run, told).absolute())
    return Path(name).expanduser().resolve() in {place.resolve() for place in places}


def source_of(run: Run) -> Mapping[str, Any]:
    """What the manifest says of the plugin's source; nothing in an old or damaged one."""
    told = run.manifest().get("plugin_source", {})
    return told if isinstance(told, dict) else {}


def _copy(run: Run, told: Mapping[str, Any]) -> Path:
    return run.path / FOLDER / Path(str(told["kept"])).name


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none that can be read."""
    try:
        return sha256_file(path) if path.is_file() else None
    except OSError:
        return None


def _remedy(told: Mapping[str, Any], copy: Path) -> str:
    path = Path(str(told.get("path", "")))
    if _digest(path) == told.get("sha256"):
        return f"{path} still is that source, so copy it to {copy}"
    return "put that file back, or train a new run"
