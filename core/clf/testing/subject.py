"""The plugin under test, and small trainings of it.

Trainings happen in this process, on the CPU, with one thread and without callbacks; what they share is made once. The
global random numbers and switches are left as they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from clf import plugins
from clf.catalogue import PluginInfo
from clf.checks import Skipped
from clf.errors import ConfigError
from clf.testing import sources

if TYPE_CHECKING:
    from torch import Tensor

    from clf.config import Config
    from clf.data import DataSource
    from clf.experiment import Experiment
    from clf.method import Method
    from clf.plugins import Plugin
    from clf.trainer import Trainer

T = TypeVar("T")
NONE: Mapping[str, Any] = MappingProxyType({})
OWN: Mapping[str, Any] = {"train.device": "cpu", "monitor.knn_every": 0, "monitor.log_every": 1}
"""Values that every check trains with, unless it says otherwise."""
FIXED = ("run.", "plugin", "data.name", "data.root", "train.device")
"""Keys that the user of the suite cannot set."""


@dataclass(frozen=True)
class Course:
    """Some steps of a training."""

    losses: tuple[float, ...]
    """One for each step."""
    before: Mapping[str, Tensor]
    """Copy of the method's state as it was built."""
    after: Mapping[str, Tensor]
    """Copy of the method's state after the steps."""
    trained: tuple[str, ...]
    """Names of the parameters that belong to a group and require a gradient."""


class Subject:
    """A plugin under test: an installed one by name, or a single file.

    Args:
        folder: an empty one, in which everything is done; the caller removes it.
        settings: dotted keys that all trainings use, such as ``method.queue_size``.

    Raises:
        ConfigError: a setting is not the user's to give.
    """

    def __init__(self, name_or_path: str, folder: Path, settings: Mapping[str, Any] = NONE) -> None:
        for key in settings:
            if key.startswith(FIXED):
                raise ConfigError(f"{key} cannot be set here: the checks train tiny runs of their own")
        self.name_or_path = name_or_path
        self.folder = folder
        self.settings = dict(settings)
        self._kept: dict[object, Any] = {}
        self._runs = 0

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` returned the first time it was asked for under this key."""
        if key not in self._kept:
            self._kept[key] = make()
        value: T = self._kept[key]
        return value

    @property
    def is_file(self) -> bool:
        """Whether it is a single file, which has no package around it."""
        return plugins.is_path(self.name_or_path)

    @cached_property
    def info(self) -> PluginInfo:
        """What is known without importing it. Raises PluginError for a plugin that is unknown or cannot be used."""
        return sources.info(self.name_or_path)

    @cached_property
    def plugin(self) -> Plugin:
        """The imported plugin. Raises PluginError as :func:`clf.plugins.load_plugin` does."""
        return plugins.load_plugin(self.name_or_path)

    @cached_property
    def method(self) -> type[Method[Any]]:
        """The method that ``clf train --plugin`` would train.

        Raises:
            Skipped: the plugin provides no method, but something else.
            PluginError: it provides methods and not exactly one that can be meant.
        """
        plugin = self.plugin
        if not plugin.methods:
            raise Skipped("the plugin provides no method")
        return plugins.load_method(self.name_or_path)

    @property
    def module(self) -> ModuleType:
        """The module of the plugin, also where the entry point names a class in it."""
        found = self.plugin.module
        module = found if isinstance(found, ModuleType) else inspect.getmodule(found)
        assert module is not None
        return module

    @property
    def source_files(self) -> tuple[Path, ...]:
        """The Python files of the plugin, without importing it; see :func:`clf.testing.sources.source_files`."""
        return sources.source_files(self.name_or_path)

    def config(self, changes: Mapping[str, Any] = NONE, /, **more: Any) -> Config:
        """The tiny configuration, under the user's settings, under dotted keys of one check.

        Weakest first: the engine's defaults, the plugin's recommendations, those of ``clf verify``, the method's
        ``tiny``, :data:`OWN`, the user's, ``changes``. Learning rate and the like are derived.

        Raises:
            ConfigError: a key or value is wrong.
        """
        import torch

        from clf import config as configuration
        from clf import training
        from clf.verify.tiny import tiny

        _ = self.method  # before anything says that it has none
        given = {**OWN, **self.settings, **changes, **more}
        derived = configuration.derive(tiny(self.name_or_path, self.folder, given, NONE))[0]
        return training.settle(derived, torch.device("cpu"))

    def data(self, config: Config) -> DataSource:
        """The data of a configuration, read once."""
        from clf import experiment

        key = ("data", config.data.model_dump_json(), config.seed)
        return self.once(key, lambda: experiment.load_data(config.data, config.seed))

    def experiment(self, config: Config, data: DataSource | None = None) -> Experiment:
        """The untrained experiment; always a new one. Raises ClfError as :func:`clf.experiment.build` does."""
        from clf import experiment

        return experiment.build(config, data or self.data(config))

    @contextmanager
    def trainer(self, config: Config, data: DataSource | None = None) -> Iterator[Trainer]:
        """A trainer without callbacks, before its first step and its preparation; see :func:`prepare`.

        Inside, torch's switches are those of the training; its global random numbers are restored afterwards.
        """
        import torch

        from clf import training
        from clf.runs import Run
        from clf.trainer import Trainer

        self._runs += 1
        folder = self.folder / f"trainer-{self._runs}"
        folder.mkdir()
        with training.session(config) as ranks, torch.random.fork_rng(devices=[]):
            made = Trainer(self.experiment(config, data), Run(folder), ranks)
            try:
                yield made
            finally:
                made.stream.close()

    def steps(self, config: Config, n: int, data: DataSource | None = None) -> Course:
        """The first n steps of the training, after its preparation; with the configuration's own data made once."""
        if data is not None:
            return self._steps(config, n, data)
        return self.once(("steps", config.model_dump_json(), n), lambda: self._steps(config, n))

    def _steps(self, config: Config, n: int, data: DataSource | None = None) -> Course:
        with self.trainer(config, data) as trainer:
            before = copied(trainer.method.state_dict())
            prepare(trainer)
            losses = tuple(step(trainer) for _ in range(n))
            wanted = {id(p) for group in trainer.parameters.values() for p in group if p.requires_grad}
            trained = tuple(name for name, p in trainer.method.named_parameters() if id(p) in wanted)
            return Course(losses, before, copied(trainer.method.state_dict()), trained)


def prepare(trainer: Trainer) -> None:
    """Takes the steps of the method's preparation, if it has any."""
    while trainer.prepared < trainer.preparation_steps:
        trainer.prepare()
    trainer.window.flush(trainer.ranks)


def step(trainer: Trainer) -> float:
    """Takes one optimizer step and returns its loss."""
    trainer.one_step()
    return trainer.window.flush(trainer.ranks)["loss"]


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}
