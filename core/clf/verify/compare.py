"""Two runs compared: bit by bit, or by the largest relative difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clf import checkpoint
from clf.runs import CLOCK, Run

Path = tuple[Any, ...]


@dataclass(frozen=True)
class End:
    """How a run ended: the state in its newest checkpoint, and its records without the clock."""

    state: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def state_sha256(self) -> str:
        """Of weights, buffers, optimizers, window and counters; the clock is left out."""
        digest = hashlib.sha256()
        for path, leaf in _leaves(self.state):
            digest.update(repr(path).encode())
            digest.update(_bytes(leaf))
        return digest.hexdigest()

    @property
    def records_sha256(self) -> str:
        return hashlib.sha256("\n".join(map(json.dumps, self.records)).encode()).hexdigest()


def end_of(run: Run) -> End:
    """Raises CheckpointError when the run has no good checkpoint."""
    state, _ = checkpoint.load_newest(run.checkpoints)
    state.pop("seconds")
    records = [{key: value for key, value in record.items() if key not in CLOCK} for record in run.metrics()]
    return End(state, records)


def differences(one: End, other: End, names: tuple[str, str], tolerance: float = 0.0) -> list[str]:
    """What differs by more than a relative tolerance, the earliest first; each a sentence."""
    found = [*_record_differences(one, other, names, tolerance), *_state_differences(one, other, names, tolerance)]
    return [sentence for sentence in found if sentence]


def largest_difference(one: End, other: End) -> tuple[float, float]:
    """Of the state and of the records: differences by max(1, the largest value in the tensor)."""
    a, b = dict(_leaves(one.state)), dict(_leaves(other.state))
    states = [_relative(a[path], b[path]) for path in a.keys() & b.keys()]
    records = [
        _relative(x[key], y[key])
        for x, y in zip(one.records, other.records, strict=False)
        for key in x.keys() & y.keys()
    ]
    return max(states, default=0.0), max(records, default=0.0)


def tensor_digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor."""
    return {name: hashlib.sha256(_bytes(tensor)).hexdigest() for name, tensor in state.items()}


def _record_differences(one: End, other: End, names: tuple[str, str], tolerance: float) -> Iterator[str]:
    for a, b in zip(one.records, other.records, strict=False):
        for key in {**a, **b}:
            if key not in a or key not in b or _relative(a[key], b[key]) > tolerance:
                yield (
                    f"Metrics at step {a.get('step')}: {key} is {a.get(key, 'missing')!r} {names[0]} and "
                    f"{b.get(key, 'missing')!r} {names[1]}."
                )
                return
    if len(one.records) != len(other.records):
        yield f"There are {len(one.records)} records {names[0]} and {len(other.records)} {names[1]}."


def _state_differences(one: End, other: End, names: tuple[str, str], tolerance: float) -> Iterator[str]:
    a, b = dict(_leaves(one.state)), dict(_leaves(other.state))
    differing = [p for p in {**a, **b} if p not in a or p not in b or _relative(a[p], b[p]) > tolerance]
    if differing:
        first = differing[0]
        how = f"differs by {_relative(a[first], b[first]):.2g}" if first in a and first in b else "is on one side only"
        yield (
            f"At the end {len(differing)} of {len(a)} values of the state differ {names[0]} and {names[1]}; the first, "
            f"{_words(first, one.state)}, {how}."
        )


def _words(path: Path, state: Mapping[str, Any]) -> str:
    """A place in the state, as a person would say it."""
    if path[0] == "method":
        return f"the weight or buffer {path[1]!r}"
    if path[0] == "optimizers" and path[2] == "state":
        return f"the optimizer state {path[4]!r} of parameter {state['parameters'][path[1]][path[3]]!r}"
    return " / ".join(map(str, path))


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, i))
    else:
        yield path, value


def _bytes(leaf: Any) -> bytes:
    if not isinstance(leaf, Tensor):
        return repr(leaf).encode()
    plain = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{leaf.dtype} {tuple(leaf.shape)}".encode() + plain.numpy().tobytes()


def _relative(a: Any, b: Any) -> float:
    """0 for equal bits; infinite where there is no distance."""
    if _bytes(a) == _bytes(b):
        return 0.0
    if not isinstance(a, (int, float, Tensor)) or not isinstance(b, (int, float, Tensor)):
        return float("inf")
    x, y = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if x.shape != y.shape or not bool(torch.isfinite(x - y).all()):
        return float("inf")
    distance = (x - y).abs().max() / y.abs().max().clamp_min(1)
    return max(float(distance), 5e-324)
