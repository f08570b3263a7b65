"""Where a step's time goes, what is tried, what is advised, and that nothing is left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from clf import config, doctor, experiment, phases, training
from clf.augment import Augment, Recipe
from clf.commands.doctor import doctor as command
from clf.config import Config
from clf.data import DataSource
from clf.distributed import Ranks
from clf.doctor import machine as machines
from clf.doctor import rival
from clf.doctor.advice import Setting, Trial, recommend, settings_to_try
from clf.doctor.machine import Machine
from clf.doctor.subject import Subject, changed
from clf.errors import ConfigError

Make = Callable[..., Config]

BUSY_METHOD = """
import time
import clf
from clf import losses

class Settings(clf.MethodConfig):
    pass

class Busy(clf.Method[Settings]):
    name = "busy"
    Config = Settings

    def training_step(self, batch, ctx):
        a, b = (self.backbone(view) for view in batch.views)
        return losses.nt_xent(a, b, 0.5)

    def after_step(self, ctx):
        until = time.perf_counter() + 0.3
        while time.perf_counter() < until:
            pass

@clf.hookimpl
def clf_methods():
    return [Busy]
"""

CPU = Machine("cpu", "cpu", 8, 4, "2.15", bf16=True, compile_obstacle=None, memory=2**34)
GPU = replace(CPU, device="cuda:0", kind="cuda")
BATCH = Setting("train.batch_size", 512, "another batch")
THREADS = Setting("train.threads", 8)
BF16 = Setting("train.precision", "bf16", "rounded")


class SlowTable:
    """Images that take their time, as on a slow disk that serves one reader."""

    def __init__(self, images: Tensor, seconds: float) -> None:
        self._images = images
        self._seconds = seconds
        self._lock = Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        with self._lock:
            time.sleep(self._seconds)
        return self._images[rows]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of one step and one batch each: enough to see that everything is measured."""
    monkeypatch.setattr(doctor, "TURN", 0.0)
    monkeypatch.setattr(rival, "compare", partial(rival.compare, rounds=1, turn=0.0))


def settled(tmp_path: Path, tiny: Make, changes: dict[str, Any] | None = None) -> Config:
    return training.settle(config.derive(tiny(tmp_path, changes))[0], torch.device("cpu"))


def subject(made: Config, data: DataSource | None = None) -> Subject:
    return Subject(made, data or experiment.load_data(made.data, made.seed), Ranks())


def trial(setting: Setting | None, gain: float, spread: float = 0.0) -> Trial:
    """Five rounds around a gain."""
    rates = tuple(100 * (gain + spread * x) for x in (-2, -1, 0, 1, 2))
    return Trial(setting, rates, (100.0,) * 5)


def advise(*trials: Trial, data: float = 0.0, memory: float = 0.1) -> tuple[Setting | None, str]:
    made = config.build([config.Layer("test", {"plugin": "simclr"})])[0]
    found = recommend(trials, {"data": data, "forward": 1 - data}, memory, made)
    return found.setting, found.sentence


def test_the_gain_is_the_ratio_of_medians_and_its_noise_that_of_the_rounds() -> None:
    found = Trial(None, (20.0, 33.0, 30.0), (10.0, 11.0, 10.0))  # ratios 2, 3, 3: no median deviation
    assert found.gain == pytest.approx(3.0)
    assert found.noise == 0
    spread = Trial(None, (10.0, 12.0, 14.0, 16.0), (10.0,) * 4)  # deviations 0.3, 0.1, 0.1, 0.3 from 1.3
    assert spread.noise == pytest.approx(2 * 1.25 * 1.48 * 0.2 / 2)


def test_the_fastest_setting_is_named_with_its_gain() -> None:
    setting, words = advise(trial(None, 1.0), trial(THREADS, 1.4, 0.01), trial(Setting("train.compile", "on"), 1.2))
    assert setting == THREADS
    assert words == "Set train.threads=8: 1.40 times as many images per second (± 0.02)."


def test_what_changes_the_training_says_so_and_gives_way_to_an_equal_that_does_not() -> None:
    setting, words = advise(trial(None, 1.0), trial(THREADS, 1.2), trial(BF16, 1.6))
    assert setting == BF16
    assert words.endswith("It changes the training: rounded.")
    setting, _ = advise(trial(None, 1.0), trial(THREADS, 1.55, 0.05), trial(BF16, 1.6, 0.05))
    assert setting == THREADS


@pytest.mark.parametrize(
    "trials",
    [
        (trial(None, 1.0), trial(THREADS, 1.02)),  # not worth a sentence
        (trial(None, 1.0), trial(THREADS, 0.7)),  # slower
        (trial(None, 1.15), trial(THREADS, 1.1)),  # less than nothing changed
        (trial(None, 1.0), trial(THREADS, 1.3, 0.4)),  # within its own noise
        (trial(None, 1.05), trial(THREADS, 1.1, 0.04)),  # within both together
    ],
)
def test_nothing_is_recommended_within_the_noise(trials: tuple[Trial, ...]) -> None:
    setting, words = advise(*trials)
    assert setting is None
    assert words.startswith("Leave the settings as they are: no setting that was tried (train.threads=8)")


def test_a_machine_that_cannot_be_judged_is_called_busy() -> None:
    _, words = advise(trial(None, 1.5), trial(THREADS, 1.2))
    assert "busy with other work: the same configuration, measured twice, differed by 50%" in words


def test_waiting_for_images_and_full_memory_are_said() -> None:
    assert "waits for images 40% of the time" in advise(trial(None, 1.0), data=0.4)[1]
    assert "90% of the device's memory is used: train.chunk_size=128" in advise(trial(None, 1.0), memory=0.9)[1]
    assert advise(trial(None, 1.0))[1] == "Leave the settings as they are: nothing could be tried."


def words_to_try(machine: Machine, values: dict[str, Any], **facts: Any) -> list[str]:
    base = {"plugin": "simclr", "train.precision": "fp32", "train.compile": "off", "train.channels_last": True}
    made = config.build([config.Layer("test", {**base, **values})])[0]
    default = {"images": 10_000, "memory_share": 0.1, "waiting": 0.0, "compiled": False}
    return [str(setting) for setting in settings_to_try(made, machine, **{**default, **facts})]


def test_only_what_applies_is_tried() -> None:
    usual = ["train.threads=8", "train.channels_last=false", "train.precision=bf16"]
    assert words_to_try(CPU, {}) == usual
    assert words_to_try(CPU, {}, compiled=True) == [*usual, "train.compile=on"]
    assert words_to_try(replace(CPU, compile_obstacle="no compiler"), {}, compiled=True) == usual
    assert words_to_try(replace(CPU, bf16=False, threads=8), {})[0] == "train.threads=4"
    assert "train.precision=bf16" not in words_to_try(replace(CPU, bf16=False), {})
    assert "train.precision=bf16" not in words_to_try(CPU, {"train.precision": "fp64"})
    assert "train.chunk_size=null" in words_to_try(CPU, {"train.chunk_size": 32})
    assert "data.workers=16" in words_to_try(CPU, {}, waiting=0.5)
    assert "data.workers=16" not in words_to_try(CPU, {"data.workers": 16}, waiting=0.5)
    on_gpu = words_to_try(GPU, {"train.compile": "on"})
    assert on_gpu[-3:] == ["train.compile=off", "train.deterministic=false", "train.batch_size=512"]
    assert not any("threads" in word for word in on_gpu)
    assert "train.batch_size=512" not in words_to_try(GPU, {}, memory_share=0.6)
    assert "train.batch_size=512" not in words_to_try(GPU, {}, images=400)


def test_a_setting_replaces_one_key() -> None:
    made = config.build([config.Layer("test", {"plugin": "simclr"})])[0]
    assert config.differences(made, changed(made, THREADS)) == ["train.threads: None -> 8"]


def test_every_phase_of_real_steps_is_charged(tmp_path: Path, tiny: Make) -> None:
    found = subject(settled(tmp_path, tiny)).phases(3)
    assert list(found) == list(phases.NAMES)
    assert all(found[name] > 0 for name in ("augment", "forward", "backward", "optimizer", "other"))
    assert max(found, key=lambda name: found[name]) in ("augment", "forward", "backward")


def test_a_method_that_works_after_its_step_is_charged_for_it(tmp_path: Path, tiny: Make) -> None:
    path = tmp_path / "busy.py"
    path.write_text(BUSY_METHOD)
    values = {key: value for key, value in config.flatten(tiny(tmp_path)).items() if not key.startswith("method.")}
    made, _ = config.derive(config.build([config.Layer("test", {**values, "plugin": str(path)})])[0])
    found = subject(training.settle(made, torch.device("cpu"))).phases(2)
    assert found["method"] >= 0.3
    assert max(found, key=lambda name: found[name]) == "method"


@pytest.mark.slow
def test_a_slow_disk_is_charged_to_the_data(tmp_path: Path, tiny: Make) -> None:
    made = settled(tmp_path, tiny)
    data = experiment.load_data(made.data, made.seed)
    assert isinstance(data.train.images, Tensor)
    slow = replace(data, train=replace(data.train, images=SlowTable(data.train.images, 1.5)))
    with closing(subject(made, slow)) as waiting:
        found = waiting.phases(3)
    assert max(found, key=lambda name: found[name]) == "data"


def test_trials_take_the_images_from_where_the_plain_trainer_has_put_them(tmp_path: Path, tiny: Make) -> None:
    with closing(subject(settled(tmp_path, tiny))) as plain:
        stream = plain.trainer.stream
        assert stream._resident is not None
        there = stream._resident = stream._resident.clone()
        before, found = plain.trainer.data, plain.data
        assert found.train.images is there
        assert replace(found, train=replace(found.train, images=before.train.images)) == before
        with closing(doctor._subject(plain, changed(plain.trainer.config, BF16), Ranks())) as other:
            assert other.trainer.stream._resident is there


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_step_has_the_switches_of_its_configuration_and_leaves_those_that_were(
    tmp_path: Path, tiny: Make, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def switches() -> tuple[bool, ...]:
        strict, warn = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        return strict, warn, torch.backends.cudnn.benchmark

    found: list[tuple[bool, ...]] = []
    with closing(subject(settled(tmp_path, tiny, {"train.deterministic": deterministic}))) as examined:
        monkeypatch.setattr(examined.trainer, "one_step", lambda: found.append(switches()))
        try:
            for before in [(True, True, False), (True, False, True), (False, False, True)]:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])
                torch.backends.cudnn.benchmark = before[2]
                examined.step()
                assert switches() == before
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.benchmark = False
    assert [(strict, benchmark) for strict, _, benchmark in found] == [(deterministic, not deterministic)] * 3


@pytest.mark.usefixtures("hasty")
def test_an_examination_adds_up_and_leaves_nothing(tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = doctor.examine(config.derive(tiny(tmp_path / "runs"))[0], steps=2, trial_seconds=0, say=said.append)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.images_per_second == pytest.approx(16 / found.seconds)
    assert (found.total_steps, found.steps, found.views, found.batch_size) == (12, 2, 2, 16)
    assert found.peak_memory is None or found.peak_memory > 10 * 2**20
    assert found.trials[0].setting is None and len(found.trials[0].rates) == 3
    assert {str(t.setting) for t in found.trials[1:]} >= {"train.channels_last=false"}
    assert found.augmentation.ours > 0 and found.augmentation.torchvision > 0
    needed = 2 * 16 / (found.augmentation.torchvision * found.workers)
    assert found.torchvision_share == pytest.approx(needed / found.seconds)
    assert "reading the data" in said


def test_a_step_that_does_not_fit_is_answered_with_the_chunk_that_does(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int | None] = []

    def small(made: Config, data: DataSource, ranks: Ranks) -> Subject:
        tried.append(made.train.chunk_size)
        if made.train.chunk_size is None or made.train.chunk_size > 8:
            raise torch.OutOfMemoryError
        return Subject(made, data, ranks)

    monkeypatch.setattr(doctor, "Subject", small)
    with pytest.raises(ConfigError, match=r"batch 16 does not fit into the memory of cpu; with train\.chunk_size=8"):
        doctor.examine(config.derive(tiny(tmp_path))[0], steps=1)
    assert tried == [None, 16, 8]


def test_settings_are_tried_on_the_whole_batch_where_the_method_takes_no_smaller_one(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of 96 rows is filled by steps of 16 images and not by steps of 10."""
    changes = {"plugin": "moco", "method.queue_size": 96, "method.bn_splits": 1}
    monkeypatch.setattr(doctor, "SMALL_BATCH", 10)
    said: list[str] = []
    with closing(subject(settled(tmp_path, tiny, changes))) as plain:
        plain.seconds = 1000.0
        with doctor._for_trials(plain, Ranks(), said.append) as tried:
            assert tried is plain
        with pytest.raises(ConfigError, match="of the body"), doctor._for_trials(plain, Ranks(), said.append):
            raise ConfigError("of the body")
    assert "trying settings with the whole batch, because" in said[-1]


@pytest.mark.usefixtures("hasty")
def test_a_preparation_is_named_and_not_measured(tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "settings_to_try", lambda *unused, **values: [])
    values = {key: value for key, value in config.flatten(tiny(tmp_path)).items() if not key.startswith("method.")}
    path = tmp_path / "prepared.py"
    idle = BUSY_METHOD.replace("+ 0.3", "")
    path.write_text(idle.replace("Config = Settings", "Config = Settings\n    preparation_steps = 12345"))
    made, _ = config.derive(config.build([config.Layer("test", {**values, "plugin": str(path)})])[0])
    with closing(subject(training.settle(made, torch.device("cpu")))) as examined:
        found = doctor._measure(examined, 1, False, lambda words: None, 0.0, Ranks())
    assert found.preparation_steps == 12345


def test_several_ranks_are_refused(tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without torchrun"):
        doctor.examine(tiny(tmp_path))


def test_the_machine_is_described() -> None:
    found = machines.describe(torch.device("cpu"))
    assert found.cores >= 1 and found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert found.memory is None or found.memory > 2**28


@pytest.mark.parametrize("changes", [{}, {"grayscale": 1.0}, {"solarize": 1.0}, {"flip": 1.0}])
def test_torchvision_gets_the_same_recipe(changes: dict[str, float]) -> None:
    """Without chance the two pipelines give the same view, but that PIL rounds to bytes after each operation."""
    still = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0}
    recipe = Recipe(24, **{**still, **changes})  # type: ignore[arg-type]
    image = torch.randint(64, 192, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours = Augment(recipe)(image, recipe.draw(1, torch.Generator().manual_seed(0)))[0]
    theirs = rival.pipeline(recipe)(rival._picture(image[0]))
    close = (ours - theirs).abs() <= 2 / 255
    if "solarize" in changes:  # a pixel at the threshold falls on either side of it
        close |= (ours - 0.5).abs() < 3 / 255
    assert bool(close.all())


def test_torchvision_gets_the_strengths_and_probabilities() -> None:
    recipe = Recipe(64, crop_area=(0.2, 0.9), jitter=0.7, brightness=0.4, hue=0.1, blur=0.3, blur_sigma=(0.2, 1.5))
    crop, _, jitter, gray, blur, *_ = rival.pipeline(recipe).transforms
    assert (crop.scale, crop.ratio, crop.antialias) == ((0.2, 0.9), (3 / 4, 4 / 3), True)
    assert (jitter.p, blur.p, gray.p) == (0.7, 0.3, 0.2)
    assert jitter.transforms[0].brightness == (0.6, 1.4)
    assert jitter.transforms[0].hue == (-0.1, 0.1)
    assert (tuple(blur.transforms[0].kernel_size), tuple(blur.transforms[0].sigma)) == ((7, 7), (0.2, 1.5))


@pytest.mark.usefixtures("hasty")
def test_the_command_prints_tables_or_json(
    tmp_path: Path, tiny: Make, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctor.examine(config.derive(tiny(tmp_path / "runs"))[0], steps=1, trial_seconds=0)
    asked: list[Any] = []

    def instead(made: Config, steps: int | None, **options: Any) -> doctor.Diagnosis:
        asked.append((made.train.batch_size, steps, options["compiled"]))
        return found

    monkeypatch.setattr(doctor, "examine", instead)
    shown = run_cli("doctor", "--plugin", "simclr", "train.batch_size=16", "--steps", "4", "--compile")
    assert shown.code == 0
    assert asked == [(16, 4, True)]
    lines = shown.out.splitlines()
    assert any(line.startswith("forward ") for line in lines)
    assert any(line.startswith("nothing changed ") for line in lines)
    assert found.advice.sentence in lines
    content = json.loads(run_cli("doctor", "--plugin", "simclr", "--json").out)
    assert content["shares"]["forward"] == pytest.approx(found.shares["forward"])
    assert content["trials"][1]["gain"] == pytest.approx(found.trials[1].gain)
    assert content["advice"]["sentence"] == found.advice.sentence
    assert content["machine"]["cores"] == found.machine.cores


def test_the_help_says_how_many_steps_are_taken() -> None:
    words = get_type_hints(command, include_extras=True)["steps"].__metadata__[0].help
    seconds = {5.0: "five"}[doctor.STEP_SECONDS]
    assert f"what takes {seconds} seconds, {doctor.STEPS[0]} to {doctor.STEPS[1]}" in words


def test_a_mistake_is_one_sentence(run_cli: Callable[..., Any]) -> None:
    refused = run_cli("doctor", "--plugin", "simclr", "train.batchsize=16")
    assert refused.code == 2
    assert "train.batch_size" in refused.err
