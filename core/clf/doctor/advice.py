"""Which settings are worth trying, and which one to change: pure functions of what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from clf.config import Config
from clf.doctor.machine import Machine

WORTH = 0.03
"""Gains below this are not worth a sentence."""
WAITING = 0.15
"""Share of a step spent waiting for images from which on that is the first thing to say."""
BUSY = 0.2
"""Difference of a configuration from itself from which on the figures say little."""
FULL = 0.85
"""Share of the device's memory from which on it is close to its limit."""


@dataclass(frozen=True)
class Setting:
    """A key of the configuration with another value."""

    key: str
    value: Any
    effect: str | None = None
    """What it changes in the training besides its speed; None when nothing but the last bits of its sums."""

    def __str__(self) -> str:
        return f"{self.key}={self.value if isinstance(self.value, str) else json.dumps(self.value)}"


@dataclass(frozen=True)
class Trial:
    """Steps with a setting, each beside a step without it in the same round."""

    setting: Setting | None
    """None: nothing was changed, which shows what the figures are worth."""
    rates: tuple[float, ...]
    """Images per second of each round."""
    plain: tuple[float, ...]
    """The same of the configuration as it is."""
    first_seconds: float = 0.0
    """Of the first step, with compilation."""

    @property
    def gain(self) -> float:
        """Images per second relative to the configuration as it is: ratio of medians."""
        return float(median(self.rates) / median(self.plain))

    @property
    def noise(self) -> float:
        """Half the width of about a 95 % interval of the gain, from the spread of the rounds' own ratios.

        The standard error of a median is about 1.25 sigma / sqrt(n), and sigma about 1.48 times the median deviation.
        """
        ratios = [a / b for a, b in zip(self.rates, self.plain, strict=True)]
        centre = median(ratios)
        sigma = 1.48 * median(abs(ratio - centre) for ratio in ratios)
        return float(2 * 1.25 * sigma / len(ratios) ** 0.5)


@dataclass(frozen=True)
class Advice:
    setting: Setting | None
    """What to change; None when nothing that was tried is better beyond doubt."""
    gain: float
    """Predicted images per second relative to now; 1 without a setting."""
    noise: float
    sentence: str


def settings_to_try(
    config: Config, machine: Machine, *, images: int, memory_share: float, waiting: float, compiled: bool
) -> list[Setting]:
    """The settings that apply to a settled configuration (:func:`clf.training.settle`) on this machine.

    Args:
        images: in the training set.
        memory_share: of the device's memory that a step needs at its peak.
        waiting: share of a step that goes into waiting for images.
        compiled: try torch.compile although compiling takes long on a CPU.
    """
    train, found = config.train, []
    if machine.kind == "cpu":
        counts = {machine.cores, max(1, machine.cores // 2)} - {machine.threads}
        found += [Setting("train.threads", count) for count in sorted(counts, reverse=True)]
    if machine.kind != "mps":
        found.append(Setting("train.channels_last", not train.channels_last))
    if machine.bf16 and train.precision == "fp32":
        found.append(Setting("train.precision", "bf16", "products are rounded to 8 bits of mantissa"))
    if train.compile == "on":
        found.append(Setting("train.compile", "off"))
    elif machine.compile_obstacle is None and (compiled or machine.kind == "cuda"):
        found.append(Setting("train.compile", "on"))
    if machine.kind == "cuda" and train.deterministic:
        found.append(Setting("train.deterministic", False, "a run no longer repeats bit for bit"))
    if machine.kind == "cuda" and memory_share < FULL / 2 and images >= 2 * train.batch_size:
        found.append(Setting("train.batch_size", 2 * train.batch_size, "another batch, with half as many steps"))
    if train.chunk_size is not None and memory_share < FULL:
        found.append(Setting("train.chunk_size", None, "batch norm sees the whole batch"))
    if waiting > WAITING and (config.data.workers or machine.cores) < 2 * machine.cores:
        found.append(Setting("data.workers", 2 * machine.cores))
    return found


def recommend(trials: Sequence[Trial], shares: Mapping[str, float], memory_share: float, config: Config) -> Advice:
    """The one setting to change.

    A setting counts as better when its gain, less its own noise, exceeds what nothing-changed seemed to gain, and is
    worth mentioning. Of those the fastest is named; one that changes the training gives way to one that does not and
    is as fast within their noise.

    Args:
        trials: of settings, and of nothing changed.
        shares: of a step, by phase.
        memory_share: of the device's memory at the peak.
    """
    doubt = max((abs(trial.gain - 1) + trial.noise for trial in trials if trial.setting is None), default=0.0)
    better = [t for t in trials if t.setting is not None and t.gain - 1 > max(WORTH, doubt + t.noise)]
    better.sort(key=lambda trial: trial.gain, reverse=True)
    caution = _cautions(shares, memory_share, config)
    if doubt > BUSY:
        caution.append(
            f"The machine is busy with other work: the same configuration, measured twice, differed by {doubt:.0%}. "
            "Try again when it is quiet."
        )
    if not better:
        tried = ", ".join(str(trial.setting) for trial in trials if trial.setting is not None)
        words = f"no setting that was tried ({tried}) is faster beyond the noise" if tried else "nothing could be tried"
        return Advice(None, 1.0, doubt, " ".join(["Leave the settings as they are:", words + ".", *caution]))
    best = better[0]
    for trial in better:
        if trial.setting and trial.setting.effect is None and trial.gain + trial.noise + best.noise >= best.gain:
            best = trial
            break
    assert best.setting is not None
    sentence = f"Set {best.setting}: {best.gain:.2f} times as many images per second (± {best.noise:.2f})."
    if best.setting.effect:
        sentence += f" It changes the training: {best.setting.effect}."
    return Advice(best.setting, best.gain, best.noise, " ".join([sentence, *caution]))


def _cautions(shares: Mapping[str, float], memory_share: float, config: Config) -> list[str]:
    found = []
    if shares.get("data", 0.0) > WAITING:
        found.append(
            f"The training waits for images {shares['data']:.0%} of the time: put them on a faster disk or in memory, "
            f"or raise data.workers (now {config.data.workers or 'one a core'})."
        )
    if memory_share > FULL and config.train.chunk_size is None:
        found.append(
            f"{memory_share:.0%} of the device's memory is used: train.chunk_size="
            f"{max(1, config.train.batch_size // 2)} would need less, at the price of one more forward pass."
        )
    return found
