"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations.

Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton. ICML 2020, arXiv 2002.05709.
Differences from the paper: none in the loss; the projector's depth is a setting (2 layers in the paper, 3 in the
released code), and batch norm statistics are those of one rank.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import clf
from clf import losses, nn


class SimCLRConfig(clf.MethodConfig):
    temperature: float = Field(0.5, gt=0, description="tau; 0.1 is best on ImageNet, 0.5 on CIFAR-10 (table 5, B.9)")
    hidden_dim: int = Field(0, ge=0, description="width of the projector's hidden layers; 0 = the backbone's width")
    projection_dim: int = Field(128, ge=1, description="E, length of a projection (section 2.3)")
    layers: int = Field(2, ge=1, le=4, description="linear layers of the projector (section 2.3)")


class SimCLR(clf.Method[SimCLRConfig]):
    name = "simclr"
    Config = SimCLRConfig
    paper = (
        "Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations, "
        "ICML 2020, arXiv 2002.05709"
    )

    def __init__(self, backbone: clf.Backbone, config: SimCLRConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        hidden = [config.hidden_dim or backbone.dim] * (config.layers - 1)
        self.projector = nn.mlp(backbone.dim, *hidden, config.projection_dim)

    def embed(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x = torch.cat(list(views))  # (VN, C, H, W): one forward, so that batch norm cannot tell the views apart
        z: Tensor = self.projector(self.backbone(x))  # (VN, E)
        return z.chunk(len(views))  # (N, E) each

    def contrast(self, a: Tensor, b: Tensor, ctx: clf.Context) -> clf.StepOutput:
        loss = losses.nt_xent(a, b, self.config.temperature, gather=ctx.gather, rank=ctx.rank)
        return clf.StepOutput(loss, {"positive_similarity": F.cosine_similarity(a.detach(), b.detach()).mean()})

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        a, b = self.embed(batch.views)
        return self.contrast(a, b, ctx)


@clf.hookimpl
def clf_methods() -> list[type[SimCLR]]:
    return [SimCLR]
