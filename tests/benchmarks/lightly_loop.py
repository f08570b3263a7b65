"""The peer's side of training.py: SimCLR as lightly's documentation writes it, run by an interpreter that has lightly.

    python lightly_loop.py BACKBONE SIZE BATCH DEVICE WORKERS

Reads a number of steps a line and answers with the seconds they took. The clock starts when the first batch is there,
so that starting the workers does not count; what they prepared by then is in lightly's favour.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

IMAGES = 5120


class Pictures(Dataset):  # type: ignore[type-arg]
    """Images in memory, given as PIL pictures as torchvision's CIFAR10 gives them."""

    def __init__(self, size: int) -> None:
        self.arrays = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
        self.transform = SimCLRTransform(
            input_size=size, cj_strength=0.5 if size <= 64 else 1.0, gaussian_blur=0.5 * (size > 64)
        )

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        views: list[torch.Tensor] = self.transform(Image.fromarray(self.arrays[i]))
        return views


def main() -> None:
    name, size, batch, device, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    backbone = timm.create_model(name, num_classes=0)
    dim = backbone(torch.zeros(2, 3, size, size)).shape[1]
    model = torch.nn.Sequential(backbone, SimCLRProjectionHead(dim, dim, 128)).to(device)
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    loader = DataLoader(
        Pictures(size), batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=device == "cuda"
    )
    for line in sys.stdin:
        steps, started = int(line), 0.0
        batches = iter(loader)
        for step in range(steps + 1):
            try:
                a, b = next(batches)
            except StopIteration:
                batches = iter(loader)
                a, b = next(batches)
            if step == 0:
                started = time.perf_counter()
                continue
            loss = criterion(model(a.to(device, non_blocking=True)), model(b.to(device, non_blocking=True)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        seconds = time.perf_counter() - started
        del batches  # the workers end before anybody else's turn
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
