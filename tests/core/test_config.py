from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from clf import config as configuration
from clf.config import Config, Layer, Origins, ScheduleSection, build, derive, parse_overrides
from clf.errors import ConfigError
from clf.optim import schedule_factor


class Knobs(BaseModel):
    """A method's configuration, as a plugin would define it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.5, gt=0)
    heads: int = Field(1, ge=1, le=8)
    kind: Literal["a", "b"] = "a"


def of(**values: Any) -> Config:
    return build([Layer("test", {"plugin": "simclr", **values})])[0]


def complaint(*layers: Layer, method: type[BaseModel] | None = Knobs) -> str:
    with pytest.raises(ConfigError) as caught:
        build([Layer("base", {"plugin": "simclr"}), *layers], method)
    return str(caught.value)


def test_later_layers_win_and_origins_say_which() -> None:
    layers = [
        Layer("plugin simclr", {"optimizer.name": "sgd", "train.epochs": 5, "seed": 1}),
        Layer("a.yaml", {"plugin": "simclr", "train.epochs": 6, "seed": 2}),
        Layer("command line", {"seed": 3}),
    ]
    config, origins = build(layers)
    assert (config.optimizer.name, config.train.epochs, config.seed) == ("sgd", 6, 3)
    assert origins["optimizer.name"] == "plugin simclr"
    assert origins["train.epochs"] == "a.yaml"
    assert origins["seed"] == "command line"
    assert origins["train.batch_size"] == "default"


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        of().train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.epochs=7", 7),
        ("optimizer.lr=1e-3", "1e-3"),
        ("augment.crop_area=[0.2, 1]", [0.2, 1]),
        ("data.root=", None),
        ("data.root=null", None),
        ("data.root=a=b", "a=b"),
        ("run.name='7'", "7"),
        ("train.deterministic=no", False),
    ],
)
def test_values_on_the_command_line_are_yaml(text: str, value: Any) -> None:
    assert parse_overrides([text]).values == {text.partition("=")[0]: value}


def test_numbers_in_scientific_notation_without_a_point_are_numbers() -> None:
    assert build([Layer("x", {"plugin": "p"}), parse_overrides(["optimizer.lr=1e-3"])])[0].optimizer.lr == 1e-3


@pytest.mark.parametrize("word", ["train.epochs", "=3", ""])
def test_a_word_that_is_no_setting(word: str) -> None:
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_overrides([word])


def test_a_value_that_is_no_yaml() -> None:
    with pytest.raises(ConfigError, match=r"value of train\.epochs is not valid YAML"):
        parse_overrides(["train.epochs=[1"])


def test_a_file_may_nest_or_dot_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("plugin: simclr\ntrain:\n  epochs: 3\noptimizer.lr: 0.1\nmethod: {}\n")
    layer = configuration.read_file(path)
    assert layer == Layer(str(path), {"plugin": "simclr", "train.epochs": 3, "optimizer.lr": 0.1})


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert configuration.read_file(tmp_path / "a.yaml").values == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 1\n- 2\n", "not a list"),
        (b"just words", "not a str"),
        (b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        configuration.read_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        configuration.read_file(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        configuration.read_file(tmp_path)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("train.epoch", ["'train.epochs'", "int, at least 1"]),
        ("epochs", ["'train.epochs'"]),
        ("optimiser.lr", ["'optimizer.lr'"]),
        ("method.temprature", ["'method.temperature'", "float, above 0"]),
        ("temperature", ["'method.temperature'"]),
        ("completely.else", ["clf train --print-config"]),
    ],
)
def test_an_unknown_key_names_its_origin_and_the_nearest_key(key: str, parts: list[str]) -> None:
    message = complaint(Layer("a.yaml", {key: 1}))
    assert message.startswith(f"unknown key {key!r} (a.yaml).")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("train.epochs", 0, ["int, at least 1"]),
        ("train.epochs", "many", ["int, at least 1", "'many'"]),
        ("train.epochs", 1.5, ["int, at least 1"]),
        ("train.epochs", None, ["int, at least 1"]),
        ("optimizer.name", "rmsprop", ["one of adamw, adam, sgd, lars"]),
        ("optimizer.lr", -1, ["float", "above 0"]),
        ("optimizer.lr", math.inf, ["finite"]),
        ("optimizer.lr", math.nan, ["float"]),
        ("optimizer.betas", [0.9], ["[float, at least 0 and below 1, float, at least 0 and below 1]"]),
        ("augment.flip", 1.5, ["at most 1"]),
        ("augment.crop_area", [0.8, 0.2], ["two rising shares"]),
        ("augment.crop_area", [0, 1], ["two rising shares"]),
        ("data.image_size", 4, ["int or null, at least 8 and at most 1024"]),
        ("run.name", [1], ["text or null"]),
        ("method.heads", 9, ["int, at least 1 and at most 8"]),
        ("method.kind", "c", ["one of a, b"]),
        ("train", 3, ["is a section", "train."]),
    ],
)
def test_a_bad_value_is_told_with_origin_type_and_range(key: str, value: Any, parts: list[str]) -> None:
    message = complaint(Layer("a.yaml", {key: value}))
    assert key in message
    assert "a.yaml" in message
    for part in parts:
        assert part in message


def test_all_bad_values_are_told_at_once() -> None:
    message = complaint(Layer("a.yaml", {"train.epochs": 0, "optimizer.name": "rmsprop"}))
    assert [line.partition(" ")[0] for line in message.splitlines()] == ["train.epochs", "optimizer.name"]


def test_a_missing_plugin() -> None:
    with pytest.raises(ConfigError, match="plugin is not set: give plugin=VALUE"):
        build([Layer("a.yaml", {"seed": 3})])


@pytest.mark.parametrize("key", ["train.epochs", "method.heads"])
def test_keys_where_a_value_belongs_are_told_with_the_key(key: str) -> None:
    assert complaint(Layer("a.yaml", {key: {"x": 1}})).startswith(f"{key} = {{'x': 1}} (a.yaml): ")


def test_a_key_and_a_key_inside_it() -> None:
    values = {"data.options": 3, "data.options.side": 4}
    assert "cannot both be set" in complaint(Layer("a.yaml", values))


def test_options_of_a_source_are_open() -> None:
    config = of(**{"data.options.train_images": 5, "data.options.deep.er": "x"})
    assert config.data.options == {"train_images": 5, "deep": {"er": "x"}}


def test_method_settings_are_checked_and_completed() -> None:
    config, _ = build([Layer("x", {"plugin": "p", "method.heads": "2"})], Knobs)
    assert config.method == {"temperature": 0.5, "heads": 2, "kind": "a"}


def test_method_settings_without_a_model_are_kept_as_they_are() -> None:
    assert of(**{"method.anything": [1]}).method == {"anything": [1]}


@pytest.mark.parametrize(
    ("name", "batch", "lr", "decay"),
    [("adamw", 256, 1e-3, 0.05), ("sgd", 512, 0.06, 1e-4), ("lars", 4096, 4.8, 1e-6), ("sgd", 128, 0.015, 1e-4)],
)
def test_derived_learning_rate_and_weight_decay(name: str, batch: int, lr: float, decay: float) -> None:
    config, origins = derive(of(**{"optimizer.name": name, "train.batch_size": batch}))
    assert config.optimizer.lr == pytest.approx(lr)
    assert config.optimizer.weight_decay == decay
    assert origins["optimizer.lr"].startswith("derived: ")


def test_accumulation_counts_in_the_derived_learning_rate() -> None:
    config, _ = derive(of(**{"optimizer.name": "lars", "train.batch_size": 256, "train.accumulate": 4}))
    assert config.optimizer.lr == pytest.approx(1.2)


@pytest.mark.parametrize(("epochs", "warmup"), [(1000, 10), (100, 10), (50, 5), (1, 0.1)])
def test_derived_warm_up(epochs: int, warmup: float) -> None:
    assert derive(of(**{"train.epochs": epochs}))[0].schedule.warmup_epochs == pytest.approx(warmup)


def test_what_was_given_is_not_derived() -> None:
    given_values = {"optimizer.lr": 0.5, "optimizer.weight_decay": 0.0, "schedule.warmup_epochs": 0.0}
    config, origins = derive(of(**given_values), Origins({"optimizer.lr": "a.yaml"}))
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.schedule.warmup_epochs) == (0.5, 0.0, 0.0)
    assert origins["optimizer.lr"] == "a.yaml"


def test_deriving_twice_changes_nothing() -> None:
    once, _ = derive(of())
    assert derive(once)[0] == once


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**40),
        "run.name": st.none() | st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1),
        "train.epochs": st.integers(1, 10**6),
        "optimizer.lr": st.floats(1e-12, 1e6),
        "optimizer.betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        "augment.crop_area": st.none() | st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
        "train.deterministic": st.booleans(),
        "data.options": st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.text("xyz")),
        "method.temperature": st.floats(1e-6, 1e6),
    },
)


@given(OVERRIDES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config, _ = derive(build([Layer("x", {"plugin": "simclr", **values})], Knobs)[0])
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(configuration.dump_yaml(config, "two\nlines"), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# two\n# lines\n")
    again, _ = build([configuration.read_file(path)], Knobs)
    assert again == config
    assert configuration.differences(config, again) == []


@given(OVERRIDES)
def test_flat_values_build_the_same_configuration(values: dict[str, Any]) -> None:
    config, _ = build([Layer("x", {"plugin": "simclr", **values})], Knobs)
    assert build([Layer("flat", configuration.flatten(config))], Knobs)[0] == config


def test_differences_are_named_with_both_values() -> None:
    old, new = of(**{"train.epochs": 10}), of(**{"train.epochs": 20, "run.name": "b", "method.x": 1})
    assert configuration.differences(old, new, ignore=["run."]) == [
        "train.epochs: 10 -> 20",
        "method.x: (none) -> 1",
    ]
    assert "run.name: None -> b" in configuration.differences(old, new)


def test_every_key_has_a_place_and_a_type() -> None:
    keys = configuration.known_keys()
    assert {"plugin", "seed", "run.dir", "data.root", "train.epochs", "optimizer.lr", "method"} <= set(keys)
    assert configuration.describe_type(keys["train.precision"]) == "one of auto, fp32, bf16, fp64"
    assert configuration.describe_type(keys["optimizer.momentum"]) == "float, at least 0 and below 1"
    assert configuration.describe_type(keys["train.deterministic"]) == "true or false"


def test_the_dumped_file_is_plain_yaml() -> None:
    tree = yaml.safe_load(configuration.dump_yaml(of(**{"augment.crop_area": (0.2, 1)})))
    assert tree["augment"]["crop_area"] == [0.2, 1.0]
    assert tree["plugin"] == "simclr"


def test_warm_up_then_cosine() -> None:
    cosine = ScheduleSection(final_lr=0.1)
    factors = [schedule_factor(step, 104, 4, cosine) for step in range(105)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[54] == pytest.approx(0.1 + 0.9 * 0.5)  # half of the decay
    assert factors[104] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_constant_after_the_warm_up() -> None:
    constant = ScheduleSection(name="constant")
    assert [schedule_factor(step, 10, 2, constant) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]


def test_linear_over_the_last_part() -> None:
    linear = ScheduleSection(name="linear", decay=0.2)
    assert [schedule_factor(step, 10, 0, linear) for step in (0, 8, 9, 10)] == [1.0, 1.0, 0.5, 0.0]


def test_cosine_that_changes_once_an_epoch() -> None:
    """MoCo's released code: 0.5 (1 + cos(pi e / E)) in epoch e of E, counted from 0; here of two and a half steps."""
    cosine = ScheduleSection(per="epoch")
    factors = [schedule_factor(step, 10, 0, cosine, 2.5) for step in range(10)]
    expected = [0.5 * (1 + math.cos(math.pi * start / 10)) for start in (0, 0, 0, 3, 3, 5, 5, 5, 8, 8)]
    assert factors == pytest.approx(expected)
    every = [schedule_factor(step, 12, 0, cosine, 4) for step in range(12)]
    assert every == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 3)) for e in (0, 1, 2) for _ in range(4)])


def test_a_schedule_of_warm_up_alone_does_not_divide_by_zero() -> None:
    assert schedule_factor(5, 5, 5, ScheduleSection()) == 1.0
