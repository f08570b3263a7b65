"""Hard sample generation: a GAN and a contrastive encoder, trained against each other.

Yawen Wu, Zhepeng Wang, Dewen Zeng, Yiyu Shi, Jingtong Hu. AAAI 2023, arXiv 2202.06464: "Synthetic Data Can Also Teach:
Synthesizing Effective Data for Unsupervised Visual Representation Learning" (first version: "Learn by Challenging
Yourself: Contrastive Visual Representation Learning with Hard Sample Generation").

The paper's idea is public and its equations are not: this is our reconstruction. Two generators start as copies of one
that was pre-trained on the same unlabelled images. From one latent they make a positive pair; they are trained to raise
the contrastive loss, the encoder to lower it, and a discriminator keeps their images on the data. What is known and
what is ours is told in the README.
"""

from __future__ import annotations

from typing import Any

import clf
from clf_hard_sample_gen.config import HardSampleConfig
from clf_hard_sample_gen.methods import HardSampleMoCo, HardSampleSimCLR

__all__ = ["HardSampleConfig", "HardSampleMoCo", "HardSampleSimCLR", "clf_methods"]


@clf.hookimpl
def clf_methods() -> list[type[clf.Method[Any]]]:
    return [HardSampleSimCLR]
