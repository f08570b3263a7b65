"""Memory of a training step against the batch size, in one piece and with `train.chunk_size`.

    python tests/benchmarks/chunking.py [--backbone resnet18] [--size 64] [--chunk 64] [--batches 64 128 256 512]

Each measurement is a process of its own: its peak of resident memory (CPU) or of allocated memory (CUDA) in three
steps, less what the process held before the first step. Seconds per step are printed beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def measure(backbone: str, size: int, batch: int, chunk: int | None, device: str) -> dict[str, float]:
    """In this process: bytes and seconds of a step."""
    import torch

    from clf.backbones import create_backbone
    from clf.config import BackboneSection
    from clf.losses import nt_xent

    network = create_backbone(BackboneSection(name=backbone), 3, size, seed=0).to(device)
    network.accelerate(channels_last=True, chunk_size=chunk, compiled=False)
    x = torch.rand(2 * batch, 3, size, size, device=device)

    def step() -> None:
        network.zero_grad()
        a, b = network(x).chunk(2)
        nt_xent(a, b, 0.5).backward()

    small, x = x, x[:8]
    step()  # gradients and workspaces are there
    x = small
    cuda = device.startswith("cuda")
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    after = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"mib": (after - before) / 2**20, "seconds": min(seconds)}


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        print(json.dumps(measure(**json.loads(sys.argv[2]))))
        return
    options = parse()
    print(
        f"{options.backbone}, {options.size} px, two views, {options.device}; MiB beyond the start and seconds a step"
    )
    print(f"{'batch':>6} {'in one piece':>22} {f'chunks of {options.chunk} rows':>26}")
    for batch in options.batches:
        row = f"{batch:6}"
        for chunk in (None, options.chunk):
            case = {"backbone": options.backbone, "size": options.size, "batch": batch, "chunk": chunk}
            words = [sys.executable, __file__, "--child", json.dumps({**case, "device": options.device})]
            found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            row += f"{found['mib']:12.0f} MiB {found['seconds']:7.2f} s"
        print(row, flush=True)


if __name__ == "__main__":
    main()
