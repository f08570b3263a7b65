"""Means of scalars between two records."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clf import distributed
from clf.distributed import Ranks
from clf.errors import PluginError

FIELDS = frozenset({"kind", "step", "epoch", "prepared", "lr", "images", "seconds"})
"""Names in a record that are the engine's."""


class Window:
    """Running means of scalars between two records, summed in float64 (on mps, which has none, in float32).

    What is on an accelerator stays there until it is read, so that no step waits for it; all else is a Python float.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """Takes in the scalars of one step.

        Raises:
            PluginError: one of them is not a single number, or has the name of a record's own field.
        """
        for name, value in values.items():
            x = _scalar(name, value)
            self._sums[name] = self._sums[name] + x if name in self._sums else x
            self._counts[name] = self._counts.get(name, 0) + 1

    def finite(self) -> bool:
        """Whether the loss has been finite since the last record; one value that is not spoils the sum."""
        return "loss" not in self._sums or math.isfinite(self._sums["loss"])

    def flush(self, ranks: Ranks) -> dict[str, float]:
        """Means over the window and over ranks; the window is empty afterwards.

        Raises:
            PluginError: the ranks logged different names.
        """
        names = self._names(ranks)
        if not names:
            return {}
        means = torch.stack([self._sum(name, ranks) / self._counts[name] for name in names])
        means = distributed.mean_over_ranks(means, ranks)
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of each rank, (world size,) by name.

        Raises:
            PluginError: the ranks logged different names.
        """
        names = self._names(ranks)
        sums = {name: distributed.every_rank(self._sum(name, ranks).view(1), ranks)[:, 0] for name in names}
        return {"sums": sums, "counts": {name: self._counts[name] for name in names}}

    def restore(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Takes up a rank's own sums; with another number of ranks the mean of all, which has the same mean."""
        sums = state["sums"]
        same = all(len(value) == ranks.world_size for value in sums.values())
        self._sums = {name: float(value[ranks.rank] if same else value.mean()) for name, value in sums.items()}
        self._counts = dict(state["counts"])

    def _sum(self, name: str, ranks: Ranks) -> Tensor:
        """A sum as a float64 tensor, shape (), where ranks can exchange it: on their device, or the CPU beside mps."""
        device = torch.device("cpu") if ranks.device.type == "mps" else ranks.device
        value = self._sums[name]
        if isinstance(value, Tensor):
            return value.to(device).double()
        return torch.full((), value, dtype=torch.float64, device=device)  # filled there, which waits for nothing

    def _names(self, ranks: Ranks) -> list[str]:
        """The names in order. Ranks that log different ones would wait for each other for ever."""
        names = sorted(self._sums)
        if ranks.world_size == 1:
            return names
        key = float(zlib.crc32("\n".join(f"{name} {self._counts[name]}" for name in names).encode()))
        high, low = distributed.largest([key, -key], ranks)
        if high != -low:
            raise PluginError(
                f"the ranks have logged different scalars; rank {ranks.rank} has {', '.join(names) or 'none'}: a "
                "method must log the same names, as often, on every rank"
            )
        return names


def _scalar(name: str, value: float | Tensor) -> float | Tensor:
    """One number: a tensor of shape () on an accelerator, else a float."""
    if name in FIELDS:
        raise PluginError(f"the scalar {name!r} is a field of every record: a method must log it under another name")
    try:
        x = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(
            f"the scalar {name!r} is no number but {type(value).__name__}: log floats or tensors"
        ) from error
    if x.numel() != 1:
        raise PluginError(
            f"the scalar {name!r} has the shape {tuple(x.shape)}: log one number under each name, such as its mean"
        )
    if x.device.type == "cpu":
        return float(x)
    x = x.reshape(())
    return x if x.device.type == "mps" else x.double()
