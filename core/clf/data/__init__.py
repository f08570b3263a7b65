"""Data sources: from ``data.*`` settings to images in memory, split for training and evaluation.

A source is a function ``(section, seed, progress) -> DataSource``. Built-in ones are listed below by the place of
their function and imported when asked for; further ones, from plugins, are passed in by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from clf.config import DataSection
from clf.data.source import DataSource, Images, ImageTable, Progress, Skipped, Source, Split, from_arrays
from clf.errors import ConfigError, did_you_mean

__all__ = [
    "DataSource",
    "ImageTable",
    "Images",
    "Progress",
    "Skipped",
    "Source",
    "Split",
    "from_arrays",
    "load_source",
    "source_names",
]

_BUILT_IN = {
    "shapes": "clf.data.shapes:load",
    "digits": "clf.data.arrays:load_digits",
    "npz": "clf.data.arrays:load_npz",
    "folder": "clf.data.folder:load",
    "mnist": "clf.data.vision:load",
    "fashion_mnist": "clf.data.vision:load",
    "cifar10": "clf.data.vision:load",
    "cifar100": "clf.data.vision:load",
    "stl10": "clf.data.vision:load",
}


def source_names(extra: Mapping[str, Source] | None = None) -> list[str]:
    """Every value that ``data.name`` may take."""
    return [*_BUILT_IN, *(extra or {})]


def load_source(
    section: DataSection,
    seed: int,
    *,
    extra: Mapping[str, Source] | None = None,
    progress: Progress | None = None,
) -> DataSource:
    """Reads a data set.

    Args:
        section: the ``data.*`` settings.
        seed: the run's seed; it decides which images ``data.limit`` keeps, and nothing else.
        extra: further sources by name, from plugins; a built-in name is not replaced.
        progress: called with the number of images read so far and in all.

    Raises:
        ConfigError: an unknown source or option, or a missing ``data.root``.
        DataError: the data is missing, empty or unreadable.
    """
    if section.name in _BUILT_IN:
        module, _, function = _BUILT_IN[section.name].partition(":")
        source = cast(Source, getattr(import_module(module), function))
    elif extra and section.name in extra:
        source = extra[section.name]
    else:
        names = source_names(extra)
        hint = did_you_mean(section.name, names)
        raise ConfigError(f"data.name {section.name!r} is no data source; there are {', '.join(names)}.{hint}")
    return source(section, seed, progress)
