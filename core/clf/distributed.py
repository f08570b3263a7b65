"""Ranks under ``torchrun``: several processes that together do exactly what one process would do.

There is no wrapper round the method. Weights are broadcast once; a method computes the mean loss of its local rows
against gathered ones; the backward of :func:`gather` sums over ranks and :func:`average_gradients` then averages, which
gives the gradient of the mean over all rows (the scheme of google-research/simclr, objective.py). Running statistics
of batch norm are averaged after each step. So weights, buffers and optimizers are the same on every rank, and the
checkpoint of rank 0 is that of all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clf import reachable
from clf.errors import ClfError, ConfigError, TrainingError, in_one_line

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others, whose machines are there, before it takes them for dead.

A rank that was killed is noticed at once, a machine that is gone after ``train.unreachable_seconds``.
"""

UNREACHABLE = 60
"""Seconds of silence after which a machine is taken for gone, where nothing else is said."""

PATIENCE = timedelta(hours=24)
"""How long ranks that have loaded their data wait for those that are still at it."""

LARGE = 2**16
"""Gradients of so many elements travel alone and need not be copied; smaller ones share a message."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None
    """For :func:`wait_for_all`, whose timeout allows for what may take hours on one machine: loading data."""
    control: dist.ProcessGroup | None = None
    """Carries flags between CPUs, so that agreeing on one does not wait for the GPU; None: the default group."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start(device: str, unreachable: int = UNREACHABLE) -> Ranks:
    """Joins the process group that ``torchrun`` describes in the environment, or stands alone without it.

    Args:
        unreachable: seconds of silence after which another machine is taken for gone.

    Raises:
        ConfigError: the device cannot be used, or the environment describes half a group.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _choose(device, local_rank)
    if world_size == 1:
        return Ranks(device=chosen)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment says WORLD_SIZE = {world_size}, but not {', '.join(missing)}: start with "
            "torchrun --nproc-per-node N $(which clf) train ..., or unset WORLD_SIZE to train with one process"
        )
    cuda = chosen.type == "cuda"
    if cuda:
        torch.cuda.set_device(chosen)
    with reachable.noticing(unreachable):
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT) if cuda else None
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert not isinstance(control, int) and not isinstance(patient, int)  # which would mean groups without this rank
    return Ranks(dist.get_rank(), dist.get_world_size(), chosen, patient, control)


def stop() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together(device: str, unreachable: int = UNREACHABLE) -> Iterator[Ranks]:
    """The ranks for as long as they work together; what they raise when one is gone becomes one plain sentence.

    Raises:
        TrainingError: another rank ended, cannot be reached or no longer answers.
    """
    joined = False
    try:
        ranks = start(device, unreachable)
        joined = True
        yield ranks
    except RuntimeError as error:
        if not _leaves_others_waiting(error):
            stop()
        if not is_of_peers(error):
            raise
        raise _lost(error, unreachable, joined) from error
    except BaseException as error:
        if _leaves_others_waiting(error):
            raise
        stop()
        raise
    stop()


def _lost(error: RuntimeError, unreachable: int, joined: bool) -> TrainingError:
    rank, minutes = os.environ.get("RANK", "?"), f"{TIMEOUT.total_seconds() / 60:.0f} minutes"
    if not joined:
        return TrainingError(
            f"rank {rank} could not join the others ({_brief(error)}). Another rank may have ended, "
            "which then says why. Else see that every machine reaches the others at all ports, by the address that its "
            "own name has there: GLOO_SOCKET_IFNAME=DEVICE, and for GPUs NCCL_SOCKET_IFNAME=DEVICE, choose another"
        )
    return TrainingError(
        f"rank {rank} lost the other ranks: one of them ended, its machine has been unreachable for {unreachable} "
        f"seconds, or it has not answered for {minutes} ({_brief(error)}). What that rank printed, or the launcher's "
        "report on it, says why. Once it is mended, start again with --resume auto"
    )


def _leaves_others_waiting(error: BaseException) -> bool:
    """Whether leaving the group in order would wait for ranks that wait for this one; its end tells them enough.

    All ranks stop together for a signal. Gloo does not wait.
    """
    return dist.is_initialized() and dist.get_backend() != "gloo" and not isinstance(error, KeyboardInterrupt)


def is_of_peers(error: RuntimeError) -> bool:
    """Whether another rank is the cause. Gloo raises plain RuntimeErrors, which name its source files."""
    said = in_one_line(error)
    return isinstance(error, dist.DistError) or "gloo" in said or "by peer" in said


def _brief(error: Exception) -> str:
    """The first sentence of a library's message, without the places in its source."""
    text = re.sub(r"\[/\S+\] ", "", " ".join(str(error).split()))
    return text.partition(". ")[0][:160]


def _choose(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return _own_gpu(local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = _own_gpu(local_rank)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"train.device = {device} cannot be used here ({reason}): set cpu, cuda or auto") from error
    return chosen


def _own_gpu(local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    if count and local_rank >= count:
        raise ConfigError(
            f"there are more processes on this machine than its {count} GPUs: start torchrun with "
            f"--nproc-per-node {count} or less, or set train.device=cpu"
        )
    return torch.device("cuda", local_rank)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rows = slice(rank * len(x), (rank + 1) * len(x))
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows], None, None


def gather(x: Tensor, ranks: Ranks) -> Tensor:
    """(N, ...) on each rank -> (M, ...) on all ranks in rank order; its backward sums the gradients of all ranks."""
    if ranks.world_size == 1:
        return x
    gathered: Tensor = _Gather.apply(x, ranks.rank, ranks.world_size)
    return gathered


def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replaces each gradient by its mean over ranks.

    All ranks send all parameters in one order, whichever of them got a gradient here, so that they cannot fall out of
    step. A parameter without one counts as zero if another rank has one, and stays without if none has.
    """
    if ranks.world_size == 1:
        return
    gradients = [_dense(p) for p in parameters]
    large = [g for g in gradients if g.numel() >= LARGE]
    small: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        if gradient.numel() < LARGE:
            small.setdefault(gradient.dtype, []).append(gradient.reshape(-1))
    here = torch.tensor([float(p.grad is not None) for p in parameters])
    shared = {dtype: torch.cat(parts) for dtype, parts in small.items()}
    messages = [*large, *shared.values()]
    under_way = [dist.all_reduce(message, async_op=True) for message in messages]
    under_way.append(dist.all_reduce(here, async_op=True, group=ranks.control))
    for work in under_way:
        work.wait()
    for message in messages:
        message /= ranks.world_size
    for dtype, parts in small.items():
        for part, mean in zip(parts, torch.split(shared[dtype], [len(part) for part in parts]), strict=True):
            part.copy_(mean)
    anywhere = here.tolist() if any(p.grad is None for p in parameters) else [1.0] * len(parameters)
    for parameter, gradient, count in zip(parameters, gradients, anywhere, strict=True):
        mean = gradient.permute(0, 3, 1, 2) if _is_channels_last(parameter) else gradient
        if parameter.grad is None:
            parameter.grad = mean if count else None
        elif parameter.grad.data_ptr() != mean.data_ptr():
            parameter.grad.copy_(mean)


def _dense(parameter: nn.Parameter) -> Tensor:
    """The gradient in the order of the parameter's memory, which is the same on all ranks; zeros where there is none.

    It shares the gradient's memory if that has the same order, else it is a copy.
    """
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (gradient.permute(0, 2, 3, 1) if _is_channels_last(parameter) else gradient).contiguous()


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def average_statistics(module: nn.Module, ranks: Ranks) -> None:
    """Replaces the running statistics of batch norms by their means over ranks, so that no rank's images count less."""
    if ranks.world_size == 1:
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    running = [x for m in norms for x in (m.running_mean, m.running_var) if x is not None]
    if not running:
        return
    flat = torch.cat(running)
    dist.all_reduce(flat)
    flat /= ranks.world_size
    for one, mean in zip(running, torch.split(flat, [len(x) for x in running]), strict=True):
        one.copy_(mean)


def broadcast(module: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the parameters and buffers of rank 0; an extra state of plain values stays as each made it."""
    if ranks.world_size == 1:
        return
    for tensor in module.state_dict().values():
        if not isinstance(tensor, Tensor):
            continue
        plain = tensor.contiguous()  # itself, unless its memory is in another order
        dist.broadcast(plain, src=0)
        if plain is not tensor:
            tensor.copy_(plain)


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a tensor over ranks; used for metrics."""
    if ranks.world_size == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / ranks.world_size


def every_rank(values: Tensor, ranks: Ranks) -> Tensor:
    """(K,) on each rank -> (world size, K) on all."""
    parts = [torch.empty_like(values) for _ in range(ranks.world_size)]
    if ranks.world_size == 1:
        return values[None]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def wait_for_all(ranks: Ranks) -> None:
    """Waits, for hours if need be, until all ranks are here. A rank that dies meanwhile ends the waiting."""
    if ranks.world_size > 1:
        dist.barrier(group=ranks.patient)


def largest(values: Iterable[float], ranks: Ranks) -> list[float]:
    """Each value's maximum over ranks, in one message between the CPUs, so that all ranks decide alike."""
    table = torch.tensor(list(values), dtype=torch.float64)
    if ranks.world_size > 1:
        dist.all_reduce(table, op=dist.ReduceOp.MAX, group=ranks.control)
    found: list[float] = table.tolist()
    return found


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on at least one rank, so that all ranks decide alike."""
    return flag if ranks.world_size == 1 else bool(largest([float(flag)], ranks)[0])


def on_main(action: Callable[[], T], ranks: Ranks) -> T | None:
    """What an action gives on rank 0, None on the others. They wait for it, and fail if it fails.

    Raises:
        ClfError: that of the action; on other ranks a :class:`TrainingError` that refers to it.
    """
    result: T | None = None
    failure: ClfError | None = None
    if ranks.is_main:
        try:
            result = action()
        except ClfError as error:
            failure = error
    if any_rank(failure is not None, ranks):
        raise failure or TrainingError("rank 0 could not go on; its message says why")
    return result


def from_main(text: str, ranks: Ranks) -> str:
    """Rank 0's text, on every rank."""
    if ranks.world_size == 1:
        return text
    content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
    length = int(largest([len(content)], ranks)[0])
    shared = torch.zeros(length, dtype=torch.uint8)
    if ranks.is_main:
        shared.copy_(content)
    dist.broadcast(shared, src=0, group=ranks.control)
    return shared.numpy().tobytes().decode()
