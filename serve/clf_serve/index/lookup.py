"""From ids to positions."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clf_serve.index.library import Ids


class Lookup:
    """Where ids lie in an array without repeats, in any order. A table where ids are dense, else a sorted search."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids

    def positions(self, ids: Ids) -> Ids:
        """Of those of ``ids`` that are there, in the order of ``ids``."""
        if not len(self.ids) or not len(ids):
            return np.empty(0, np.int64)
        table = self._table
        if table is not None:
            places = table[ids[(ids >= 0) & (ids < len(table))]].astype(np.int64)
            known: Ids = places[places >= 0]
            return known
        order = self._order
        at = np.searchsorted(self.ids, ids, sorter=order)
        at[at == len(order)] = 0
        found: Ids = order[at]
        there: Ids = found[self.ids[found] == ids]
        return there

    @cached_property
    def _table(self) -> NDArray[np.int32] | None:
        least, most = int(self.ids.min()), int(self.ids.max())
        if least < 0 or most > 4 * len(self.ids) + 1000:
            return None
        table = np.full(most + 1, -1, np.int32)
        table[self.ids] = np.arange(len(self.ids), dtype=np.int32)
        return table

    @cached_property
    def _order(self) -> Ids:
        return np.argsort(self.ids, kind="stable")
