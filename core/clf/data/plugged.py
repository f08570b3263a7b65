"""Data sources of plugins: run under guard, and what they return checked before anything relies on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clf import foreign, offered, plugins
from clf.config import DataSection
from clf.data import load_source, source_names
from clf.data.source import DataSource, Images, Progress, Split
from clf.errors import ClfError, ConfigError, DataError, PluginError, did_you_mean
from clf.offered import Offered


def load(section: DataSection, seed: int, progress: Progress | None = None) -> DataSource:
    """Reads a data set: a built-in one, or a source of a plugin or of a file.

    Raises:
        ConfigError: there is no such source, or its options are wrong.
        DataError: its data are missing, empty or unreadable.
        PluginError: the plugin cannot be used, or its source is at fault.
    """
    if section.name in source_names():
        return load_source(section, seed, progress=progress)
    name, _ = offered.split(section.name)
    installed = [row.name for row in plugins.list_plugins()]
    if name not in installed and not plugins.is_path(name):
        names = source_names()
        hint = did_you_mean(section.name, [*names, *installed])
        raise ConfigError(
            f"data.name {section.name!r} is no data source; there are {', '.join(names)}, those of plugins as PLUGIN "
            f"or PLUGIN:SOURCE, and ./file.py.{hint}"
        )
    source, what = offered.data_source(section.name)
    try:
        with foreign.off_standard_output():
            found = source(section, seed, progress)
    except ClfError:
        raise
    except (Exception, SystemExit) as error:
        what.tell_traceback(error)
        kind = DataError if isinstance(error, OSError) else PluginError
        raise kind(
            f"{what.failed(error, 'to read its data')}. Its settings: data.root={section.root}, "
            f"data.options={section.options}"
        ) from error
    check(found, what)
    return found


def check(found: object, what: Offered) -> None:
    """Refuses what is no data set that training and evaluation can rely on.

    Raises:
        PluginError: it is none, and which part of it is wrong.
    """

    def wrong(reason: str) -> PluginError:
        return PluginError(f"{what} returned {reason}. clf.data.from_arrays makes a right one of arrays")

    if not isinstance(found, DataSource):
        raise wrong(f"a {type(found).__name__}, not a clf.data.DataSource")
    if not isinstance(found.name, str) or not found.name:
        raise wrong("a data set without a name")
    if not isinstance(found.fingerprint, str) or not found.fingerprint:
        raise wrong("a data set without a fingerprint, by which a resumed run knows its data again")
    if found.channels not in (1, 3):
        raise wrong(f"images of {found.channels} channels; they must have 1 or 3")
    for name, split in (("train", found.train), ("test", found.test)):
        if split is None and name == "test":
            continue
        if not isinstance(split, Split):
            raise wrong(f"{name} = a {type(split).__name__}, not a clf.data.Split")
        _check_split(name, split, found, wrong)


def _check_split(name: str, split: Split, found: DataSource, wrong: Callable[[str], PluginError]) -> None:
    side, channels = found.image_size, found.channels
    for part, images in (("images", split.images), ("clean", split.clean)):
        shape, dtype = _form(images)
        if dtype != torch.uint8 or len(shape) != 4 or shape[1] != channels:
            raise wrong(f"{name}.{part} of {dtype} {shape}; they must be uint8 (n, {channels}, H, W)")
        if part == "clean" and shape[2:] != (side, side):
            raise wrong(f"{name}.clean of {shape[2]} x {shape[3]} pixels; image_size is {side}")
    n = len(split.images)
    if n == 0:
        raise wrong(f"{name} without images")
    if len(split.clean) != n:
        raise wrong(f"{len(split.clean)} clean images for {n} {name} images")
    if split.names is not None and len(split.names) != n:
        raise wrong(f"{len(split.names)} names for {n} {name} images")
    if split.labels is not None:
        _check_labels(name, split.labels, n, found.class_names, wrong)


def _check_labels(
    name: str, labels: object, n: int, classes: tuple[str, ...] | None, wrong: Callable[[str], PluginError]
) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        form = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise wrong(f"{name}.labels as {form}; they must be an int64 tensor (n,)")
    if len(labels) != n:
        raise wrong(f"{len(labels)} labels for {n} {name} images")
    if classes is not None and int(labels.max()) >= len(classes):
        raise wrong(f"the {name} label {int(labels.max())} and {len(classes)} class_names")


def _form(images: Images) -> tuple[tuple[int, ...], torch.dtype | str]:
    """Shape and type, of a table by its first image."""
    if isinstance(images, Tensor):
        return tuple(images.shape), images.dtype
    shape = tuple(getattr(images, "shape", ()))
    if not shape or not shape[0]:
        return shape, torch.uint8 if shape else f"a {type(images).__name__}"
    first = images[:1]
    if not isinstance(first, Tensor):
        return shape, f"a table of {type(first).__name__}"
    return (shape[0], *first.shape[1:]), first.dtype
