"""hard_sample_gen made by hand: a method in float64 with the smallest GAN, and an engine for its players."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fakes import FakeContext, backbone, data
from torch import Tensor, nn

import clf
from clf_hard_sample_gen import (
    HardSampleConfig,
    HardSampleSimCLR,
)
from clf_hard_sample_gen.methods import HardSample
from clf_moco import MoCoConfig
from clf_simclr import SimCLRConfig

SIDE, IMAGES = 8, 8
SPEC = data(image_size=SIDE, batch_size=IMAGES, n_images=20, fingerprint="these")


@dataclass
class Ring(FakeContext):
    """The engine's side: images at random, and plain gradient descent by ``lr`` for each group."""

    groups: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    lr: float = 0.0
    stepped: list[str] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)

    def images(self, index: Tensor) -> Tensor:
        self.asked.append(index)
        g = torch.Generator().manual_seed(9)
        return torch.randint(0, 256, (20, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)[index]

    def minimize(self, group: str, loss: Tensor) -> None:
        self.stepped.append(group)
        for p in self.groups[group]:
            p.grad = None
        # of everything, so that what is not frozen gets a gradient
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for p in self.groups[group]:
                p.sub_(self.lr * (torch.zeros_like(p) if p.grad is None else p.grad))
                p.grad = None


def method(base: str = "simclr", *, norm: bool = False, spec: clf.DataSpec = SPEC, **changes: Any) -> HardSample:
    """In float64, with the smallest GAN, eight images and four latents a step, every step joint and with one of G."""
    values = {"gan": "tiny", "gan_batch": 8, "synth_ratio": 0.5, "warmup_frac": 0.0, "g_every": 1, "gan_steps": 2}
    base = changes.pop("base", base)
    own = {"simclr": SimCLRConfig(projection_dim=5, layers=1), "moco": MoCoConfig(queue_size=32, projection_dim=5)}
    config = HardSampleConfig(**{**values, "base": base, base: own[base], **changes})
    made = HardSampleSimCLR.build(backbone(SIDE, norm=norm), config, spec).double().train()
    assert isinstance(made, HardSample)
    return made


def ring(of: HardSample, **changes: Any) -> Ring:
    groups = {name: list(g.parameters if isinstance(g, clf.Group) else g) for name, g in of.parameter_groups().items()}
    return Ring(groups=groups, progress=0.5, **changes)


def batch(size: int = SIDE) -> clf.Batch:
    g = torch.Generator().manual_seed(4)
    made = tuple(torch.rand(2, IMAGES, 3, size, size, generator=g, dtype=torch.float64))
    recipe = clf.simclr_recipe(size)
    images = torch.zeros(IMAGES, 3, size, size, dtype=torch.uint8)
    drawn = ((recipe, recipe.draw(IMAGES, g)),) * 2
    return clf.Batch(made, torch.arange(IMAGES), images, lambda *_: made, draws=drawn)


def gradients(parts: Iterable[nn.Module]) -> int:
    return sum(p.grad is not None for part in parts for p in part.parameters())


def state(part: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in part.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def played(made: HardSample, ctx: Ring) -> dict[str, float]:
    """One joint step without the encoder's own descent; what it logged."""
    made.training_step(batch(), ctx)
    made.after_step(ctx)
    return {name: float(value) for name, value in ctx.logged.items()}
