"""NNCLR: With a Little Help from My Friends, Nearest-Neighbor Contrastive Learning of Visual Representations.

Debidatta Dwibedi, Yusuf Aytar, Jonathan Tompson, Pierre Sermanet, Andrew Zisserman. ICCV 2021, arXiv 2104.14548.
Differences from the paper: the support set is no longer than the data set. The authors released no code; what the
paper's text leaves open is settled as the README says.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import clf
from clf import losses, nn

LONGEST = 98_304
"""The best queue of the paper's ablation; a derived one is no longer."""
CHUNK = 8192
"""Rows of the queue that are compared at a time, which bounds the memory of a look-up to N x 8192 similarities."""


class NNCLRConfig(clf.MethodConfig):
    queue_size: int | None = Field(
        None,
        ge=1,
        description="K, support set, a multiple of the images in a step; derived: the largest up to 98304 (ablation of "
        "the paper) and up to the number of training images",
    )
    temperature: float = Field(0.1, gt=0, description="tau")
    hidden_dim: int = Field(2048, ge=1, description="width of the projector's two hidden layers")
    projection_dim: int = Field(256, ge=1, description="E, length of a projection")
    predictor_dim: int = Field(4096, ge=1, description="width of the predictor's hidden layer")


class NNCLR(clf.Method[NNCLRConfig]):
    name = "nnclr"
    Config = NNCLRConfig
    paper = (
        "Dwibedi, Aytar, Tompson, Sermanet, Zisserman, With a Little Help from My Friends: "
        "Nearest-Neighbor Contrastive Learning of Visual Representations, ICCV 2021, arXiv 2104.14548"
    )
    defaults = {"optimizer.name": "lars"}
    tiny = {"method.hidden_dim": 32, "method.predictor_dim": 32}
    min_batch_size = 64  # N candidates instead of SimCLR's 2N - 1: log 64 is 4 nats

    ids: Tensor

    def __init__(self, backbone: clf.Backbone, config: NNCLRConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        hidden, e = config.hidden_dim, config.projection_dim
        self.projector = nn.mlp(backbone.dim, hidden, hidden, e, last_batch_norm=True)
        self.predictor = nn.mlp(e, config.predictor_dim, e)
        self.queue = nn.Queue(_queue_size(config, data), e)
        self.register_buffer("ids", torch.full((len(self.queue),), -1))  # (K,) which image a row is of; -1: none

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        x = torch.cat(batch.views)  # (2N, C, H, W): one forward, so that batch norm cannot tell the views apart
        z = self.projector(self.backbone(x))  # (2N, E)
        p1, p2 = self.predictor(z).chunk(2)  # (N, E) each
        z1, z2 = losses.unit(z.detach()).chunk(2)  # (N, E) each
        i1, i2 = (nearest(z_i, self.queue.rows) for z_i in (z1, z2))  # (N,) each, before this step's rows come in
        nn1, nn2 = self.queue.rows[i1], self.queue.rows[i2]  # (N, E) each, constants
        one, two = self.contrast(nn1, p2, ctx), self.contrast(nn2, p1, ctx)
        metrics = {name: (one.metrics[name] + two.metrics[name]) / 2 for name in one.metrics}
        own = torch.cat([self.ids[i1] == batch.index, self.ids[i2] == batch.index])  # (2N,)
        metrics["neighbour_similarity"] = (torch.cat([nn1 * z1, nn2 * z2])).sum(1).mean()
        metrics["self_neighbour_rate"] = own.float().mean()
        metrics["queue_fill"] = self.queue.fill
        self.enqueue(z1, batch.index, ctx)
        return clf.StepOutput((one.loss + two.loss) / 2, metrics)

    def contrast(self, neighbours: Tensor, p: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """Each neighbour must find its prediction among those of all ranks: one direction of the loss.

        Args:
            neighbours: (N, E) unit rows of the queue, for this rank's images in one view.
            p: (N, E) predictions of the same images in the other view, of any norm. They are gathered here.
        """
        tau, n = self.config.temperature, len(p)
        with torch.autocast(p.device.type, enabled=False):  # exp(cos / tau) leaves the range of 16-bit floats
            everyone = ctx.gather(losses.unit(p))  # (M, E)
            logits = neighbours.to(everyone.dtype) @ everyone.T / tau  # (N, M)
            partner = torch.arange(n, device=p.device) + ctx.rank * n  # (N,)
            loss = F.cross_entropy(logits, partner)
        with torch.no_grad():
            metrics = {
                "contrast_accuracy": (logits.argmax(1) == partner).float().mean(),
                "positive_similarity": tau * logits.gather(1, partner[:, None]).mean(),
            }
        return clf.StepOutput(loss, metrics)

    @torch.no_grad()
    def enqueue(self, z: Tensor, index: Tensor, ctx: clf.Context) -> None:
        """Puts the unit projections (N, E) of all ranks, with their images' numbers (N,), in the oldest ones' place."""
        places = self.queue.push(ctx.gather(z))
        self.ids = self.ids.index_copy(0, places, ctx.gather(index.to(self.ids.device)))


@torch.no_grad()
def nearest(z: Tensor, queue: Tensor, chunk: int = CHUNK) -> Tensor:
    """The row of the queue (K, E) with the largest cosine similarity to each z; of equally similar ones the first.

    Args:
        z: (N, E) unit rows.
        chunk: rows of the queue that are compared at a time.

    Returns:
        (N,) int64 positions in the queue.
    """
    with torch.autocast(z.device.type, enabled=False):  # bfloat16 would make ties of the nearest rows
        best = z.new_full((len(z),), -torch.inf)
        place = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        for start in range(0, len(queue), chunk):
            similarity = z @ queue[start : start + chunk].to(z.dtype).T  # (N, chunk)
            at = similarity.argmax(1)  # (N,), the first of equal ones
            value = similarity.gather(1, at[:, None])[:, 0]
            place = torch.where(value > best, at + start, place)
            best = torch.maximum(best, value)
    return place


def _queue_size(config: NNCLRConfig, data: clf.DataSpec) -> int:
    rows = data.batch_size
    if config.queue_size is None:
        return rows * max(1, min(LONGEST, data.n_images) // rows)
    if config.queue_size % rows:
        near = rows * max(1, round(config.queue_size / rows))
        raise clf.ConfigError(
            f"method.queue_size = {config.queue_size} cannot be filled by whole steps of train.batch_size = {rows} "
            f"images: set method.queue_size={near}"
        )
    return config.queue_size


@clf.hookimpl
def clf_methods() -> list[type[NNCLR]]:
    return [NNCLR]
