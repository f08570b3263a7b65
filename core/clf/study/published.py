"""Figures that others have published, as ``published.yaml`` holds them: with their source and how it measures."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clf.errors import ConfigError


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class Figure(Part):
    """One published number."""

    method: str
    set: str
    backbone: str = ""
    epochs: str = ""
    batch: str = ""
    metric: str
    value: str
    """In percent, as the source words it."""
    time: str = ""
    """The source's own, with its hardware."""


class Source(Part):
    """Figures of one repository or paper that were measured alike."""

    source: str
    beside: tuple[str, ...]
    """Names of the studies that it stands beside."""
    differs: str
    """How its protocol differs from ours."""
    figures: tuple[Figure, ...]


def read_published(path: Path) -> tuple[Source, ...]:
    """All sources of a file; none where there is no file.

    Raises:
        ConfigError: the file cannot be read, or is not of this form.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(tuple[Source, ...]).validate_python(tree or ())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
