"""Small modules every paper shares."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(*widths: int, batch_norm: bool = True, last_batch_norm: bool = False) -> nn.Sequential:
    """A projector: linear layers with ReLU between them, ``mlp(512, 512, 128)`` has two.

    Args:
        widths: input, hidden and output width.
        batch_norm: batch norm after each hidden linear layer, which then has no bias.
        last_batch_norm: batch norm without shift after the last one, as in SimCLR's released code (model_util.py).

    Raises:
        ValueError: fewer than two widths.
    """
    if len(widths) < 2:
        raise ValueError(f"mlp needs an input and an output width, got {widths}")
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        normed = last_batch_norm if i == last else batch_norm
        layers.append(nn.Linear(fan_in, fan_out, bias=not normed))
        if normed:
            layers.append(_norm(fan_out, shift=i != last))
        if i != last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _norm(width: int, shift: bool) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    if not shift:
        norm.bias.requires_grad_(False)
    return norm
