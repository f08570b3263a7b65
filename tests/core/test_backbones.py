"""timm models as encoders: stems, channels, scaling, determinism, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clf.backbones import IMAGENET, create_backbone
from clf.config import BackboneSection
from clf.errors import ConfigError


def section(name: str, **values: object) -> BackboneSection:
    return BackboneSection.model_validate({"name": name, **values})


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "resnet10t"])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_features_are_vectors_of_the_stated_width(name: str, channels: int, size: int) -> None:
    backbone = create_backbone(section(name), channels, size, seed=0).eval()
    with torch.no_grad():
        assert backbone(torch.rand(2, channels, size, size)).shape == (2, backbone.dim)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_small_stem_keeps_32_pixels_to_a_4x4_map(name: str) -> None:
    backbone = create_backbone(section(name), 3, 32, seed=0)
    shapes = []
    backbone.model.layer4.register_forward_hook(lambda *call: shapes.append(call[2].shape[2:]))  # type: ignore[union-attr, operator]
    backbone.eval()(torch.rand(1, 3, 32, 32))
    assert shapes == [(4, 4)]
    assert backbone.model.conv1.kernel_size == (3, 3) and backbone.model.conv1.stride == (1, 1)  # type: ignore[union-attr]


def test_auto_keeps_the_original_stem_of_larger_images() -> None:
    assert create_backbone(section("resnet18"), 3, 96, 0).model.conv1.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert not isinstance(create_backbone(section("resnet18"), 3, 96, 0).model.maxpool, nn.Identity)
    small = create_backbone(section("resnet18", stem="small"), 3, 96, 0)
    assert isinstance(small.model.maxpool, nn.Identity)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = create_backbone(section("test_resnet"), 3, 32, seed=5).state_dict()
    torch.manual_seed(2)
    again = create_backbone(section("test_resnet"), 3, 32, seed=5).state_dict()
    other = create_backbone(section("test_resnet"), 3, 32, seed=6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_scaling_is_inside_and_out_of_the_checkpoint() -> None:
    backbone = create_backbone(section("test_resnet", normalize="imagenet"), 3, 32, 0).eval()
    plain = create_backbone(section("test_resnet", normalize="none"), 3, 32, 0).eval()
    x = torch.rand(2, 3, 32, 32)
    scaled = (x - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
    torch.testing.assert_close(backbone(x), plain(scaled))
    assert not {"mean", "std"} & set(backbone.state_dict())


def test_unknown_names_and_impossible_settings_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'resnet81' is not a timm model\. Did you mean"):
        create_backbone(section("resnet81"), 3, 32, 0)
    with pytest.raises(ConfigError, match="cannot keep pretrained weights"):
        create_backbone(section("resnet18", stem="small", pretrained=True), 3, 32, 0)
    with pytest.raises(ConfigError, match=r"backbone\.stem = small is not known for 'vgg11'"):
        create_backbone(section("vgg11", stem="small"), 3, 64, 0)

    def offline(*args: object, **kwargs: object) -> nn.Module:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ConfigError, match=r"pretrained weights of 'resnet18' could not be loaded .*cannot reach"):
        create_backbone(section("resnet18", pretrained=True), 3, 224, 0)
