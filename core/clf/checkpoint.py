"""Checkpoints that survive a kill and a full disk: written beside, synced, renamed; read as data, never as code."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clf.errors import CheckpointError

KEEP = 2
"""Good checkpoints that stay; older ones are removed after a newer one is safe."""


class _UnreadableError(CheckpointError):
    """It may be whole, but cannot be read now: no reason to go back to an older one."""


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes ``step-N.pt`` so that at any moment either the old or the new file is whole.

    N counts the steps of a method's preparation too, so that its checkpoints are kept apart.

    Raises:
        CheckpointError: the file cannot be written, for instance because the disk is full. Earlier checkpoints remain.
    """
    path = folder / f"step-{step:09d}.pt"
    temporary = path.with_suffix(".tmp")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(temporary, buffer.getbuffer())
        _rename(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = newest(folder)
        rest = f"the last good one is {kept}" if kept else "there is no earlier one"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({error.strerror}); {rest}. "
            "Free some space, then continue with clf train --resume RUN"
        ) from error
    for old in [*list(paths(folder))[KEEP:], *folder.glob("step-*.tmp")]:
        old.unlink(missing_ok=True)
    return path


def _write(path: Path, content: memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename(temporary: Path, path: Path) -> None:
    temporary.replace(path)


def paths(folder: Path) -> Iterator[Path]:
    """Complete checkpoint files, newest first."""
    return iter(sorted(folder.glob("step-*.pt"), reverse=True))


def newest(folder: Path) -> Path | None:
    return next(paths(folder), None)


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Every byte is checked (the CRC of each record) and only tensors and plain values are accepted.

    Raises:
        CheckpointError: the file is truncated, damaged or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist") from None
    except MemoryError:
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a damaged archive sends its reader to impossible places
            raise CheckpointError(f"checkpoint {path} is damaged ({_brief(error)})") from error
        raise _UnreadableError(
            f"checkpoint {path} cannot be read ({error.strerror}): see to the disk or the permissions, then try again"
        ) from error
    except Exception as error:  # damage surfaces as many types: BadZipFile, EOFError, UnpicklingError, RuntimeError
        raise CheckpointError(f"checkpoint {path} is damaged ({_brief(error)})") from error
    if damaged is not None:
        raise CheckpointError(f"checkpoint {path} is damaged (record {damaged} fails its checksum)")
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of clf")
    return state


def load_newest(folder: Path, *, set_aside: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, and a sentence for each newer one that is not.

    Args:
        set_aside: rename damaged ones to ``*.damaged``, so that they no longer count as checkpoints.

    Raises:
        CheckpointError: there is none.
    """
    complaints: list[str] = []
    damaged: list[Path] = []
    for path in paths(folder):
        try:
            state = load(path)
        except _UnreadableError:
            raise
        except CheckpointError as error:
            complaints.append(f"{error}; an older one is used")
            damaged.append(path)
            continue
        for each in damaged if set_aside else ():
            each.replace(each.with_suffix(".damaged"))
        return state, complaints
    if complaints:
        raise CheckpointError(f"no checkpoint in {folder} can be read: {complaints[0].partition(';')[0]}")
    raise CheckpointError(f"there is no checkpoint in {folder}: the run ended before its first one; start it again")


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
