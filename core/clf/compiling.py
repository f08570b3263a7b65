"""torch.compile where it works: whether it can, and whether whole or block by block."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from clf.errors import ConfigError

_C = ("C", "CC", ("cc", "gcc", "clang"))
_CPP = ("C++", "CXX", ("c++", "g++", "clang++", "cl"))


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work for a device here; None when nothing is known to be in its way.

    It writes C++ for the CPU and Triton for CUDA, and both need a compiler on this machine.
    """
    if device.type not in ("cpu", "cuda"):
        return f"torch.compile does not serve {device.type}"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    language, variable, names = _C if device.type == "cuda" else _CPP
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([named] if named else names)):
        return f"there is no {language} compiler ({named or ', '.join(names)})"
    return None


def wanted(setting: str, device: torch.device) -> bool:
    """Whether to compile, from ``train.compile``.

    auto means yes on CUDA where it can work. On a CPU it is no: there channels-last convolutions alone were as fast
    as the compiled ones for the small residual networks measured (0.97 to 1.04 times the time), without the half
    minute of compilation.

    Raises:
        ConfigError: it is demanded and cannot work here.
    """
    reason = obstacle(device)
    if setting == "on" and reason:
        raise ConfigError(f"train.compile = on, but {reason}: install it, or set train.compile=off")
    return setting == "on" or (setting == "auto" and device.type == "cuda" and reason is None)


def compile_in_place(model: nn.Module) -> None:
    """Compiles a network for fixed input shapes; its parameters and state dict stay as they are.

    A stack of blocks of one kind and one shape, as in a vision transformer, is compiled block by block: the code of
    the first serves all, which divides the time to compile by their number. Other networks are compiled as one.
    """
    stacks = [blocks for blocks in _stacks(model) if _alike(blocks)]
    for part in [block for blocks in stacks for block in blocks] or [model]:
        part.compile(dynamic=False)


def _stacks(model: nn.Module) -> Iterator[list[nn.Module]]:
    for part in model.modules():
        if isinstance(part, (nn.Sequential, nn.ModuleList)) and len(part) >= 3:
            yield list(part)


def _alike(blocks: list[nn.Module]) -> bool:
    """Whether all blocks are of one class with parameters of the same shapes."""
    shapes = [[tuple(p.shape) for p in block.parameters()] for block in blocks]
    return len({type(block) for block in blocks}) == 1 and bool(shapes[0]) and all(s == shapes[0] for s in shapes)
