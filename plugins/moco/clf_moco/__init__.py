"""MoCo v2: Momentum Contrast for Unsupervised Visual Representation Learning, with its improved baselines.

Kaiming He, Haoqi Fan, Yuxin Wu, Saining Xie, Ross Girshick. CVPR 2020, arXiv 1911.05722 (v1).
Xinlei Chen, Haoqi Fan, Ross Girshick, Kaiming He. arXiv 2003.04297 (v2).
Differences from the paper: the queue is shorter on small data sets, and one process imitates the batch norm of eight
GPUs in the way of the authors' CIFAR-10 notebook (facebookresearch/moco, branch colab-notebook), whose symmetric loss
is here too.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

import clf
from clf import losses, nn

LONGEST = 65_536
"""K of the paper; a derived queue is no longer."""


class MoCoConfig(clf.MethodConfig):
    queue_size: int | None = Field(
        None,
        ge=1,
        description="K, negatives, a multiple of the images in a step (of twice as many when symmetric); derived: the "
        "largest up to 65536 (v1 section 4) and up to a tenth of the training images",
    )
    momentum: float = Field(0.999, ge=0, le=1, description="m of the key encoder (v1 section 3.2); notebook: 0.99")
    temperature: float = Field(0.2, gt=0, description="tau (v2 section 3); v1: 0.07, notebook: 0.1")
    head: Literal["mlp", "linear"] = Field("mlp", description="two layers without batch norm (v2), or one (v1)")
    hidden_dim: int = Field(0, ge=0, description="width of the mlp head's hidden layer; 0 = the backbone's width")
    projection_dim: int = Field(128, ge=1, description="E, length of queries and keys (v1 section 3.3)")
    symmetric: bool = Field(False, description="each view is query once; the two losses are added, as in the notebook")
    batch_norm: Literal["split", "shuffle", "plain"] = Field(
        "split",
        description="split: bn_splits groups and shuffled keys; shuffle: each rank's rows and shuffled keys, as in v1 "
        "section 3.3, of use under several ranks only; plain: neither",
    )
    bn_splits: int | None = Field(
        None,
        ge=1,
        description="groups of images with batch statistics of their own, over all ranks together; derived: 8, or as "
        "few as leave 32 images to each (v1: 8 GPUs for 256 images, 4 for 128), at least 2; the next fewer that divide "
        "the images of a step",
    )


class MoCo(clf.Method[MoCoConfig]):
    name = "moco"
    Config = MoCoConfig
    paper = (
        "He, Fan, Wu, Xie, Girshick, Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020, "
        "arXiv 1911.05722; Chen, Fan, Girshick, He, Improved Baselines with Momentum Contrastive Learning, "
        "arXiv 2003.04297"
    )
    defaults = {
        "optimizer.name": "sgd",  # with the engine's lr 0.03 x batch/256, weight decay 1e-4 and momentum 0.9: v1's
        "optimizer.decay_norm_and_bias": True,
        "schedule.warmup_epochs": 0,
        "schedule.per": "epoch",
    }
    min_batch_size = 16  # for batch norm; the negatives are the queue's

    def __init__(self, backbone: clf.Backbone, config: MoCoConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        widths = [config.hidden_dim or backbone.dim] if config.head == "mlp" else []
        self.projector = nn.mlp(backbone.dim, *widths, config.projection_dim, batch_norm=False)
        normed = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in backbone.modules())
        self.shuffled = normed and config.batch_norm != "plain"
        if normed and config.batch_norm == "split":
            nn.split_batch_norm(backbone, _bn_splits(config, data.batch_size))
        self.momentum_encoder = copy.deepcopy(self._query_encoder()).requires_grad_(False)
        self.queue = nn.Queue(_queue_size(config, data), config.projection_dim)

    def views(self) -> Sequence[clf.Recipe]:
        """aug+ of v2 (section 3); up to 64 pixels the notebook's, with crops from 8 % and without blur."""
        small, grey = self.data.image_size <= 64, self.data.channels == 1
        recipe = clf.Recipe(
            size=self.data.image_size,
            crop_area=(0.08 if small else 0.2, 1.0),
            brightness=0.4,
            contrast=0.4,
            saturation=0.0 if grey else 0.4,
            hue=0.0 if grey else 0.1,
            grayscale=0.0 if grey else 0.2,
            blur=0.0 if small else 0.5,
        )
        return [recipe, recipe]

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> clf.StepOutput:
        a, b = batch.views
        q = self.queries([a, b] if self.config.symmetric else [a])
        k = self.keys([b, a] if self.config.symmetric else [b], ctx)
        queue, fill = self.queue.rows, self.queue.fill  # (K, E), without the keys of this step
        outputs = [self.contrast(q_i, k_i, queue, ctx) for q_i, k_i in zip(q, k, strict=True)]
        for k_i in k:
            self.enqueue(k_i, ctx)
        metrics = {name: sum(o.metrics[name] for o in outputs) / len(outputs) for name in outputs[0].metrics}
        loss = torch.stack([o.loss for o in outputs]).sum()
        return clf.StepOutput(loss, {**metrics, "queue_fill": fill})

    def queries(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Unit rows (N, E) of each view (N, C, H, W), with gradient; one forward for each, as batch norm sees them."""
        return tuple(losses.unit(self.projector(self.backbone(x))) for x in views)

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor], ctx: clf.Context) -> tuple[Tensor, ...]:
        """Unit rows (N, E) of each view (N, C, H, W) by the momentum encoder, without gradient.

        Shuffled keys (v1 section 3.3): the rows of all ranks are encoded in a random order, so that batch norm's
        statistics of a query and of its key come from different images and cannot tell which two belong together.
        """
        g = ctx.generator("moco shuffle")
        return tuple(self._keys(x, ctx, g) for x in views)

    def contrast(self, q: Tensor, k: Tensor, queue: Tensor, ctx: clf.Context) -> clf.StepOutput:
        """The loss of unit queries (N, E) with their unit keys (N, E) against the unit rows of a queue (K, E)."""
        tau = self.config.temperature
        logits = losses.info_nce_logits(q, k, queue, tau)  # (N, 1 + K)
        loss = (logits.logsumexp(1) - logits[:, 0]).mean()
        with torch.no_grad():
            positive, negative = logits[:, 0], logits[:, 1:]  # (N,), (N, K)
            metrics = {
                "contrast_accuracy": (positive > negative.amax(1)).float().mean(),
                "positive_similarity": tau * positive.mean(),
                "negative_similarity": tau * negative.mean(),
            }
        return clf.StepOutput(loss, metrics)

    def enqueue(self, k: Tensor, ctx: clf.Context) -> None:
        """Puts the keys (N, E) of all ranks in place of the oldest ones."""
        self.queue.push(ctx.gather(k.detach()))

    def after_step(self, ctx: clf.Context) -> None:
        """The momentum update (v1 equation 2).

        The released code does it just before the keys of the next step, from the same weights; before the first step,
        where both encoders are equal, it changes nothing. So both give the same keys.
        """
        nn.momentum_update(self.momentum_encoder, self._query_encoder(), self.config.momentum)

    def _query_encoder(self) -> torch.nn.Sequential:
        return torch.nn.Sequential(self.backbone, self.projector)

    def _keys(self, x: Tensor, ctx: clf.Context, g: torch.Generator) -> Tensor:
        if not self.shuffled:
            return losses.unit(self.momentum_encoder(x))
        n = len(x)
        mine = slice(ctx.rank * n, (ctx.rank + 1) * n)
        order = torch.randperm(ctx.world_size * n, generator=g).to(x.device)  # (M,), the same on all ranks
        k = losses.unit(self.momentum_encoder(ctx.gather(x)[order[mine]]))  # (N, E), of rows of all ranks
        return ctx.gather(k)[order.argsort()[mine]]  # (N, E), of this rank's rows again


def _queue_size(config: MoCoConfig, data: clf.DataSpec) -> int:
    rows = data.batch_size * (2 if config.symmetric else 1)  # pushed in a step
    if config.queue_size is None:
        return rows * max(1, min(LONGEST, data.n_images // 10) // rows)
    if config.queue_size % rows:
        near = rows * max(1, round(config.queue_size / rows))
        raise clf.ConfigError(
            f"method.queue_size = {config.queue_size} cannot be filled by whole steps of {rows} keys (train.batch_size "
            f"= {data.batch_size}{', symmetric' if config.symmetric else ''}): set method.queue_size={near}"
        )
    return config.queue_size


def _bn_splits(config: MoCoConfig, batch: int) -> int:
    wanted = config.bn_splits or min(8, max(2, batch // 32))
    splits = next(s for s in range(wanted, 0, -1) if batch % s == 0 and (batch >= 2 * s or s == 1))
    if config.bn_splits and splits != wanted:
        raise clf.ConfigError(
            f"method.bn_splits = {wanted} cannot divide train.batch_size = {batch} into equal groups of two images or "
            f"more: set method.bn_splits={splits}"
        )
    return splits


@clf.hookimpl
def clf_methods() -> list[type[MoCo]]:
    return [MoCo]
