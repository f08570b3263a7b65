"""The YAML of a study, checked section by section; what is wrong is named with its place and what was meant."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clf.errors import ConfigError, did_you_mean

Settings: TypeAlias = dict[str, Any]
Seed: TypeAlias = Annotated[int, Field(ge=0)]
Epoch: TypeAlias = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Outline(Part):
    """A section of sections. One with nothing in it is as one that is not there."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, content: Any) -> Any:
        given = {} if content is None else content
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class Evaluate(Part):
    """How the encoder of each cell is measured."""

    knn_k: int = Field(20, ge=1)
    """Neighbours that vote."""
    linear: bool = True
    """Whether a linear probe is fitted too."""
    bank: int | None = Field(None, ge=2)
    """Labelled training images whose features k-NN and the linear probe use, the first so many; None: all, also those
    that ``data.limit`` keeps out of the training."""
    queries: int | None = Field(None, ge=1)
    """Test images, the first so many; None: all."""
    after_epochs: dict[str, tuple[Epoch, ...]] | tuple[Epoch, ...] = ()
    """Epochs after which the encoder is measured too; by row, or the same for all rows."""


class Claim(Part):
    """A sentence of the paper as a comparison of the scores of two cells."""

    text: str
    row: str
    against: str
    """The row that it is compared with."""
    column: str = "end"
    against_column: str | None = None
    """None: the same column."""
    score: Literal["knn", "linear"] = "linear"
    expect: Literal["higher", "lower", "equal"] = "higher"
    after: Epoch | None = None
    """An epoch of ``evaluate.after_epochs``; None: the end."""
    against_after: Epoch | None = None
    to_tell: str = ""
    """What would be needed to tell, in words."""

    @property
    def sides(self) -> tuple[tuple[str, str, int | None], tuple[str, str, int | None]]:
        """Row, column and epoch of what is claimed, and of what it is compared with."""
        ours = self.row, self.column, self.after
        return ours, (self.against, self.against_column or self.column, self.against_after)


class Rule(Part):
    """What is different for some cells."""

    row: str | None = None
    """None: of every row."""
    column: str | None = None
    settings: Settings = {}
    skip: bool = False
    """There is no such cell."""


class ScaleDocument(Outline):
    """What is different at one scale."""

    title: str = ""
    """Added to the study's title."""
    base: Settings = {}
    rows: dict[str, Settings | None] = {}
    columns: dict[str, Settings | None] | None = None
    grid: dict[str, list[Any]] | None = None
    cells: tuple[Rule, ...] = ()
    seeds: tuple[Seed, ...] | None = None
    evaluate: Evaluate = Evaluate()


class StudyDocument(Outline):
    """The whole file."""

    name: str
    title: str
    question: str = ""
    paper: str = ""
    reference: str
    seeds: tuple[Seed, ...] = (0, 1, 2)
    base: Settings = {}
    rows: dict[str, Settings | None] = Field(min_length=1)
    columns: dict[str, Settings | None] | None = None
    grid: dict[str, list[Any]] | None = None
    cells: tuple[Rule, ...] = ()
    runs_of: dict[str, dict[str, str]] = {}
    evaluate: Evaluate = Evaluate()
    claims: tuple[Claim, ...] = ()
    scales: dict[str, ScaleDocument] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
            raise ValueError("a study's name is that of a folder: small letters, digits, '-', '_' and '.'")
        return name

    @field_validator("scales")
    @classmethod
    def _name_folders(cls, scales: dict[str, ScaleDocument]) -> dict[str, ScaleDocument]:
        for name in scales:
            cls._names_a_folder(name)
        return scales


def read_document(path: Path) -> StudyDocument:
    """
    Raises:
        ConfigError: the file is missing, not YAML, names a key twice, or a key or value in it is wrong.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except FileNotFoundError:
        raise ConfigError(f"study {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"study {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"study {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if _holds_itself(tree):
        raise ConfigError(f"study {path} is not valid YAML: an anchor stands inside of what it names")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"study {path} must hold 'key: value' lines, at least name, title, reference, rows and scales"
        )
    try:
        return StudyDocument.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()]
        raise ConfigError("\n".join(f"study {path}: {line}" for line in dict.fromkeys(lines))) from error


def _holds_itself(tree: object) -> bool:
    try:
        json.dumps(tree, default=str, skipkeys=True)
    except ValueError:  # as json calls a circle
        return True
    return False


class _EachKeyOnce(yaml.SafeLoader):
    """YAML takes the last of two equal keys, and the first row of that name would be lost in silence."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._looked_at: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Before ``<<: *anchor`` puts its keys among the mapping's own, which may repeat them."""
        if id(node) not in self._looked_at:
            self._looked_at.add(id(node))
            self._check(node)
        super().flatten_mapping(node)

    def _check(self, node: yaml.MappingNode) -> None:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # YAML's own complaint follows
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.add(key)


_SECTIONS: dict[str, type[Part]] = {"evaluate": Evaluate, "claims": Claim, "cells": Rule, "scales": ScaleDocument}


def _explain(place: Sequence[int | str], kind: str, message: str) -> str:
    """``scales.cpu.evaluate.knnk is unknown. Did you mean 'knn_k'?``"""
    words = ".".join(str(part) for part in place)
    if kind != "extra_forbidden":
        return f"{words}: {message.removeprefix('Value error, ')}"
    inside: type[Part] = StudyDocument
    for part in place[:-1]:
        inside = _SECTIONS.get(str(part), inside)
    fields = inside.model_fields
    return f"{words} is unknown.{did_you_mean(str(place[-1]), fields)} There are {', '.join(fields)}"


def flat(settings: Mapping[str, Any] | None) -> Settings:
    """Nested settings by dotted key; dotted keys stay."""
    return dict(_walk(settings or {}, ""))


def _walk(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
