"""Data sources: from ``data.*`` settings to images, split for training and evaluation.

A source is a function of ``(section, seed, progress)`` that returns a :class:`DataSource`. One of a plugin reads its
own settings with :func:`read_options` and :func:`required_root`, and hands what it has read to :func:`from_arrays`, or
to :func:`from_table` where the images are too many for the memory::

    def birds(section, seed, progress):
        read_options(section, {})
        images = numpy.load(required_root(section, "the .npy file"))  # (n, C, H, W) uint8
        return from_arrays(section, seed, (images, None))

The same settings must give the same data set, whatever the seed is, but for the images that ``data.limit`` takes.
Built-in sources are listed in :mod:`clf.sources` and imported when asked for; further ones, from plugins, are passed in
by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from clf.config import DataSection
from clf.data.source import (
    DataSource,
    Images,
    ImageTable,
    Progress,
    Skipped,
    Source,
    Split,
    from_arrays,
    read_options,
    required_root,
)
from clf.data.tables import from_table
from clf.errors import ConfigError, did_you_mean
from clf.sources import BUILT_IN

__all__ = [
    "DataSection",
    "DataSource",
    "ImageTable",
    "Images",
    "Progress",
    "Skipped",
    "Source",
    "Split",
    "from_arrays",
    "from_table",
    "read_options",
    "required_root",
]


def source_names(extra: Mapping[str, Source] | None = None) -> list[str]:
    """Every value that ``data.name`` may take."""
    return [*BUILT_IN, *(extra or {})]


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
    if section.name in BUILT_IN:
        module, _, function = BUILT_IN[section.name].partition(":")
        source = cast(Source, getattr(import_module(module), function))
    elif extra and section.name in extra:
        source = extra[section.name]
    else:
        names = source_names(extra)
        hint = did_you_mean(section.name, names)
        raise ConfigError(f"data.name {section.name!r} is no data source; there are {', '.join(names)}.{hint}")
    return source(section, seed, progress)
