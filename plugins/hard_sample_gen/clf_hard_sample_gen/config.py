"""Settings of the method. Where the paper's value is not public, the default is that of our reconstruction."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

import clf
from clf_moco import MoCoConfig
from clf_simclr import SimCLRConfig

PAIRED = ("hp", "full")
"""Variants whose positives come from two images of one latent."""
STATIC = ("static", "static_twin")
"""Variants whose generator stays as it was pre-trained."""


class HardSampleConfig(clf.MethodConfig):
    base: Literal["simclr", "moco"] = Field("simclr", description="contrastive method that is taught")
    simclr: SimCLRConfig = Field(default_factory=SimCLRConfig, description="its settings where base=simclr")
    moco: MoCoConfig = Field(default_factory=MoCoConfig, description="its settings where base=moco")
    variant: Literal["static", "static_twin", "hs", "hp", "full"] = Field(
        "full",
        description="static: frozen generator, 2 views an image; static_twin: 4 views; hs: one generator made to give "
        "hard samples; hp: two, hard positives only; full: two, hard positives that are hard negatives too",
    )
    pair_mode: Literal["twin", "ema", "latent"] = Field(
        "twin",
        description="second image of a latent, for hp and full; twin: of a second generator; ema: of the first one's "
        "moving average; latent: of a neighbouring latent",
    )
    synth_ratio: float = Field(1 / 8, gt=0, le=4, description="latents in a step, as a share of its real images")
    omega_s: float = Field(1.0, ge=0, description="weight of synthetic anchors in the encoder's loss; real ones have 1")
    positives: Literal["pairwise", "supcon"] = Field(
        "pairwise", description="each positive in a problem of its own, or all in one denominator (simclr)"
    )
    denominator: Literal["joint", "separate"] = Field(
        "joint", description="whether synthetic and real images are each other's negatives (simclr)"
    )
    enqueue_synth: bool = Field(False, description="whether keys of synthetic images enter the queue (moco)")
    warmup_frac: float = Field(0.1, ge=0, lt=1, description="share of the training, at its start, without synthetics")
    kappa_max: float = Field(0.3, ge=0, description="largest ratio of the gradients of hardness and realism")
    delta_max: float = Field(0.3, ge=0, le=2, description="how far below real pairs the twins' cosine may come to lie")
    ramp: float = Field(0.3, gt=0, le=1, description="share of the joint steps in which kappa and delta grow from 0")
    dead_band: float = Field(
        0.1, ge=0, le=2, description="width of the band of cosines that are neither pushed nor pulled"
    )
    two_sided: bool = Field(True, description="whether pairs below the band are pulled together again")
    sigma_max: float = Field(0.5, ge=0, description="largest distance of two neighbouring latents (pair_mode=latent)")
    g_every: int = Field(5, ge=1, description="training steps for each step of the generators")
    d_per_step: int = Field(1, ge=1, description="steps of the discriminator in each training step")
    gan_batch: int = Field(64, ge=2, multiple_of=2, description="real images, and as many fakes, in a step of the GAN")
    lr_g: float = Field(5e-5, gt=0, description="of Adam for the generators, after the pre-training")
    lr_d: float = Field(1e-4, gt=0, description="of Adam for the discriminator, after the pre-training")
    fake_pool: int = Field(1, ge=1, le=4, description="training steps that use the same fakes, with new augmentations")
    diff_augment: Literal["color_cutout", "color_translation_cutout", "none"] = Field(
        "color_cutout",
        description="DiffAugment of the discriminator's images; with half of the data or less take all three policies",
    )
    gan: Literal["full", "lite", "tiny"] = Field(
        "full", description="channels of generator and discriminator: 256 and 128, 128 and 64, 16 and 16"
    )
    gan_steps: int | None = Field(
        None, ge=1, description="generator steps of its pre-training; unset: 100,000, 20,000 or 200, by its widths"
    )
    gan_d_steps: int | None = Field(
        None, ge=1, description="discriminator steps for each of them; unset: 5 for full up to 32 pixels, else 2"
    )
    gan_run: str | None = Field(None, description="folder of a run whose pre-trained GAN is taken instead")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        other, theirs = ("simclr", self.simclr) if self.base == "moco" else ("moco", self.moco)
        for key, field in type(theirs).model_fields.items():
            if getattr(theirs, key) != field.default:
                raise ValueError(
                    f"method.{other}.{key} is set, but method.base is {self.base}: remove it or set method.base={other}"
                )
        if self.pair_mode != "twin" and self.variant not in PAIRED:
            raise ValueError(
                f"pair_mode={self.pair_mode} makes a second image of each latent and variant={self.variant} has one: "
                "set variant to full or hp, or leave pair_mode out"
            )
        if self.gan_run is not None and (self.gan_steps is not None or self.gan_d_steps is not None):
            raise ValueError(
                "gan_run takes a GAN that is trained already: leave gan_steps and gan_d_steps out, or gan_run"
            )
        if self.base == "moco" and (self.positives, self.denominator) != ("pairwise", "joint"):
            raise ValueError(
                "positives and denominator arrange the views of one batch, and with base=moco the negatives are those "
                "of the queue: leave both out, or set base=simclr"
            )
        if self.base == "simclr" and self.enqueue_synth:
            raise ValueError("enqueue_synth needs a queue: set base=moco, or leave it out")
        return self
