"""Fine-tuning: the whole network and a linear classifier trained on the labels of the training split.

Nothing is tuned: every encoder is trained with the same settings for the same epochs, and measured after the last one.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clf.augment import Recipe
from clf.backbones import Backbone
from clf.config import OptimizerSection, ScheduleSection
from clf.data import Images
from clf.data.stream import Stream
from clf.errors import TrainingError
from clf.evaluate.features import encode
from clf.optim import make_optimizer, schedule_factor, set_lr
from clf.random import derive_seed

EPOCHS = 20
BATCH = 128
LEAST_STEPS = 20
"""In an epoch; smaller training splits have smaller batches, down to SMALLEST images."""
SMALLEST = 16
OPTIMIZER = OptimizerSection(name="adamw", lr=1e-3, weight_decay=0.05)
WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""
CROP = (0.2, 1.0)
"""Range of the crop's share of the area."""


def fine_tune(
    encoder: nn.Module,
    images: Images,
    labels: Tensor,
    test_images: Images,
    test_labels: Tensor,
    *,
    epochs: int,
    seed: int,
    flip: float = 0.5,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    on_epoch: Callable[[int], None] = lambda done: None,
) -> tuple[float, float]:
    """Top-1 on the test split after the last epoch, and the seconds it took. The encoder itself is left as it is.

    AdamW with a cosine schedule, random resized crops and flips, cross entropy. The same arguments give the same result
    on one machine with one thread count.

    Args:
        encoder: (N, C, S, S) in [0, 1] -> (N, D).
        images: (n, C, S, S) uint8, with labels (n,) int64 of two classes at least.
        test_images: (m, C, S, S) uint8 with test_labels (m,); a class that the training split lacks counts as wrong.
        flip: probability of a horizontal flip.
        bf16: train under autocast.
        on_epoch: called with the number of epochs done.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    started = time.monotonic()
    device = torch.device(device)
    classes, targets = torch.unique(labels.to(device), return_inverse=True)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(seed, "fine tune"))  # dropout
        model = _classifier(encoder, len(classes), images, device)
        _train(model, images, targets, epochs, seed, flip, device, bf16, on_epoch)
    predicted = classes.cpu()[encode(model, test_images, device=device).argmax(1)]
    return float((predicted == test_labels.cpu()).double().mean()), round(time.monotonic() - started, 2)


def batch_size(images: int) -> int:
    """BATCH, or fewer so that an epoch has LEAST_STEPS, but not fewer than SMALLEST where there are so many."""
    return min(images, max(SMALLEST, min(BATCH, images // LEAST_STEPS)))


def _classifier(encoder: nn.Module, classes: int, images: Images, device: torch.device) -> nn.Module:
    encoder = copy.deepcopy(encoder).to(device).requires_grad_(True).eval()
    for part in encoder.modules():
        if isinstance(part, Backbone):
            part.accelerate(channels_last=device.type != "mps", chunk_size=None, compiled=False)
    dtype = next(encoder.parameters()).dtype
    with torch.no_grad():
        dim = encoder(images[:1].to(device).to(dtype) / 255).shape[1]
    head = nn.Linear(dim, classes, device=device, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(encoder, head)


def _train(
    model: nn.Module,
    images: Images,
    targets: Tensor,
    epochs: int,
    seed: int,
    flip: float,
    device: torch.device,
    bf16: bool,
    on_epoch: Callable[[int], None],
) -> None:
    parameters = list(model.parameters())
    dtype = parameters[0].dtype
    recipe = Recipe(size=images.shape[-1], crop_area=CROP, flip=flip, jitter=0.0, grayscale=0.0)
    stream = Stream(images, [recipe], batch_size(len(images)), derive_seed(seed, "fine tune"), device, dtype=dtype)
    optimizer = make_optimizer(OPTIMIZER, parameters)
    peak, steps = OPTIMIZER.lr or 0.0, epochs * stream.steps_per_epoch
    model.train()
    try:
        for step in range(steps):
            set_lr(optimizer, peak * schedule_factor(step, steps, math.ceil(WARMUP * steps), ScheduleSection()))
            batch = stream.next()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(batch.views[0]), targets[batch.index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (step + 1) % stream.steps_per_epoch == 0:
                _check(loss, step, steps)
                on_epoch((step + 1) // stream.steps_per_epoch)
    finally:
        stream.close()


def _check(loss: Tensor, step: int, steps: int) -> None:
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"fine-tuning diverged: its loss is {loss.item()} after {step + 1} of {steps} steps; the other figures are "
            "kept. Perhaps the run itself had diverged: see the label-free figures of clf evaluate"
        )
