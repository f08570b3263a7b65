"""The GAN: ResNets with spectral norm in the discriminator.

Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, arXiv
1802.05957: residual blocks, hinge loss, Adam with betas (0, 0.9). Images are in [-1, 1] here, as tanh gives them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

LATENT = 128
"""Length of u ~ N(0, I)."""


@dataclass(frozen=True)
class Size:
    """Channels of the generator and the discriminator, and how long the pair is trained if nobody says."""

    generator: int
    discriminator: int
    steps: int
    d_steps: int


SIZES = {"full": Size(256, 128, 100_000, 5), "lite": Size(128, 64, 20_000, 2), "tiny": Size(16, 16, 200, 2)}


def sides(image_size: int) -> list[int]:
    """Sides of the generator's feature maps: 4 to 7 pixels, doubled once or more, as near below the image's as may be.

    32 is 4 doubled three times, 28 is 7 doubled twice, 96 is 6 doubled four times; 100 cannot be made, and gives 96.
    """
    k = max(1, image_size.bit_length() - 3)
    first = max(4, image_size >> k)
    return [first << i for i in range(k + 1)]


class Generator(nn.Module):
    """u (n, 128) -> images (n, C, S, S) in [-1, 1], with an up-sampling block for each doubling."""

    def __init__(self, width: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.smallest, *larger = sides(image_size)
        self.first = nn.Linear(LATENT, width * self.smallest**2)
        self.blocks = nn.Sequential(*(_Up(width) for _ in larger))
        self.norm = nn.BatchNorm2d(width)
        self.last = _conv(width, channels, 3, 1.0)
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, u: Tensor) -> Tensor:
        x = self.first(u).view(len(u), -1, self.smallest, self.smallest)  # (n, W, 4, 4) for 8, 16, 32, 64 ...
        x = F.relu(self.norm(self.blocks(x)))  # (n, W, S, S)
        y: Tensor = torch.tanh(self.last(x))
        return y


class Discriminator(nn.Module):
    """Images (n, C, S, S) in [-1, 1] -> scores (n,), above 0 where it takes an image for real.

    Blocks, one at least, halve the side down to 8 pixels or less, two more keep it; then a sum over places and a linear
    layer.
    Each weight is divided by an estimate of its largest singular value, which moves on with each forward in training.
    """

    def __init__(self, width: int, image_size: int, channels: int) -> None:
        super().__init__()
        halvings = max(1, sum(side > 8 for side in sides(image_size)))
        down = [_Down(width, width) for _ in range(halvings - 1)]
        self.blocks = nn.Sequential(_First(channels, width), *down, _Plain(width), _Plain(width))
        linear = nn.Linear(width, 1)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.last = spectral_norm(linear)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.blocks(x)).sum((2, 3))  # (n, W)
        score: Tensor = self.last(h)[:, 0]
        return score


class _Up(nn.Module):
    """BN, ReLU, up, 3x3, BN, ReLU, 3x3, beside up and 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.convs = nn.ModuleList(_conv(width, width, 3) for _ in range(2))
        self.beside = _conv(width, width, 1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](_double(F.relu(self.norms[0](x))))
        h = self.convs[1](F.relu(self.norms[1](h)))
        y: Tensor = h + _double(self.beside(x))  # a 1x1 convolution and nearest neighbours commute
        return y


class _Plain(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(spectral_norm(_conv(width, width, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.convs[1](F.relu(self.convs[0](F.relu(x))))
        return y


class _Down(nn.Module):
    """The same with 1x1 beside it, and half the side."""

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList((spectral_norm(_conv(fan_in, width, 3)), spectral_norm(_conv(width, width, 3))))
        self.beside = spectral_norm(_conv(fan_in, width, 1, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[1](F.relu(self.convs[0](self._before(x))))
        return F.avg_pool2d(h + self.beside(x), 2)

    def _before(self, x: Tensor) -> Tensor:
        return F.relu(x)


class _First(_Down):
    """The block that sees the image, which no ReLU may touch."""

    def _before(self, x: Tensor) -> Tensor:
        return x


def _conv(fan_in: int, fan_out: int, side: int, gain: float = math.sqrt(2)) -> nn.Conv2d:
    conv = nn.Conv2d(fan_in, fan_out, side, padding=side // 2)
    nn.init.xavier_uniform_(conv.weight, gain)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _double(x: Tensor) -> Tensor:
    """Nearest neighbours; in this form its gradient is a sum in a fixed order on every device."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
