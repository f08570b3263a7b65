"""A plugin's source that passes every static check, and changes that make it fail one."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clf.checks import Outcome
from clf.testing import packages
from clf.testing.importing import Found
from clf.testing.subject import Subject
from clf.testing.suite import examine

REQUIRES = ("clf-vision>=0.1,<0.2",)
HEAD = """
import torch
from pydantic import Field
from torch import Tensor

import clf
from clf import losses, nn
"""
CONFIG = """
class FooConfig(clf.MethodConfig):
    sharpness: float = Field(1.0, gt=0, description="of the loss")
"""
METHOD = """
class Foo(clf.Method[FooConfig]):
    name = "foo"
    Config = FooConfig
    defaults = {"optimizer.name": "sgd"}

    def __init__(self, backbone: clf.Backbone, config: FooConfig, data: clf.DataSpec) -> None:
        super().__init__(backbone, config, data)
        self.projector = nn.mlp(backbone.dim, 16)

    def training_step(self, batch: clf.Batch, ctx: clf.Context) -> Tensor:
        a, b = (self.projector(self.backbone(x)) for x in batch.views)
        return losses.nt_xent(a, b, self.config.sharpness)
"""
HOOK = """
@clf.hookimpl
def clf_methods():
    return [Foo]
"""
GOOD = HEAD + CONFIG + METHOD + HOOK

Install = Callable[..., Path]


def install_foo(install: Install, source: str = GOOD, requires: Sequence[str] = REQUIRES, version: str = "1.0") -> Path:
    """Installs clf-foo with the plugin foo in the module clf_foo."""
    modules = {"clf_foo": textwrap.dedent(source)}
    return install("clf-foo", plugins={"foo": "clf_foo"}, modules=modules, requires=requires, version=version)


def examined(name_or_path: str, folder: Path, *, process: bool = True) -> Mapping[str, Outcome]:
    """The outcomes of the static checks; without a process of its own the import is taken to be quiet."""
    subject = Subject(name_or_path, folder)
    if not process:
        subject.once("probe", Found)
    examination = examine(subject, packages.CHECKS)
    return {check.name: examination.outcome(check.name) for check in packages.CHECKS}


def faults(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """What is wrong, by check."""
    return {name: outcome.text for name, outcome in outcomes.items() if outcome.state == "failed"}
