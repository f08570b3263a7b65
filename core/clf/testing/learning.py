"""Checks of a few steps of training, in settings that a method may not have been tried in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from clf.checks import Failed, Skipped
from clf.data import DataSource, Split
from clf.data.source import Images
from clf.groups import Trained
from clf.method import Batch, Context
from clf.testing.probing import (
    Refused,
    TrainingStep,
    around,
    fixed_numbers,
    loss_of,
    losses,
    prepared,
    take_step,
    telling,
    tensors,
)
from clf.testing.subject import Subject, prepare
from clf.trainer import Trainer

STEPS = 6
LARGE = 64 << 20
"""Bytes of weights and buffers above which checks take minutes and gigabytes: optimizers and copies multiply them."""
SIZES = (9, 7, 2)
MOST = 12
"""Steps in which every parameter must have moved."""
NAMED = 4
"""Parameters that are told by name."""


def trains(subject: Subject) -> str:
    """A few steps, with a look at what each returns."""
    with telling(subject, "the training fails"), prepared(subject, {}, STEPS) as trainer, around(trainer, _looked_at):
        found = [take_step(trainer)["loss"] for _ in range(trainer.total_steps)]
        for name, tensor in tensors(trainer.method.state_dict()).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise Failed(f"after {len(found)} steps the weight or buffer {name!r} is not finite")
        state = sum(tensor.nbytes for tensor in tensors(trainer.method.state_dict()).values())
    done = f"{len(found)} steps, loss {found[0]:.4g} at the first and {found[-1]:.4g} at the last"
    if state <= LARGE:
        return done
    return f"{done}; {state >> 20:,} MiB of weights and buffers: smaller values in the class's `tiny` make checks quick"


def _looked_at(training_step: TrainingStep, batch: Batch, ctx: Context) -> Any:
    output = training_step(batch, ctx)
    loss, step = loss_of(output), ctx.step + 1
    if not isinstance(loss, Tensor):
        found = "nothing" if loss is None else f"a {type(loss).__name__}"
        raise Failed(f"training_step returned {found} at step {step}, not a loss or a clf.StepOutput")
    if loss.numel() != 1:
        raise Failed(f"the loss has the shape {tuple(loss.shape)} at step {step}, not that of one number")
    if not bool(torch.isfinite(loss)):
        raise Failed(f"the loss is {float(loss.detach())} at step {step}")
    if not loss.requires_grad:
        raise Failed(f"the loss has no gradient at step {step}: nothing that it is made of needs one")
    return output


def odd_batch(subject: Subject) -> str:
    """Batches of 9, of 7, and of 2 images. A ConfigError is a method's right, where it refuses some sizes only."""
    done: list[int] = []
    refused: list[str] = []
    for size in SIZES:
        try:
            losses(subject, {"train.batch_size": size}, 3, f"with train.batch_size={size}")
            done.append(size)
        except Refused as reason:
            refused.append(str(reason))
    if not done:
        raise Skipped(f"the method refuses every one of the sizes {', '.join(map(str, SIZES))}; {refused[0]}")
    return "; ".join([f"trains with batches of {', '.join(map(str, done))}", *refused])


def one_channel(subject: Subject) -> str:
    """Grey images."""
    config = subject.config()
    data = grey(subject.data(config))
    with telling(subject, "with images of one channel"), prepared(subject, {}, 3, data) as trainer:
        for _ in range(trainer.total_steps):
            take_step(trainer)
        encoder = trainer.method.encoder().eval()
        with torch.no_grad():
            shape = tuple(encoder(torch.zeros(2, 1, data.image_size, data.image_size)).shape)
        if len(shape) != 2 or shape[0] != 2:
            raise Failed(f"encoder() makes features of shape {shape} of 2 grey images, not (2, D)")
    return f"3 steps on grey images, features of {shape[1]} numbers"


def grey(data: DataSource) -> DataSource:
    """The same data with one channel, the mean of all."""
    return replace(data, channels=1, train=_grey(data.train), test=None if data.test is None else _grey(data.test))


def _grey(split: Split) -> Split:
    def mean(images: Images) -> Tensor:
        return images[:].float().mean(1, keepdim=True).round().to(torch.uint8)

    return replace(split, images=mean(split.images), clean=mean(split.clean))


def float64(subject: Subject) -> str:
    """In float64, all of it: a loss of another type has lost digits on the way."""
    doing, exact = "with train.precision=fp64", {"train.precision": "fp64"}
    with telling(subject, doing), prepared(subject, exact, 3) as trainer, around(trainer, _in_double):
        for _ in range(trainer.total_steps):
            take_step(trainer)
    return "3 steps with a loss in float64"


def _in_double(training_step: TrainingStep, batch: Batch, ctx: Context) -> Any:
    output = training_step(batch, ctx)
    loss = loss_of(output)
    if loss.dtype != torch.float64:
        raise Failed(f"with train.precision=fp64 the loss is of type {_name(loss.dtype)} at step {ctx.step + 1}")
    return output


def bf16(subject: Subject) -> str:
    """Under autocast to bfloat16; what is kept between steps stays of its type."""
    with telling(subject, "with train.precision=bf16"), prepared(subject, {"train.precision": "bf16"}, 4) as trainer:
        before = {name: tensor.dtype for name, tensor in tensors(trainer.method.state_dict()).items()}
        first, *_ = [take_step(trainer)["loss"] for _ in range(trainer.total_steps)]
        for name, tensor in tensors(trainer.method.state_dict()).items():
            if tensor.dtype != before.get(name, tensor.dtype):
                raise Failed(
                    f"with train.precision=bf16 the buffer {name!r} was of type {_name(before[name])} and is of type "
                    f"{_name(tensor.dtype)} after {trainer.step} steps"
                )
    return f"4 steps, loss {first:.4g} at the first"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass
class _Watched:
    """A parameter group while it is trained."""

    name: str
    group: Trained
    before: list[Tensor] = field(default_factory=list)
    reached: set[Parameter] = field(default_factory=set)
    """By a gradient that is not zero."""
    left: list[tuple[Parameter, str]] = field(default_factory=list)
    """Those that did not learn, in the end."""

    def begin(self) -> None:
        """Movements count from now on."""
        self.before = [p.detach().clone() for p in self.group.parameters]
        for settings in self.group.optimizer.param_groups:
            settings["weight_decay"] = 0.0  # which moves parameters that get no gradient
        self.group.optimizer.register_step_pre_hook(self._look)

    def _look(self, *unused: object) -> None:
        self.reached.update(p for p in self.group.parameters if p.grad is not None and bool(p.grad.any()))

    def end(self) -> None:
        """Movements no longer count."""
        self.left = self.lacking()

    def lacking(self) -> list[tuple[Parameter, str]]:
        """Parameters that do not learn, and why."""
        found = []
        for p, before in zip(self.group.parameters, self.before, strict=True):
            if p not in self.reached:
                found.append((p, "no gradient" if p.grad is None else "its gradient is zero"))
            elif torch.equal(p, before):
                found.append((p, "it is as it was at the start, in spite of a gradient"))
        return found


def parameters_move(subject: Subject) -> str:
    """Steps without weight decay until every parameter of every group has had a gradient and has moved."""
    plain = {
        "optimizer.name": "adam",  # moves by the smallest gradient, and not at all without one
        "optimizer.weight_decay": 0.0,
        "schedule.name": "constant",
        "schedule.warmup_epochs": 0,
        "train.max_steps": MOST,
    }
    with telling(subject, "the training fails"), fixed_numbers(), subject.trainer(subject.config(plain)) as trainer:
        names = {p: name for name, p in trainer.method.named_parameters()}
        groups = [_Watched(name, group) for name, group in trainer.groups.items()]
        _require_registered(groups, names)
        start = {p: p.detach().clone() for p in names}
        _train_watched(trainer, groups)
        for group in groups:
            if group.left:
                raise Failed(_sentence(group, names, trainer))
        known = {p for group in groups for p in group.group.parameters}
        idle = [names[p] for p in names if p.requires_grad and p not in known and torch.equal(p, start[p])]
        if idle:
            raise Failed(
                f"no group of parameter_groups() has {_list(idle)}, and nothing else moves "
                f"{'it' if len(idle) == 1 else 'them'}, though gradients are computed"
            )
        frozen = sum(not p.requires_grad for p in names)
    where = f"{len(known)} parameters in {', '.join(repr(g.name) for g in groups)} moved within {trainer.step} steps"
    return where + (f"; not to be trained: {frozen}" if frozen else "")


def _train_watched(trainer: Trainer, groups: list[_Watched]) -> None:
    """Preparation groups are watched during the preparation, the others from the first training step on."""
    early = [group for group in groups if group.group.preparation]
    late = [group for group in groups if not group.group.preparation]
    for group in early:
        group.begin()
    prepare(trainer)
    for group in early:
        group.end()
    for group in late:
        group.begin()
    while trainer.step < trainer.total_steps and (trainer.step == 0 or any(group.lacking() for group in late)):
        take_step(trainer)
    for group in late:
        group.end()


def _require_registered(groups: list[_Watched], names: dict[Parameter, str]) -> None:
    for group in groups:
        if not all(p in names for p in group.group.parameters):
            raise Failed(
                f"the group {group.name!r} has a parameter that is not registered on the method, so it is neither "
                "saved nor moved to the device"
            )


def _sentence(group: _Watched, names: dict[Parameter, str], trainer: Trainer) -> str:
    steps = f"{trainer.preparation_steps} steps of preparation" if group.group.preparation else f"{trainer.step} steps"
    return (
        f"{len(group.left)} of the {len(group.group.parameters)} parameters of group {group.name!r} do not learn in "
        f"{steps}: {_list([names[p] for p, _ in group.left])} ({group.left[0][1]})"
    )


def _list(names: list[str]) -> str:
    """The first few names."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + rest
