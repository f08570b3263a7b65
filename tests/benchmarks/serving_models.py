"""Models for ``serving.py``, with random weights: the work is the same as with trained ones.

    python tests/benchmarks/serving_models.py timm NAME FOLDER     # a network of timm
    python tests/benchmarks/serving_models.py clip TOWER FOLDER    # CLIP's ViT-B/32: FOLDER, and TOWER its twin

The first needs torch, timm and onnx; the second transformers and onnx as well. Each FOLDER gets ``encoder.onnx`` and
``manifest.json`` with the contract of ``clf export``: uint8 (N, 224, 224, 3) in, unit vectors out. TOWER becomes a
model folder of transformers with the very same weights and a vocabulary of single bytes, which loads without a network.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Embedder(nn.Module):
    """images uint8 (N, S, S, 3) -> unit vectors (N, D)."""

    def __init__(self, encoder: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(torch.float32) / 255  # (N, 3, S, S)
        return F.normalize(self.encoder((x - self.mean) / self.std), dim=1)  # (N, D)


class ClipVision(nn.Module):
    """The image side of a CLIPModel: pixels (N, 3, S, S) -> projection (N, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.model.get_image_features(pixel_values=x)
        return projected


def write(embedder: nn.Module, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.arange(2 * SIZE * SIZE * 3).remainder(256).to(torch.uint8).view(2, SIZE, SIZE, 3)
    file = folder / "encoder.onnx"
    torch.onnx.export(
        embedder.eval(),
        (example,),
        str(file),
        input_names=["images"],
        output_names=["embeddings"],
        opset_version=18,
        dynamo=True,
        external_data=False,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    with torch.inference_mode():
        dim = embedder(example).shape[1]
    facts = {
        "format": 1,
        "name": name,
        "image_size": SIZE,
        "dim": dim,
        "channels": 3,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "plugin": "none",
        "backbone": name,
        "parity": {"images": 1, "min_cosine": 1.0, "max_abs_error": 0.0},
    }
    (folder / "manifest.json").write_text(json.dumps(facts, indent=2))


def timm_model(name: str, folder: Path) -> None:
    import timm

    torch.manual_seed(0)
    encoder = timm.create_model(name, pretrained=False, num_classes=0)
    write(Embedder(encoder, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), folder, name)


def clip_model(tower: Path, folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    tower.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tower / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tower / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tower / "vocab.json"), str(tower / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    model = CLIPModel(CLIPConfig(text_config={"vocab_size": len(words), **ends})).eval()
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(tower)
    model.save_pretrained(tower)
    model.config._attn_implementation = "eager"
    write(Embedder(ClipVision(model), CLIP_MEAN, CLIP_STD), folder, "clip-vit-b-32")


if __name__ == "__main__":
    kind, first, last = sys.argv[1:]
    if kind == "timm":
        timm_model(first, Path(last))
    else:
        clip_model(Path(first), Path(last))
