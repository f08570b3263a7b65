"""Means of scalars between two records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clf import distributed
from clf.distributed import Ranks


class Window:
    """Running means of scalars between two records. Values stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        for name, value in values.items():
            x = torch.as_tensor(value).detach()
            x = x if x.device.type == "mps" else x.double()  # mps has no float64
            self._sums[name] = self._sums[name] + x if name in self._sums else x
            self._counts[name] = self._counts.get(name, 0) + 1

    def finite(self) -> bool:
        """Whether the loss has been finite since the last record; one value that is not spoils the sum."""
        return "loss" not in self._sums or math.isfinite(self._sums["loss"].item())

    def flush(self, ranks: Ranks) -> dict[str, float]:
        """Means over the window and over ranks; the window is empty afterwards."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name].to(ranks.device) / self._counts[name] for name in names])
        means = distributed.mean_over_ranks(means, ranks)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint keeps: sums as means over ranks, so that any rank may take them up."""
        names = sorted(self._sums)
        sums = {name: distributed.mean_over_ranks(self._sums[name].to(ranks.device), ranks) for name in names}
        return {"sums": sums, "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
