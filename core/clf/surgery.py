"""Networks without batch norm or with other activations, made from timm's by exchanging layers.

Without normalisation (``norm: none``) a row's features depend on that row alone and on no running statistics, which
energy-based training needs. A shift that a norm had is then given to the convolution before it, as a bias, and weights
start from PyTorch's defaults: timm's own start relies on the norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from torch import nn

from clf.errors import ConfigError

Norm: TypeAlias = Literal["keep", "none", "group"]
Activation: TypeAlias = Literal["keep", "relu", "leaky_relu", "gelu", "silu"]

GROUPS = 32
"""Of a group norm, or the largest power of two below that divides the channels (Wu, He, ECCV 2018: 32)."""
SLOPE = 0.2
"""Of the leaky ReLU below zero."""

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_NORMS = (*_BATCH_NORMS, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_ROW_NORMS = ("LayerNorm", "RmsNorm", "RMSNorm", "SimpleNorm", "EvoNorm2dS", "FilterResponseNorm")
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(SLOPE, inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}
_ACTIVATION_NAMES = {
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU"),
    *("SiLU", "Swish", "Mish", "HardMish", "HardSwish", "Hardswish"),
}
"""Torch's and timm's; the gates (sigmoid, tanh) are part of an attention's equation and stay."""


def convert(model: nn.Module, name: str, norm: Norm, activation: Activation) -> None:
    """Exchanges norms and activations in place. New weights come from torch's global generator.

    Args:
        name: of the model, for messages.
        norm: none - no batch, group or instance norm, biases on all convolutions, PyTorch's initial weights;
            group - group norm, of 32 groups where that divides the channels, with the batch norm's weight and bias.
        activation: of all layers; gates of attention keep theirs.

    Raises:
        ConfigError: the model has no such layers, or layer norms and their like, which cannot be left out.
    """
    if norm == "none":
        _remove_norms(model, name)
    elif norm == "group":
        _to_group_norm(model, name)
    if activation != "keep" and not _exchange(model, _is_activation, lambda _: _ACTIVATIONS[activation]()):
        raise ConfigError(
            f"backbone.activation = {activation}, but no activation layers were found in {name!r}: "
            "set backbone.activation=keep, or choose another backbone.name"
        )


def _remove_norms(model: nn.Module, name: str) -> None:
    """A network that had none keeps its initial weights."""
    rows = next((type(m).__name__ for m in model.modules() if type(m).__name__.startswith(_ROW_NORMS)), None)
    if rows:
        raise ConfigError(
            f"backbone.norm = none would take away {rows}, without which {name!r} does not train; it takes each image "
            "for itself, so set backbone.norm=keep, or choose a network with batch norm such as resnet18"
        )
    if not _exchange(model, lambda m: isinstance(m, _NORMS), lambda m: _after_norm(m, None)):
        return
    for layer in model.modules():
        if isinstance(layer, _CONVOLUTIONS) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_empty(layer.out_channels))
        if isinstance(layer, (*_CONVOLUTIONS, nn.Linear)):
            layer.reset_parameters()


def _to_group_norm(model: nn.Module, name: str) -> None:
    if not _exchange(model, lambda m: isinstance(m, _BATCH_NORMS), lambda m: _after_norm(m, _group_norm(m))):
        raise ConfigError(f"backbone.norm = group, but {name!r} has no batch norm to replace: set backbone.norm=keep")


def _group_norm(batch_norm: nn.Module) -> nn.Module:
    """Its weight starts as the batch norm's, because timm starts the last one of a residual branch at zero."""
    assert isinstance(batch_norm, nn.modules.batchnorm._BatchNorm)
    channels = batch_norm.num_features
    norm = nn.GroupNorm(math.gcd(channels, GROUPS), channels, batch_norm.eps, batch_norm.affine)
    if batch_norm.affine:
        norm.load_state_dict({"weight": batch_norm.weight, "bias": batch_norm.bias})
    return norm


def _after_norm(norm: nn.Module, other: nn.Module | None) -> nn.Module:
    """What takes a norm's place; timm's norms with an activation keep the activation."""
    inner = [getattr(norm, part, None) for part in ("drop", "act")]
    layers = [layer for layer in (other, *inner) if layer is not None and not isinstance(layer, nn.Identity)]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers) if layers else nn.Identity()


def _is_activation(layer: nn.Module) -> bool:
    return type(layer).__name__ in _ACTIVATION_NAMES


def _exchange(model: nn.Module, is_one: Callable[[nn.Module], bool], other: Callable[[nn.Module], nn.Module]) -> int:
    """Replaces all layers of a kind inside a model and returns their number."""
    places = [(parent, key, layer) for parent in model.modules() for key, layer in parent._modules.items()]
    wanted = [(parent, key, layer) for parent, key, layer in places if layer is not None and is_one(layer)]
    for parent, key, layer in wanted:
        setattr(parent, key, other(layer))
    return len(wanted)
