"""torch.compile: when it is used, what stands in its way, and that it changes nothing but speed."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from clf import compiling
from clf.backbones import create_backbone
from clf.config import BackboneSection
from clf.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def without_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)


def test_auto_compiles_for_cuda_only_and_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "obstacle", lambda device: None)
    assert compiling.wanted("auto", CUDA)
    assert not compiling.wanted("auto", CPU)
    assert not compiling.wanted("off", CUDA)
    assert compiling.wanted("on", CPU)
    monkeypatch.setattr(compiling, "obstacle", lambda device: "triton is not installed")
    assert not compiling.wanted("auto", CUDA)


def test_a_missing_compiler_is_named_when_compilation_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compilers(monkeypatch)
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(ConfigError, match=r"train.compile = on, but there is no C\+\+ compiler \(icpx\)"):
        compiling.wanted("on", CPU)
    assert not compiling.wanted("auto", CPU)
    assert compiling.obstacle(torch.device("mps")) == "torch.compile does not serve mps"


def test_blocks_of_one_shape_are_compiled_one_by_one_and_other_networks_whole() -> None:
    def compiled_parts(name: str, **options: int) -> list[str]:
        model = timm.create_model(name, num_classes=0, **options)
        compiling.compile_in_place(model)
        return [name for name, part in model.named_modules() if part._compiled_call_impl is not None]

    assert compiled_parts("test_resnet") == [""]
    assert compiled_parts("vit_tiny_patch16_224", img_size=32) == [f"blocks.{i}" for i in range(12)]


@pytest.mark.slow
@pytest.mark.skipif(compiling.obstacle(CPU) is not None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
def test_a_compiled_backbone_gives_the_same_features_and_keeps_its_names() -> None:
    plain = create_backbone(BackboneSection(name="test_vit", stem="original"), 3, 32, seed=0)
    fast = copy.deepcopy(plain)
    fast.accelerate(channels_last=True, chunk_size=None, compiled=True)
    x = torch.rand(8, 3, 32, 32)
    assert torch.allclose(fast(x), plain(x), atol=1e-5)
    assert list(fast.state_dict()) == list(plain.state_dict())
