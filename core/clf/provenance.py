"""Where a run comes from: command, versions, commit, device, data. Every figure is to be traceable to these."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import clf
from clf import kept, offered
from clf.config import Config
from clf.distributed import Ranks
from clf.experiment import Experiment
from clf.plugins import Plugin
from clf.sources import BUILT_IN

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "onnx", "onnxruntime-gpu", "onnxruntime")


def manifest(what: Experiment, ranks: Ranks, callbacks: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """What is known about a run before its first step.

    Args:
        callbacks: the name and the plugin of each callback that is not the engine's own.
    """
    data = what.data
    return {
        **_environment(what.config),
        "plugin_source": plugin_source(what.plugin),
        "device": _device_name(ranks.device),
        "threads": torch.get_num_threads(),
        "world_size": ranks.world_size,
        "callbacks": list(callbacks),
        "parameters": _parameters(what),
        "data": {
            "name": data.name,
            **data_source(what.config.data.name),
            "fingerprint": data.fingerprint,
            "train_images": len(data.train.images),
            "test_images": len(data.test.images) if data.test else 0,
            "split": data.split_note,
            "image_size": data.image_size,
            "channels": data.channels,
            "labelled": data.train.labels is not None,
            "skipped": [{"path": str(item.path), "reason": item.reason} for item in data.skipped],
        },
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


def _parameters(what: Experiment) -> int:
    """Of the encoder."""
    with what.calls("encoder"):
        return sum(p.numel() for p in what.method.encoder().parameters())


def plugin_source(plugin: Plugin | None) -> dict[str, str]:
    """Where a method's code came from."""
    if plugin is None:
        return {}
    if plugin.source is not None:
        return kept.description(plugin.source)
    return {"distribution": plugin.info.distribution, "version": plugin.info.version}


def data_source(name: str) -> dict[str, dict[str, str]]:
    """Where the code of a data source came from that is not clf's own."""
    if name in BUILT_IN:
        return {}
    return {"source": offered.data_source(name)[1].origin()}


def _environment(config: Config) -> dict[str, Any]:
    """Command, versions and commit."""
    return {
        "format": 1,
        "state": "running",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "plugin": config.plugin,
        "seed": config.seed,
        "clf_version": clf.__version__,
        "commit": source_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "wall_seconds": 0.0,
    }


def command_line() -> str:
    """The command as a person would type it again."""
    program = Path(sys.argv[0]).name
    words = ["clf" if program in ("clf", "__main__.py") else program, *sys.argv[1:]]
    return shlex.join(words)


def source_commit() -> str | None:
    """The commit of the source tree that ``clf`` runs from, with ``+`` when it has uncommitted changes."""
    folder = Path(clf.__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
