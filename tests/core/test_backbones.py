"""timm models as encoders: stems, channels, scaling, determinism, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clf.backbones import IMAGENET, create_backbone
from clf.config import BackboneSection
from clf.errors import ConfigError
from clf.surgery import convert


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


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layers(module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, kind)]


NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def test_a_resnet18_without_norms_has_the_parameters_of_the_one_of_ebclr() -> None:
    """Kim and Ye, NeurIPS 2022: a 3x3 stem without max-pool, biases on all convolutions, a 512-d output."""
    free = {"norm": "none", "activation": "leaky_relu", "normalize": "half"}
    backbone = create_backbone(section("resnet18", **free), 3, 32, 0)
    assert count(backbone) == 11_164_032
    assert count(create_backbone(section("resnet18", **free), 1, 28, 0)) == 11_162_880
    assert count(create_backbone(section("resnet18"), 3, 32, 0)) == 11_168_832
    assert not layers(backbone, NORMS) and not layers(backbone, nn.ReLU)
    slopes = [layer.negative_slope for layer in layers(backbone, nn.LeakyReLU)]
    assert slopes == [0.2] * 17


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "resnet50", "test_efficientnet", "test_byobnet"])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_without_batch_norm_a_row_does_not_know_the_others(name: str, norm: str) -> None:
    backbone = create_backbone(section(name, norm=norm), 3, 32, 0).train()
    assert not layers(backbone, nn.BatchNorm2d)
    assert bool(layers(backbone, nn.GroupNorm)) is (norm == "group")
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together = backbone(x)
        assert float(together.std(0).max()) > 0
        torch.testing.assert_close(torch.cat([backbone(x[:1]), backbone(x[1:])]), together, rtol=1e-4, atol=1e-6)
    buffers = {key for key, _ in backbone.named_buffers()}
    assert buffers == {"mean", "std"}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_without_norms_convolutions_start_like_pytorchs_and_by_the_seed(name: str) -> None:
    def made(seed: int) -> list[nn.Module]:
        return layers(create_backbone(section(name, norm="none"), 3, 32, seed), nn.Conv2d)

    torch.manual_seed(1)
    first = made(5)
    torch.manual_seed(2)
    again, other = made(5), made(6)
    for one, same, different in zip(first, again, other, strict=True):
        assert isinstance(one, nn.Conv2d) and one.bias is not None
        fan_in = one.weight[0].numel()
        for values in (one.weight, one.bias):
            assert float(values.detach().abs().max()) <= fan_in**-0.5
        assert float(one.weight.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.25)
        assert torch.equal(one.weight, same.weight) and torch.equal(one.bias, same.bias)  # type: ignore[arg-type]
        assert not torch.equal(one.weight, different.weight)  # type: ignore[arg-type]


def test_group_norm_takes_32_groups_or_fewer_and_the_start_of_the_batch_norm() -> None:
    plain = create_backbone(section("resnet18"), 3, 32, 0)
    grouped = create_backbone(section("resnet18", norm="group"), 3, 32, 0)
    assert count(grouped) == count(plain)
    assert all(torch.equal(p, dict(grouped.named_parameters())[key]) for key, p in plain.named_parameters())
    found = layers(grouped, nn.GroupNorm)
    assert {norm.num_groups for norm in found} == {32}
    starts = [float(norm.weight.detach().abs().max()) for norm in found if isinstance(norm, nn.GroupNorm)]
    assert 0.0 in starts and 1.0 in starts
    narrow = layers(create_backbone(section("test_resnet", norm="group"), 3, 32, 0), nn.GroupNorm)
    for norm in narrow:
        assert isinstance(norm, nn.GroupNorm)
        assert 32 % norm.num_groups == 0 and norm.num_channels % norm.num_groups == 0 and norm.num_groups > 1


@pytest.mark.parametrize(
    ("activation", "kind"),
    [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("gelu", nn.GELU), ("silu", nn.SiLU)],
)
def test_activations_are_exchanged_and_gates_are_not(activation: str, kind: type[nn.Module]) -> None:
    every = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU)
    for name in ("test_resnet", "test_efficientnet"):
        before = create_backbone(section(name), 3, 32, 0)
        after = create_backbone(section(name, activation=activation), 3, 32, 0)
        assert len(layers(after, kind)) == len(layers(after, every)) == len(layers(before, every)) > 0
        assert len(layers(after, nn.Sigmoid)) == len(layers(before, nn.Sigmoid))
        assert all(torch.equal(p, dict(after.named_parameters())[key]) for key, p in before.named_parameters())
    norms = layers(create_backbone(section("test_efficientnet", norm="none", activation=activation), 3, 32, 0), kind)
    assert len(norms) == len(layers(before, every))


def test_a_network_without_any_norm_is_left_as_it_is() -> None:
    plain = create_backbone(section("test_nfnet"), 3, 32, 0).state_dict()
    free = create_backbone(section("test_nfnet", norm="none"), 3, 32, 0).state_dict()
    assert all(torch.equal(plain[key], value) for key, value in free.items())


def test_norms_that_cannot_be_exchanged_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"take away LayerNorm, without which 'test_vit'.*set backbone\.norm=keep"):
        create_backbone(section("test_vit", norm="none"), 3, 32, 0)
    for name, norm in (("resnetv2_50d_evos", "EvoNorm2dS0"), ("resnetv2_50d_frn", "FilterResponseNorm")):
        with pytest.raises(ConfigError, match=rf"take away {norm}.*set backbone\.norm=keep"):
            create_backbone(section(name, norm="none"), 3, 32, 0)
    with pytest.raises(ConfigError, match=r"'skresnet18' with group norm cannot take .* or backbone\.norm=keep"):
        create_backbone(section("skresnet18", norm="group"), 3, 32, 0)  # a norm of its 1x1 maps has one value a group
    with pytest.raises(ConfigError, match=r"'test_vit' has no batch norm to replace: set backbone\.norm=keep"):
        create_backbone(section("test_vit", norm="group"), 3, 32, 0)
    for key, value in (("norm", "none"), ("norm", "group"), ("activation", "gelu")):
        with pytest.raises(ConfigError, match=rf"backbone\.{key} = {value} exchanges layers .* backbone\.{key}=keep"):
            create_backbone(section("resnet18", pretrained=True, **{key: value}), 3, 224, 0)
    with pytest.raises(ConfigError, match=r"no activation layers were found in 'linear'"):
        convert(nn.Sequential(nn.Linear(2, 2)), "linear", "keep", "relu")
