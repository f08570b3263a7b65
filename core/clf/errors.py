"""Every error a user can cause, and nothing else.

    ClfError
    ├── ConfigError        a key, a value, a configuration file
    ├── PluginError        a plugin that is unknown, broken, incompatible or in conflict, or fails
    ├── DataError          a data source: missing, empty, too small, unreadable
    ├── ImageError         one image that cannot be used
    ├── RunError           a run folder: missing, damaged, of another configuration
    │   └── CheckpointError
    ├── TrainingError      training cannot go on: the loss is not finite
    ├── ExportError        the exported model does not agree with the encoder
    ├── ModelError         an exported model folder that cannot be served
    ├── GalleryError       a gallery that is missing, locked, damaged or of another model
    ├── ServeError         the server cannot start
    └── MissingExtraError  a command needs packages that are not installed

Each message names the thing, the place and the remedy. The command line prints it in one paragraph and exits with
code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 500
"""Characters of another library's message that are told."""


class ClfError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(ClfError):
    """A configuration key or value is unknown, mistyped or out of range."""


class PluginError(ClfError):
    """A plugin is unknown, broken, incompatible or in conflict, or failed at its work."""

    details: str = ""
    """The traceback in the plugin's own code, for its author; the command line prints it before the message."""


class DataError(ClfError):
    """A data source is missing, empty, too small or unreadable."""


class ImageError(ClfError):
    """One image cannot be used: corrupt, truncated, too large, of an unknown format."""


class RunError(ClfError):
    """A run folder is missing, damaged or belongs to another configuration."""


class CheckpointError(RunError):
    """A checkpoint cannot be written or read."""


class TrainingError(ClfError):
    """Training cannot go on."""


class ExportError(ClfError):
    """The exported model could not be made or does not agree with the encoder."""


class ModelError(ClfError):
    """An exported model folder cannot be served."""


class GalleryError(ClfError):
    """A gallery is missing, locked, damaged or was made with another model."""


class ServeError(ClfError):
    """The server cannot start."""


class MissingExtraError(ClfError):
    """A command needs packages that are not installed."""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional package that is absent.

    >>> str(missing_extra("torch", "train", "training"))
    "training needs the package 'torch', which is not installed: pip install 'clf-vision[train]'"
    """
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed: pip install 'clf-vision[{extra}]'"
    )


def in_one_line(error: BaseException) -> str:
    """What an exception says, cut where it is long; empty for one that says nothing or cannot say it."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # somebody else's __str__
        text = ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'simclr'?"``, or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
