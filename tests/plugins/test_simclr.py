"""SimCLR's seams: one forward for all views, and the loss of two sets of projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import clf
from clf.backbones import Backbone
from clf.losses import nt_xent
from clf_simclr import SimCLR, SimCLRConfig


@dataclass
class OneStep:
    """What the loss needs of a context."""

    rank: int = 0

    def gather(self, x: Tensor) -> Tensor:
        return x


CTX = cast(clf.Context, OneStep())


def build() -> SimCLR:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6))
    backbone = Backbone(model, "linear", channels=3, image_size=8)
    data = clf.DataSpec("squares", 64, 8, 3, batch_size=4, steps_per_epoch=16, epochs=1)
    return SimCLR(backbone, SimCLRConfig(projection_dim=5, temperature=0.3), data)


def images(count: int) -> tuple[Tensor, ...]:
    return torch.rand(count, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_views_share_one_forward(count: int) -> None:
    """Batch norm sees the rows of all views together."""
    method, views = build(), images(count)
    expected = method.projector(method.backbone(torch.cat(views)))
    found = method.embed(views)
    assert [z.shape for z in found] == count * [(4, 5)]
    torch.testing.assert_close(torch.cat(found), expected)


def test_the_step_is_the_contrast_of_the_embedded_views() -> None:
    method, views = build(), images(2)
    batch = clf.Batch(views, torch.arange(4), (255 * views[0]).byte(), augment=lambda *_: views)
    a, b = method.embed(views)
    output = method.training_step(batch, CTX)
    torch.testing.assert_close(output.loss, nt_xent(a, b, 0.3))
    torch.testing.assert_close(output.loss, method.contrast(a, b, CTX).loss)


def test_positive_similarity_is_the_mean_cosine_of_the_pairs() -> None:
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    b = torch.tensor([[5.0, 0.0], [1.0, 0.0], [4.0, 3.0]])
    metric = build().contrast(a, b, CTX).metrics["positive_similarity"]
    assert float(metric) == pytest.approx((1 + 0 + 0.96) / 3)
