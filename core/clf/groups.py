"""Parameter groups of a method: what each is trained with, checked before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from torch.nn import Parameter
from torch.optim import Optimizer

from clf import config as configuration
from clf import optim
from clf.config import Config, OptimizerSection, ScheduleSection, Section
from clf.errors import PluginError
from clf.method import Group, Method, MethodConfig

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Trained:
    """One group with its optimizer."""

    parameters: list[Parameter]
    optimizer: Optimizer
    peak: float
    """Learning rate at the peak of the schedule."""
    schedule: ScheduleSection
    preparation: bool

    def set_lr(self, step: int, total: int, steps_per_epoch: float) -> None:
        """Gives the optimizer the learning rate of a step."""
        optim.set_lr(self.optimizer, self.lr(step, total, steps_per_epoch))

    def lr(self, step: int, total: int, steps_per_epoch: float) -> float:
        warmup = 0 if self.preparation else round((self.schedule.warmup_epochs or 0) * steps_per_epoch)
        return self.peak * optim.schedule_factor(step, total, warmup, self.schedule, steps_per_epoch)


def make_groups(method: Method[MethodConfig], config: Config) -> dict[str, Trained]:
    """The optimizers of a method.

    Raises:
        PluginError: there is no group ``main``, its settings are not the run's, a group's settings are not valid, it
            has what is no parameter, or two groups of the training, or of the preparation, share one.
        ConfigError: a group has nothing to train.
    """
    given: object = method.parameter_groups()
    if not isinstance(given, Mapping):
        raise PluginError(
            f"method {config.plugin!r}: parameter_groups returned a {type(given).__name__}, not a dictionary such as "
            '{"main": self.parameters()}'
        )
    made = {name: _make(name, each, config) for name, each in given.items()}
    if "main" not in made:
        raise PluginError(f"method {config.plugin!r} has no parameter group 'main'")
    owners: dict[tuple[bool, int], str] = {}
    for name, group in made.items():
        for parameter in group.parameters:
            owner = owners.setdefault((group.preparation, id(parameter)), name)
            if owner != name:
                raise PluginError(
                    f"method {config.plugin!r}: parameter group {name!r} shares a parameter with {owner!r}, so two "
                    "optimizers would step it; leave it out of one of them"
                )
    return made


def _make(name: str, given: Iterable[Parameter] | Group, config: Config) -> Trained:
    group = given if isinstance(given, Group) else Group(given)
    if name == "main" and (group.optimizer or group.schedule or group.preparation):
        raise PluginError(
            f"method {config.plugin!r} gives its group 'main' settings of its own; that group is trained as the keys "
            "optimizer.* and schedule.* say, whose defaults the method can set in `defaults`"
        )
    optimizer, schedule = config.optimizer, config.schedule
    if group.optimizer:
        optimizer = configuration.derived_optimizer(_read(OptimizerSection, group.optimizer, name, config), config)
    if group.schedule or group.preparation:
        schedule = _read(ScheduleSection, group.schedule, name, config)
    parameters = [p for p in _listed(name, group.parameters, config) if p.requires_grad]
    return Trained(
        parameters, optim.make_optimizer(optimizer, parameters), optimizer.lr or 0.0, schedule, group.preparation
    )


def _listed(name: str, given: object, config: Config) -> list[Parameter]:
    parameters = []
    for each in given if isinstance(given, Iterable) else [given]:
        if not isinstance(each, Parameter):
            raise PluginError(
                f"method {config.plugin!r}: parameter group {name!r} has a {type(each).__name__} among its parameters; "
                "give the parameters of a module, such as self.backbone.parameters()"
            )
        parameters.append(each)
    return parameters


def _read(section: type[S], values: Mapping[str, Any], group: str, config: Config) -> S:
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise PluginError(
            f"method {config.plugin!r}: setting {key!r} of parameter group {group!r}: {problem['msg']}"
        ) from error
