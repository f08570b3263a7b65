"""timm models as encoders: number of channels, image size, small-image stem and input scaling settled in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clf.chunking import in_chunks
from clf.compiling import compile_in_place
from clf.config import BackboneSection
from clf.errors import ConfigError, did_you_mean
from clf.random import derive_seed
from clf.surgery import convert

SMALL_IMAGE = 64
"""Up to this side in pixels ``stem: auto`` means the small stem."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(nn.Module):
    """A feature extractor: images (N, C, H, W) in [0, 1] -> features (N, D).

    Input scaling is part of it, so training, evaluation and the exported model cannot disagree about it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        name: str,
        channels: int,
        image_size: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.channels = channels
        self.image_size = image_size
        self.chunk_size: int | None = None
        self.channels_last = False
        self.compiled = False
        self.register_buffer("mean", _per_channel(mean, channels), persistent=False)
        self.register_buffer("std", _per_channel(std, channels), persistent=False)
        self.dim = self._probe()

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        h: Tensor = in_chunks(self.model, x, self.chunk_size) if self.chunk_size else self.model(x)  # (N, D)
        return h

    def accelerate(self, *, channels_last: bool, chunk_size: int | None, compiled: bool) -> None:
        """How the engine runs it; what it computes stays the same (see :mod:`clf.chunking` for batch norm).

        Args:
            channels_last: keep pixels and weights in the order N, H, W, C, which convolution kernels prefer.
            chunk_size: rows at a time; None = all.
            compiled: by torch.compile, at the first call. A deep copy made before is not.
        """
        self.chunk_size = chunk_size
        self.channels_last = channels_last
        self.compiled = compiled
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compiled:
            compile_in_place(self.model)

    def _probe(self) -> int:
        """D, found by a forward pass in eval mode, because timm's ``num_features`` is not always the output's."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            h = self(torch.zeros(1, self.channels, self.image_size, self.image_size))
        self.train(was_training)
        if h.ndim != 2:
            raise ConfigError(f"backbone {self.name!r} gives features of shape {tuple(h.shape)}; one vector is needed")
        return int(h.shape[1])


def create_backbone(
    section: BackboneSection, channels: int, image_size: int, seed: int, *, fetch: bool = True
) -> Backbone:
    """A timm model without its classifier.

    Args:
        channels: 1 or 3; pretrained weights are adapted to one channel by timm.
        image_size: side of the input in pixels.
        seed: the run's seed; initial weights are a function of it.
        fetch: False leaves pretrained weights out, for a model whose weights are about to be replaced.

    Raises:
        ConfigError: unknown model, a stem, norm or activation that the model cannot have, an image size it cannot
            take, or pretrained weights that cannot be fetched.
    """
    import timm  # longer to import than torch, and a plugin is looked at without it

    name = section.name
    if not timm.is_model(name):
        raise ConfigError(
            f"backbone.name = {name!r} is not a timm model.{did_you_mean(name.split('.')[0], timm.list_models())} "
            "All names: python -c 'import timm; print(timm.list_models())'"
        )
    if section.stem == "small" and section.pretrained:
        raise ConfigError(
            "backbone.stem = small replaces the first layers and cannot keep pretrained weights: "
            "use backbone.stem=original or backbone.pretrained=false"
        )
    changed = next((key for key in ("norm", "activation") if getattr(section, key) != "keep"), None)
    if section.pretrained and changed:
        raise ConfigError(
            f"backbone.{changed} = {getattr(section, changed)} exchanges layers that the pretrained weights were made "
            f"for: use backbone.{changed}=keep or backbone.pretrained=false"
        )
    small = section.stem == "small" or (section.stem == "auto" and image_size <= SMALL_IMAGE and not section.pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "backbone"))
        model = _create(section, channels, image_size, small, fetch)
        if small and not _shrink_stem(model) and section.stem == "small" and not _is_patch_model(name):
            raise ConfigError(
                f"backbone.stem = small is not known for {name!r}: use backbone.stem=original, or a ResNet, ConvNeXt, "
                "EfficientNet, MobileNet or ViT"
            )
        convert(model, name, section.norm, section.activation)
    mean, std = _scaling(section, model, channels)
    try:
        return Backbone(model, name, channels, image_size, mean, std)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        changed = {"keep": "", "none": " without norms", "group": " with group norm"}[section.norm]
        remedy = ", or backbone.norm=keep" if changed else ""
        raise ConfigError(
            f"backbone {name!r}{changed} cannot take images of {image_size} pixels ({reason}): "
            f"choose another data.image_size or backbone.name{remedy}"
        ) from error


def _create(section: BackboneSection, channels: int, image_size: int, small: bool, fetch: bool) -> nn.Module:
    import timm

    extra: dict[str, Any] = {}
    if _is_patch_model(section.name):
        extra["img_size"] = image_size
        if small:
            extra["patch_size"] = _small_patch(image_size)
    try:
        model: nn.Module = timm.create_model(
            section.name, pretrained=section.pretrained and fetch, num_classes=0, in_chans=channels, **extra
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if section.pretrained:
            raise ConfigError(
                f"pretrained weights of {section.name!r} could not be loaded ({reason}): connect to the network once "
                "so that timm can fetch them, or set backbone.pretrained=false"
            ) from error
        raise ConfigError(f"backbone {section.name!r} could not be made ({reason})") from error
    return model


def _small_patch(image_size: int) -> int:
    """Side of a patch so that about 8 x 8 of them, or some more, cover the image without a rest."""
    return next((side for side in range(image_size // 8, 1, -1) if image_size % side == 0), 1)


def _is_patch_model(name: str) -> bool:
    """Whether the model is built for one input size, as vision transformers are."""
    import timm

    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _shrink_stem(model: nn.Module) -> bool:
    """Lets the stem keep the resolution; False when the model has no stem that is known.

    ResNet: 3x3 stride 1 and no max-pool (google-research/simclr, resnet.py, for images up to 32 pixels).
    """
    conv = getattr(model, "conv1", None)
    if conv is not None and hasattr(model, "maxpool"):
        first = conv if isinstance(conv, nn.Conv2d) else next(m for m in conv.modules() if isinstance(m, nn.Conv2d))
        if isinstance(conv, nn.Conv2d):
            model.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        else:
            first.stride = (1, 1)
        model.maxpool = nn.Identity()
        return True
    stem = getattr(model, "conv_stem", None)
    if isinstance(stem, nn.Conv2d):
        stem.stride = (1, 1)
        return True
    stem = getattr(model, "stem", None)
    if isinstance(stem, nn.Sequential) and isinstance(stem[0], nn.Conv2d) and stem[0].stride == (4, 4):
        old = stem[0]
        stem[0] = nn.Conv2d(old.in_channels, old.out_channels, 2, stride=2, bias=old.bias is not None)
        nn.init.trunc_normal_(stem[0].weight, std=0.02)
        if stem[0].bias is not None:
            nn.init.zeros_(stem[0].bias)
        return True
    return False


def _scaling(section: BackboneSection, model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    kind = section.normalize
    if kind == "auto" and section.pretrained:
        config = getattr(model, "pretrained_cfg", {})
        return _channels(config.get("mean", IMAGENET[0]), channels), _channels(config.get("std", IMAGENET[1]), channels)
    if kind == "imagenet":
        return _channels(IMAGENET[0], channels), _channels(IMAGENET[1], channels)
    if kind == "half":
        return (0.5,), (0.5,)
    return (0.0,), (1.0,)


def _channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Three channel values, or their average for a one-channel model."""
    return tuple(values) if channels == len(values) else (sum(values) / len(values),)


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    x = torch.tensor(values, dtype=torch.float32)
    return x.expand(channels).clone().view(1, channels, 1, 1)
