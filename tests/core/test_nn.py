"""The shared modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clf.nn import mlp


def test_a_projector_has_norm_and_relu_between_its_linear_layers() -> None:
    kinds = [type(layer) for layer in mlp(8, 6, 4)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    first, *_, last = mlp(8, 6, 4)
    assert first.bias is None and last.bias is not None
    assert mlp(8, 6, 4)(torch.randn(3, 8)).shape == (3, 4)


def test_the_released_code_ends_in_a_norm_without_shift() -> None:
    *_, linear, norm = mlp(8, 6, 4, last_batch_norm=True)
    assert isinstance(norm, nn.BatchNorm1d) and linear.bias is None
    assert norm.weight.requires_grad and not norm.bias.requires_grad and norm.bias.abs().sum() == 0


def test_one_layer_is_a_linear_map() -> None:
    assert [type(layer) for layer in mlp(8, 4)] == [nn.Linear]
    with pytest.raises(ValueError, match="input and an output"):
        mlp(8)
