"""Training on several hosts: time per step, bytes on the wire, and on paper the way to 8 and 64 GPUs.

    python tests/benchmarks/nodes.py [--backbone resnet18] [--size 32] [--batch 64] [--rounds 3] [--steps 8]
    python tests/benchmarks/nodes.py --paper

Measured: `clf train` with SimCLR and the same global batch by one process, by two ranks on two hosts and by four ranks
on two hosts. The hosts are network namespaces joined by a veth pair, which needs Linux and root; all ranks share this
machine's cores, and each has one thread. The bytes are those that the first host's device has sent: a run of --steps
more steps less a shorter one, so that what joining and broadcasting take drops out. They are compared with the sum of
a ring's volumes.

What this can show is that the volumes are as computed, and what the exchange costs where the wire is a copy in memory.
It cannot show how a real network behaves, nor a speed-up: more processes on the same cores compute no faster.

On paper (--paper, no root needed): the same volumes for ResNet-50 at 224 px with a batch of 4,096, how long they take
on named links, and which share of the time is left for computing, with and without overlap. The step times are assumed
from --rate, not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

E = 128
"""Columns of a projection."""
FLOAT = 4
"""Bytes of a gradient, a projection, a statistic."""
SHORT = 4
"""Steps of the run that is taken off."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="print the arithmetic only")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2500.0, help="views a second that one GPU is assumed to train on")
    return parser.parse_args()


def ring_all_reduce(size: float, ranks: int) -> float:
    """Bytes that each rank sends, and receives, to have a sum of so many bytes everywhere (Patarasuk, Yuan 2009)."""
    return 2 * (ranks - 1) / ranks * size


def ring_all_gather(size: float, ranks: int) -> float:
    """Bytes that each rank sends, and receives, to have all of so many bytes, a part of them from each rank."""
    return (ranks - 1) / ranks * size


@dataclass(frozen=True)
class Network:
    """What of an encoder and its projector is exchanged."""

    parameters: int
    tensors: int
    statistics: int
    """Numbers in running means and variances."""
    messages: int
    """All-reduces that :func:`clf.distributed.average_gradients` starts for a step."""

    def volumes(self, batch: int, ranks: int) -> dict[str, float]:
        """Bytes that each rank sends in a step of NT-Xent."""
        projections = 2 * batch * E * FLOAT  # two views
        return {
            "gradients": ring_all_reduce(FLOAT * self.parameters, ranks),
            "projections, forward": ring_all_gather(projections, ranks),
            "projections, backward": ring_all_reduce(projections, ranks),
            "batch norm's running statistics": ring_all_reduce(FLOAT * self.statistics, ranks),
            "which gradients there are": ring_all_reduce(FLOAT * self.tensors, ranks),
        }


def described(parameters: Sequence[int], statistics: int) -> Network:
    from clf.distributed import LARGE

    large = sum(count >= LARGE for count in parameters)
    return Network(sum(parameters), len(parameters), statistics, large + 1)


def resnet50() -> Network:
    """ResNet-50 without its classifier, and SimCLR's projector 2048-2048-128."""
    import timm
    import torch

    from clf.nn import mlp

    with torch.device("meta"):
        parts = [timm.create_model("resnet50", num_classes=0), mlp(2048, 2048, E)]
    buffers = [(name, x) for part in parts for name, x in part.named_buffers()]
    running = sum(x.numel() for name, x in buffers if name.endswith(("running_mean", "running_var")))
    return described([p.numel() for part in parts for p in part.parameters()], running)


@dataclass(frozen=True)
class Link:
    """What joins the machines, or the GPUs of one."""

    name: str
    bandwidth: float
    """Bytes a second in one direction, as sold."""
    latency: float
    """Seconds from one end to the other."""


NVLINK = Link("NVLink 4 (450 GB/s)", 450e9, 3e-6)
LINKS = (NVLINK, Link("400 Gb/s InfiniBand", 50e9, 5e-6), Link("100 Gb/s Ethernet", 12.5e9, 20e-6))
BACKWARD = 2 / 3
"""Share of a step that the backward pass takes, and under which gradients could travel."""


def paper(rate: float, batch: int = 4096) -> None:
    network = resnet50()
    print(
        f"ResNet-50 and projector: {network.parameters / 1e6:.2f} M parameters in {network.tensors} tensors, ", end=""
    )
    print(
        f"{network.statistics:,} running statistics, {network.messages} messages of gradients; batch {batch:,}, {E}-d"
    )
    for ranks in (8, 64):
        volumes = network.volumes(batch, ranks)
        compute = 2 * batch / ranks / rate
        print(f"\n{ranks} GPUs, {batch // ranks} images each; each sends and receives in a step:")
        for name, size in volumes.items():
            print(f"  {name:32} {size / 1e6:9.3f} MB")
        print(f"  {'sum':32} {sum(volumes.values()) / 1e6:9.3f} MB")
        print(f"  a step computes for {1e3 * compute:.0f} ms at {rate:,.0f} views a second and GPU (assumed)")
        print(f"  {'link':22} {'gradients':>10} {'the rest':>10} {'now':>8} {'overlapped':>11}")
        for link in LINKS:
            print("  " + " ".join(_row(link, volumes, network, ranks, compute)))


def _row(link: Link, volumes: dict[str, float], network: Network, ranks: int, compute: float) -> tuple[str, ...]:
    """Seconds by size over bandwidth, and for each message the latency of a tree up and down."""
    hops = 2 * math.ceil(math.log2(ranks)) * link.latency
    gradients = volumes["gradients"] / link.bandwidth + network.messages * hops
    rest = (sum(volumes.values()) - volumes["gradients"]) / link.bandwidth + 6 * hops
    hidden = max(0.0, gradients - BACKWARD * compute)
    now, overlapped = (compute / (compute + rest + part) for part in (gradients, hidden))
    times = (f"{1e3 * gradients:7.2f} ms", f"{1e3 * rest:7.2f} ms")
    return f"{link.name:22}", *times, f"{100 * now:6.1f} %", f"{100 * overlapped:9.1f} %"


def words(options: argparse.Namespace, folder: Path, steps: int) -> list[str]:
    return [
        *("train", "--plugin", "simclr", f"run.dir={folder}", "run.name=run", f"method.projection_dim={E}"),
        *("data.name=shapes", f"data.image_size={options.size}", "data.options.train_images=2048"),
        *(
            f"backbone.name={options.backbone}",
            "backbone.stem=original",
            f"train.batch_size={options.batch}",
            f"train.max_steps={steps}",
        ),
        *("train.device=cpu", "train.threads=1", "train.checkpoint_every=1000", "train.epochs=100"),
        *("monitor.log_every=1", "monitor.knn_every=0", "data.options.test_images=16"),
    ]


@dataclass(frozen=True)
class Result:
    """Of one run."""

    seconds: float
    """The median step."""
    sent: int
    """Bytes from the first host to the second."""


def measure(options: argparse.Namespace, per_host: int, steps: int) -> tuple[Result, Network]:
    """One run: by one process, or by so many ranks on each of two hosts."""
    from namespaces import two_hosts

    with tempfile.TemporaryDirectory(prefix="clf-nodes-") as name, two_hosts(Path(name)) as hosts:
        folder = Path(name)
        command = words(options, folder, steps)
        environment = {"OMP_NUM_THREADS": "1"}
        programs: list[list[str]] = [[sys.executable, "-m", "clf", *command]]
        if per_host:
            shared = ["--nnodes", "2", "--nproc-per-node", str(per_host), "--master-addr", "host-a"]
            programs = [
                [sys.executable, "-m", "torch.distributed.run", *shared, "--node-rank", str(i), "-m", "clf", *command]
                for i in range(2)
            ]
        started = [host.start(each, folder, environment) for host, each in zip(hosts, programs, strict=False)]
        codes = [process.wait(1800) for process in started]
        if any(codes):
            sys.exit("\n".join(host.said(folder) for host in hosts[: len(started)]))
        return _read(folder / "run", hosts[0].sent())


def _read(run: Path, sent: int) -> tuple[Result, Network]:
    from clf import checkpoint

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = [line["seconds"] for line in lines if line["kind"] == "train"]
    steps = [after - before for before, after in pairwise(clock[1:])]
    state: dict[str, Any] = checkpoint.load_newest(run / "checkpoints")[0]
    method = state["method"]
    running = sum(x.numel() for name, x in method.items() if name.endswith(("running_mean", "running_var")))
    network = described([method[name].numel() for name in state["parameters"]["main"]], running)
    return Result(statistics.median(steps), sent), network


def main() -> None:
    options = parse()
    if options.paper:
        paper(options.rate)
        return
    from namespaces import why_not

    if why_not():
        sys.exit(why_not())
    print(f"{options.backbone} at {options.size} px, batch {options.batch}, {os.cpu_count()} cores", flush=True)
    kinds = {"one process": 0, "2 ranks on 2 hosts": 1, "4 ranks on 2 hosts": 2}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    sent: dict[str, int] = {}
    network: Network | None = None
    for _ in range(options.rounds):
        for kind, per_host in kinds.items():
            result, network = measure(options, per_host, SHORT + options.steps)
            found[kind].append(result.seconds)
            sent[kind] = result.sent
    assert network is not None
    one = statistics.median(found["one process"])
    for kind, per_host in kinds.items():
        times = [1e3 * seconds for seconds in found[kind]]
        line = f"{kind:20} {statistics.median(times):8.0f} ms a step ({min(times):.0f} to {max(times):.0f}), "
        line += f"{statistics.median(times) / 1e3 / one:.2f} of one process"
        if per_host:
            short, _ = measure(options, per_host, SHORT)
            each = (sent[kind] - short.sent) / options.steps
            expected = sum(network.volumes(options.batch, 2 * per_host).values())
            line += f"; {each / 1e6:.3f} MB a step, {expected / 1e6:.3f} by the formula, ratio {each / expected:.4f}"
        print(line, flush=True)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
