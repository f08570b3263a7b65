"""Checks that two ways to compute a training agree: in chunks and whole, compiled and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch._dynamo
from torch import nn

from clf.backbones import Backbone
from clf.checks import Failed, Skipped
from clf.errors import ConfigError
from clf.testing.probing import (
    Traces,
    apart,
    fixed_numbers,
    prepared,
    same_or_skip,
    take_step,
    telling,
    traced,
)
from clf.testing.subject import Subject, prepare
from clf.trainer import Trainer

CHUNK = 5
CHUNKED_STEPS = 3
CHUNKED_APART = 1e-7
"""Of the loss, or of the largest gradient, in float64."""
NORM_FREE = {"backbone.norm": "none", "backbone.activation": "leaky_relu"}
COMPILED_STEPS = 6
COMPILED_APART = 1e-3
"""Of the loss, or of the largest gradient, in float32; compiled code rounds in another order."""
OFTEN = 3
"""Steps after the first two that compile anew, from which on it is each step."""


def chunks(subject: Subject) -> str:
    """Loss and gradients of the first steps with the network run on all rows at once, and on a few at a time."""
    try:
        subject.experiment(subject.config({**NORM_FREE, "train.precision": "fp64"}))
    except ConfigError as error:
        raise Skipped(
            f"chunks equal the whole batch only in a network without batch norm, and here is none: {error}"
        ) from None
    whole, _ = _in_chunks(subject, None)
    parts, rows = _in_chunks(subject, CHUNK)
    if rows > CHUNK:
        raise Failed(
            f"with train.chunk_size={CHUNK} the network is given {rows} rows at once, so that a large batch does not "
            "fit in memory: something calls a part of the backbone, such as self.backbone.model"
        )
    if difference := apart(whole, parts, CHUNKED_APART):
        same_or_skip(lambda: _in_chunks(subject, None)[0], whole)
        raise Failed(f"without chunks and with train.chunk_size={CHUNK}, in float64, {difference}")
    return f"{CHUNKED_STEPS} steps in float64 with chunks of {CHUNK} rows as with all at once"


def _in_chunks(subject: Subject, size: int | None) -> tuple[Traces, int]:
    """Some steps, and the most rows that a network was given."""
    changes = {**NORM_FREE, "train.precision": "fp64", "train.chunk_size": size}
    most = [0]

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        most[0] = max(most[0], len(given[0]))

    doing = "without batch norm" if size is None else f"with train.chunk_size={size}"
    with telling(subject, doing), prepared(subject, changes, CHUNKED_STEPS) as trainer:
        for network in _networks(trainer):
            network.model.register_forward_pre_hook(count)
        return _traces(trainer), most[0]


def compiled(subject: Subject) -> str:
    """The first steps with the network traced by torch.compile, and without. No machine code is made of the graphs:
    what depends on the method is that they can be traced, and how often."""
    graphs: list[int] = []
    with telling(subject, "with train.compile=on"):
        fast = _compiled(subject, graphs)
    anew = [i for i in range(3, len(graphs) + 1) if graphs[i - 1] > graphs[i - 2]]
    if len(anew) >= OFTEN:
        raise Failed(
            f"torch.compile compiles the network anew in steps {', '.join(map(str, anew))}, {graphs[-1]} graphs in "
            f"{len(graphs)} steps: it is called with another number of rows each time, or changed between the steps"
        )
    slow = _eager(subject)
    if difference := apart(_first(slow), _first(fast), COMPILED_APART):
        same_or_skip(lambda: _eager(subject), slow)
        raise Failed(f"without and with train.compile=on {difference}")
    return f"{graphs[-1]} graph{'s' if graphs[-1] > 1 else ''} in {len(graphs)} steps"


def _eager(subject: Subject) -> Traces:
    with telling(subject, "the training fails"), prepared(subject, {}, COMPILED_STEPS) as trainer:
        return _traces(trainer)


def _compiled(subject: Subject, graphs: list[int]) -> Traces:
    """As many steps with compiled networks; ``graphs`` is told how many there are after each step."""
    from torch._dynamo.backends.debugging import aot_eager

    made = [0]

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        made[0] += 1
        return aot_eager(graph, inputs)

    config = subject.config({"train.max_steps": COMPILED_STEPS})
    with _compiling_anew(), fixed_numbers(), subject.trainer(config) as trainer:
        with _by(backend):
            for network in _networks(trainer):
                network.accelerate(channels_last=network.channels_last, chunk_size=network.chunk_size, compiled=True)
        prepare(trainer)
        return _traces(trainer, lambda: graphs.append(made[0]))


@contextmanager
def _compiling_anew() -> Iterator[None]:
    """What was compiled before is forgotten, and what is compiled inside is afterwards."""
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


@contextmanager
def _by(backend: Callable[..., Any]) -> Iterator[None]:
    """Networks that are given to torch.compile inside are compiled by a backend."""
    compile_by_default = nn.Module.compile

    def compile_it(self: nn.Module, **settings: Any) -> None:
        compile_by_default(self, **{**settings, "backend": backend})

    with patch.object(nn.Module, "compile", compile_it):
        yield


def _networks(trainer: Trainer) -> list[Backbone]:
    """The backbone and its copies."""
    return [part for part in trainer.method.modules() if isinstance(part, Backbone)]


def _traces(trainer: Trainer, after_each: Callable[[], None] = lambda: None) -> Traces:
    """All steps of the training."""
    losses = []
    with traced(trainer) as gradients:
        for _ in range(trainer.total_steps):
            losses.append(take_step(trainer)["loss"])
            after_each()
    return Traces(losses, gradients)


def _first(traces: Traces) -> Traces:
    """Of later steps, small differences have made larger ones."""
    return Traces(traces.losses[:1], traces.gradients[:1])
