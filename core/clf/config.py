"""Configuration: YAML file + dotted overrides -> one frozen, strictly checked object that knows where values came from.

Layers, weakest first: built-in defaults, the plugin's recommendations, the file, the command line. A field whose
default is ``None`` and says "derived" in its description is filled by :func:`derive` once the rest is known.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from clf.errors import ConfigError, did_you_mean

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
BelowOne: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Tree: TypeAlias = dict[str, Any]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSection(Section):
    dir: str = Field("runs", description="folder that holds all runs")
    name: str | None = Field(None, description="folder of this run inside run.dir; derived: plugin-dataset-number")


class DataSection(Section):
    """Which images: the keys ``data.*``, as a data source gets them."""

    name: str = Field(
        "shapes",
        description="data source: shapes, digits, npz, folder, mnist, fashion_mnist, ..., or of a plugin: PLUGIN, "
        "PLUGIN:SOURCE, ./file.py",
    )
    root: str | None = Field(None, description="file or folder of the source; torchvision sets: where they lie")
    image_size: int | None = Field(None, ge=8, le=1024, description="side of a view in pixels; derived from the source")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of a labelled source without a test split that is held out of training"
    )
    download: bool = Field(False, description="fetch a torchvision set when it is not under data.root")
    limit: int | None = Field(None, ge=1, description="use only the first so many training images of a seeded shuffle")
    workers: int | None = Field(
        None, ge=1, description="threads that decode image files; derived: one a core, at most 32"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="further settings of the source")


class BackboneSection(Section):
    name: str = Field("resnet18", description="any timm model name")
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    stem: Literal["auto", "small", "original"] = Field(
        "auto",
        description="small: stride 1 and no max-pool; auto: small up to 64 pixels, unless pretrained",
    )
    normalize: Literal["auto", "none", "half", "imagenet"] = Field(
        "auto",
        description="input scaling inside the backbone; auto: that of the pretrained weights, or none",
    )
    norm: Literal["keep", "none", "group"] = Field(
        "keep",
        description="normalisation layers; none: taken away, and convolutions get a bias and PyTorch's initial "
        "weights; group: group norm for batch norm",
    )
    activation: Literal["keep", "relu", "leaky_relu", "gelu", "silu"] = Field(
        "keep", description="of all layers; leaky_relu has slope 0.2 below zero"
    )


class TrainSection(Section):
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=2, description="images per step on all ranks together")
    accumulate: int = Field(
        1, ge=1, description="micro-batches per optimiser step; each is its own contrastive batch of batch_size images"
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        description="rows encoded at a time, to fit a large batch into small memory; same loss and gradient, the "
        "encoder runs forward twice, its batch norm sees one chunk; null: all rows at once",
    )
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto", description="bf16 = autocast; fp64 is for proofs; auto: bf16 on CUDA, else fp32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of encoder and augmentation; auto: on CUDA where a C compiler and triton are"
    )
    clip_grad_norm: float | None = Field(None, gt=0, description="largest global gradient norm of a parameter group")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; derived: torch's own choice")
    channels_last: bool | None = Field(None, description="memory format of images; derived: on, except on mps")
    deterministic: bool = Field(True, description="prefer deterministic kernels; on a CPU a run repeats bit for bit")
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="epochs between checkpoints; null: as few as one, so that they take 2 % of the time at most",
    )
    checkpoint_minutes: float = Field(10.0, ge=0, description="minutes between checkpoints at most, in long epochs")
    max_steps: int | None = Field(None, ge=1, description="end after so many optimiser steps, before train.epochs")
    unreachable_seconds: int = Field(
        60, ge=2, description="silence after which another machine is given up, with several of them (Linux)"
    )


class OptimizerSection(Section):
    name: Literal["adamw", "adam", "sgd", "lars"] = Field("adamw")
    lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate; derived: adamw and adam 1e-3, sgd 0.03 x batch/256, lars 0.3 x batch/256",
    )
    weight_decay: float | None = Field(None, ge=0, description="derived: adamw 0.05, adam 0, sgd 1e-4, lars 1e-6")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd and lars")
    betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.999), description="adamw and adam")
    decay_norm_and_bias: bool = Field(False, description="apply weight decay to one-dimensional parameters too")


class ScheduleSection(Section):
    name: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warm-up")
    warmup_epochs: float | None = Field(None, ge=0, description="linear, per step; derived: 10, at most a tenth")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the end of the fall, as a share of the peak")
    decay: float = Field(1.0, gt=0, le=1, description="share of the steps, at the end, in which the rate falls")
    per: Literal["step", "epoch"] = Field("step", description="how often the rate changes after the warm-up")


class AugmentSection(Section):
    """Overrides of the method's recipes, in all views; null keeps the method's own value."""

    crop_area: tuple[Probability, Probability] | None = Field(None, description="range of the crop's share of the area")
    flip: Probability | None = Field(None, description="probability of a horizontal flip")
    jitter: Probability | None = Field(None, description="probability of colour jitter")
    brightness: float | None = Field(None, ge=0, description="jitter strength")
    contrast: float | None = Field(None, ge=0, description="jitter strength")
    saturation: float | None = Field(None, ge=0, description="jitter strength")
    hue: float | None = Field(None, ge=0, le=0.5, description="jitter strength, in turns")
    grayscale: Probability | None = Field(None, description="probability of losing all colour")
    blur: Probability | None = Field(None, description="probability of a Gaussian blur")
    solarize: Probability | None = Field(None, description="probability of solarizing")

    @field_validator("crop_area")
    @classmethod
    def _ordered(cls, area: tuple[float, float] | None) -> tuple[float, float] | None:
        if area and not 0 < area[0] <= area[1]:
            raise ValueError("crop_area must be two rising shares above 0, for example [0.08, 1]")
        return area


class MonitorSection(Section):
    log_every: int = Field(10, ge=1, description="optimiser steps between records of the loss; each is their mean")
    knn_every: int | None = Field(
        None,
        ge=0,
        description="epochs between measurements: collapse, and k-NN where labels exist; 0 = never; derived: as often "
        "as takes less than 1 % of the training, and at its end",
    )
    knn_k: int = Field(20, ge=1, description="neighbours that vote")
    max_images: int | None = Field(
        None,
        ge=10,
        description="images of the k-NN bank and of the queries, at most, each; derived: with knn_every, at most 5000",
    )
    stop_on_collapse: bool = Field(
        False, description="end the training when two measurements in a row find the representation collapsed"
    )
    callbacks: tuple[str, ...] = Field(
        (), description="further observers, by plugin or file: wandb, or [wandb, ./my_callback.py]"
    )

    @field_validator("callbacks", mode="before")
    @classmethod
    def _listed(cls, callbacks: Any) -> Any:
        if isinstance(callbacks, str):
            return [word.strip() for word in callbacks.split(",") if word.strip()]
        return callbacks

    @field_validator("stop_on_collapse")
    @classmethod
    def _measured(cls, stop: bool, info: ValidationInfo) -> bool:
        if stop and info.data.get("knn_every") == 0:
            raise ValueError("nothing is measured with monitor.knn_every = 0; remove one of the two")
        return stop


class Config(Section):
    """Everything that defines a run. The same values and the same data give the same weights."""

    plugin: str = Field(description="the method: a plugin's name, or the path of a Python file")
    seed: int = Field(0, ge=0)
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    backbone: BackboneSection = BackboneSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    augment: AugmentSection = AugmentSection()
    monitor: MonitorSection = MonitorSection()
    method: dict[str, Any] = Field(default_factory=dict, description="settings of the method; clf plugins show NAME")


@dataclass(frozen=True)
class Origins:
    """Where each dotted key's value came from, for ``--print-config`` and for error messages."""

    of: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.of.get(key, "default")


@dataclass(frozen=True)
class Layer:
    """One source of values: a name for messages, and values by dotted key."""

    origin: str
    values: Mapping[str, Any]


def read_file(path: Path) -> Layer:
    """The values of a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping of keys.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid YAML: {_one_line(error)}") from error
    if tree is None:
        return Layer(str(path), {})
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {path} must hold 'key: value' lines, not a {type(tree).__name__}")
    return Layer(str(path), dict(_flatten(tree)))


def parse_overrides(words: Sequence[str]) -> Layer:
    """``["train.epochs=10", "augment.crop_area=[0.2, 1]"]`` as a layer; each value is read as YAML.

    Raises:
        ConfigError: a word is not of the form key=value.
    """
    values: Tree = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not of the form key=value, for example train.epochs=10")
        try:
            values[key] = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {key} is not valid YAML: {_one_line(error)}") from error
    return Layer("command line", values)


def build(layers: Sequence[Layer], method_config: type[BaseModel] | None = None) -> tuple[Config, Origins]:
    """Merges layers, later ones winning, and checks every key, type and range.

    Args:
        layers: weakest first.
        method_config: the model that ``method.*`` is checked against and completed by; without it those keys are
            taken as they are.

    Raises:
        ConfigError: an unknown key (with a suggestion) or a bad value (with its type, range and origin).
    """
    known = dict(_fields(Config))
    if method_config is not None:
        known |= known_keys(method_config, "method.")
    values: Tree = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            _check_key(key, known, layer.origin, open_method=method_config is None)
            values[key] = value
            origins[key] = layer.origin
    tree = _unflatten(values)
    try:
        config = Config.model_validate(tree)
        if method_config is not None:
            checked = method_config.model_validate(config.method)
            config = config.model_copy(update={"method": checked.model_dump(mode="json")})
    except ValidationError as error:
        raise ConfigError(_explain(error, known, origins, config_ok="config" in locals())) from error
    return config, Origins(origins)


def derive(config: Config, origins: Origins | None = None) -> tuple[Config, Origins]:
    """Fills the values that follow from others: learning rate, weight decay, warm-up."""
    section = config.optimizer
    notes: dict[str, str] = {}
    if section.lr is None:
        notes["optimizer.lr"] = f"derived: {_OPTIMIZERS[section.name].source}"
    if section.weight_decay is None:
        notes["optimizer.weight_decay"] = f"derived: {section.name}"
    changed: dict[str, Section] = {"optimizer": derived_optimizer(section, config)}
    if config.schedule.warmup_epochs is None:
        warmup = min(10.0, config.train.epochs / 10)
        changed["schedule"] = config.schedule.model_copy(update={"warmup_epochs": warmup})
        notes["schedule.warmup_epochs"] = "derived: 10, at most a tenth of train.epochs"
    merged = Origins({**(origins.of if origins else {}), **notes})
    return config.model_copy(update=changed), merged


@dataclass(frozen=True)
class _Usual:
    """What is usual for an optimizer."""

    lr: float
    per_256: bool
    """Whether the learning rate grows with the batch."""
    weight_decay: float
    source: str


_OPTIMIZERS = {
    "adamw": _Usual(1e-3, False, 0.05, "AdamW"),
    "adam": _Usual(1e-3, False, 0.0, "Adam"),
    "sgd": _Usual(0.03, True, 1e-4, "0.03 x batch/256, MoCo"),
    "lars": _Usual(0.3, True, 1e-6, "0.3 x batch/256, SimCLR 2.3"),
}


def derived_optimizer(section: OptimizerSection, config: Config) -> OptimizerSection:
    """The section with learning rate and weight decay filled in, where they are not set."""
    usual = _OPTIMIZERS[section.name]
    scale = config.train.batch_size * config.train.accumulate / 256 if usual.per_256 else 1.0
    lr = usual.lr * scale if section.lr is None else section.lr
    decay = usual.weight_decay if section.weight_decay is None else section.weight_decay
    return section.model_copy(update={"lr": lr, "weight_decay": decay})


def flatten(config: Config) -> Tree:
    """Dotted key -> plain value, in the order of the definition."""
    return dict(_flatten(config.model_dump(mode="json")))


def differences(old: Config, new: Config, ignore: Sequence[str] = ()) -> list[str]:
    """One line for each key whose value differs, ``train.epochs: 10 -> 20``."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in {**before, **after} if not key.startswith(tuple(ignore))] if ignore else {**before, **after}
    missing = "(none)"
    return [
        f"{key}: {before.get(key, missing)} -> {after.get(key, missing)}"
        for key in keys
        if before.get(key, missing) != after.get(key, missing)
    ]


def dump_yaml(config: Config, comment: str = "") -> str:
    """The configuration as YAML that :func:`read_file` reads back to the same values."""
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    return header + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key of the engine, or of a method's settings, with its definition, for help and for completion."""
    return dict(_fields(model, prefix))


def describe_type(info: FieldInfo) -> str:
    """A field's type and range in words: ``int, at least 1`` or ``one of adamw, sgd, lars``."""
    return _type_words(info.annotation, info.metadata)


def _type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_words(arguments[0], arguments[1:])
    if origin is Literal:
        words = "one of " + ", ".join(map(str, arguments))
    elif origin in (typing.Union, types.UnionType):
        rest = [a for a in arguments if a is not type(None)]
        words = " or ".join(_type_words(a) for a in rest) + (" or null" if len(rest) < len(arguments) else "")
    elif origin is tuple:
        words = "[" + ", ".join("..." if a is Ellipsis else _type_words(a) for a in arguments) + "]"
    elif origin is not None:
        words = getattr(origin, "__name__", str(origin))
    else:
        words = {bool: "true or false", str: "text"}.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return words + _range_words(metadata)


def _range_words(metadata: Sequence[Any]) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    flat = [inner for item in metadata for inner in getattr(item, "metadata", [item])]
    bounds = [f"{word} {getattr(item, sign):g}" for item in flat for sign, word in signs.items() if hasattr(item, sign)]
    return (", " + " and ".join(bounds)) if bounds else ""


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def _check_key(key: str, known: Mapping[str, FieldInfo], origin: str, *, open_method: bool) -> None:
    if key in known or key.startswith("data.options."):
        return
    if open_method and key.startswith("method."):
        return
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise ConfigError(f"{key!r} ({origin}) is a section; set one of its keys, for example {inside[0]}")
    if key == "method":
        raise ConfigError(f"'method' ({origin}) is a section; set one of its keys, see clf plugins show")
    raise ConfigError(f"unknown key {key!r} ({origin}).{_suggest(key, known)} clf train --print-config lists all keys.")


def _suggest(key: str, known: Mapping[str, FieldInfo]) -> str:
    """A near key, or the key of the same last word in another section, with its type and range."""
    hint = did_you_mean(key, known)
    if not hint:
        last = key.rpartition(".")[2]
        by_last_word = {name.rpartition(".")[2]: name for name in known}
        near = did_you_mean(last, by_last_word)
        hint = f" Did you mean {by_last_word[near.split(chr(39))[1]]!r}?" if near else ""
    if not hint:
        return ""
    name = hint.split("'")[1]
    return f"{hint} ({describe_type(known[name])})"


def _explain(
    error: ValidationError, known: Mapping[str, FieldInfo], origins: Mapping[str, str], *, config_ok: bool
) -> str:
    lines = []
    for problem in error.errors():
        path = [part for part in problem["loc"] if isinstance(part, str)]
        key = ".".join(["method", *path] if config_ok else path)
        while key and key not in known and "." in key:
            key = key.rpartition(".")[0]
        if problem["type"] == "missing" and len(path) == len(problem["loc"]):
            lines.append(f"{key} is not set: give {key}=VALUE ({describe_type(known[key])})")
            continue
        wanted = f" It must be {describe_type(known[key])}." if key in known else ""
        message = problem["msg"].removeprefix("Value error, ")
        if isinstance(problem["input"], dict) and (key == "method" or key not in known):
            # several settings do not go together; the message names them
            lines.append(f"{message}.")
            continue
        lines.append(f"{key} = {problem['input']!r} ({origins.get(key, 'default')}): {message}.{wanted}")
    return "\n".join(dict.fromkeys(lines))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unflatten(values: Mapping[str, Any]) -> Tree:
    """Raises ConfigError when a key is given a value and keys inside it."""
    tree: Tree = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for depth, part in enumerate(path, start=1):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                outer = ".".join(path[:depth])
                raise ConfigError(f"{outer} = {node!r} and {key} = {value!r} cannot both be set; remove one of them")
        node[last] = value
    return tree


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
