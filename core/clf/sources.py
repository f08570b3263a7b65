"""The built-in data sources by name. Knowing them needs no torch; :mod:`clf.data` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
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
)
"""The place of each source's function, imported when the source is asked for."""
