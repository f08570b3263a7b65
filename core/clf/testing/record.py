"""The last result of the checks, kept among the user's caches so that ``clf plugins show`` can tell it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clf
from clf import plugins
from clf.errors import PluginError
from clf.testing import sources


def folder() -> Path:
    """``$XDG_CACHE_HOME/clf/checks``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - without home it stays
    return Path(base) / "clf" / "checks"


def keep(name_or_path: str, result: Mapping[str, Any]) -> Path | None:
    """Writes a result whole or not at all; ``None`` where the folder cannot be written, or the plugin is
    gone, which is no failure."""
    path = _file(name_or_path)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        content = {**result, "source_sha256": sources.digest(sources.source_files(name_or_path))}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except (OSError, PluginError):
        return None
    return path


def read_last(name_or_path: str) -> dict[str, Any] | None:
    """The last complete result of a plugin, without importing it; ``None`` where there is none to be read.

    Besides what :meth:`clf.testing.Conformance.as_dict` gives, ``outdated`` holds the reasons why it may no longer be
    true: a sentence for each of another version, other source and another clf. Never raises.
    """
    try:
        found = json.loads(_file(name_or_path).read_text(encoding="utf-8"))
        assert isinstance(found, dict) and isinstance(found["outcomes"], list)
        return {**found, "outdated": _outdated(name_or_path, found)}
    except (OSError, ValueError, LookupError, AssertionError):
        return None


def _outdated(name_or_path: str, found: Mapping[str, Any]) -> list[str]:
    try:
        info = sources.info(name_or_path)
        sha256 = sources.digest(sources.source_files(name_or_path))
    except (PluginError, OSError):
        return ["the plugin cannot be used now"]
    reasons = []
    if (info.distribution, info.version) != (found["distribution"], found["version"]):
        reasons.append(f"it was of {found['distribution']} {found['version']}".rstrip())
    elif sha256 != found["source_sha256"]:
        reasons.append("the source has changed since")
    if found["clf_version"] != clf.__version__:
        reasons.append(f"it was with clf-vision {found['clf_version']}")
    return reasons


def _file(name_or_path: str) -> Path:
    if plugins.is_path(name_or_path):
        path = Path(name_or_path).resolve()
        return folder() / f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}.json"
    return folder() / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name_or_path)}.json"
