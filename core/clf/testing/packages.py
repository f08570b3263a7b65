"""Checks of the package: what needs no training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ValidationError

import clf
from clf import catalogue, config, public, settings
from clf.checks import Check, Failed, Skipped
from clf.config import Layer
from clf.entrypoints import DISTRIBUTION
from clf.errors import ClfError, did_you_mean
from clf.testing import imports
from clf.testing.sources import shown

if TYPE_CHECKING:
    from clf.testing.importing import Found
    from clf.testing.subject import Subject

SLOW = 2.0
"""Seconds of the processor that an import may take beyond clf and torch."""
MOST = 5
"""Faults of one kind that are told."""
NAME = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")
FOREIGN = ("test", "tests", "doc", "docs", "example", "examples", "src", "build", "dist")
"""Top-level names that many packages install by mistake, and that collide."""


def loads(subject: Subject) -> str | None:
    found = _found(subject)
    if found.error:
        raise Failed(found.error)
    try:
        plugin = subject.plugin
    except ClfError as error:
        raise Failed(f"it loads once and not a second time: {error}") from error
    counts: dict[str, tuple[object, ...]] = {
        "method": plugin.methods,
        "data source": plugin.datasets,
        "callback": plugin.callbacks,
        "evaluator": plugin.evaluators,
    }
    return ", ".join(f"{len(each)} {name}{'s' * (len(each) > 1)}" for name, each in counts.items() if each)


def name(subject: Subject) -> str | None:
    for method in subject.plugin.methods:
        if not NAME.fullmatch(method.name):
            raise Failed(
                f"a method is named {method.name!r}: a name is made of small letters, digits, '_' and '-', and ends in "
                "a letter or digit"
            )
    offer = subject.info.offer
    if offer is None:
        return f"a single file, method {subject.method.name!r}"
    offered = {row.name for row in catalogue.list_plugins() if row.distribution == offer.distribution}
    names = [method.name for method in subject.plugin.methods]
    if names and offer.name not in names:
        raise Failed(f"the entry point is named {offer.name!r}, and the methods {', '.join(map(repr, names))}")
    if lost := [each for each in names if each not in offered]:
        raise Failed(f"method {lost[0]!r} cannot be reached: {offer.distribution} has no entry point of that name")
    return f"{offer.name} = {offer.value}"


def described(subject: Subject) -> str | None:
    faults = list(_config_faults(subject.method.Config, "method."))
    if faults:
        raise Failed(_listed(faults))
    count = len(config.known_keys(subject.method.Config, "method."))
    return f"{count} setting{'s' * (count != 1)}"


def _config_faults(model: type[BaseModel], prefix: str) -> Iterator[str]:
    wanted = {"frozen": (True, "is not frozen"), "extra": ("forbid", "takes unknown keys")}
    for option, (value, fault) in wanted.items():
        if model.model_config.get(option) != value:
            yield f"{model.__name__} {fault} (model_config {option}={model.model_config.get(option)!r})"
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _config_faults(field.annotation, f"{prefix}{key}.")
        elif not (field.description or "").strip():
            yield f"{prefix}{key} has no description"


def defaults(subject: Subject) -> str | None:
    model = subject.method.Config
    known = config.known_keys(model, "method.")
    required = [key for key, field in known.items() if field.is_required()]
    if required:
        raise Failed(f"{', '.join(required)} {'has' if len(required) == 1 else 'have'} no default")
    _round_trip(model)
    for source, values in _recommendations(subject):
        if not isinstance(values, Mapping):
            raise Failed(f"{source} is a {type(values).__name__} and not a mapping of keys to values")
        if other := [key for key in values if not isinstance(key, str) or key.startswith(("run.", "plugin"))]:
            raise Failed(f"{source} sets {other[0]!r}, which is the user's")
        try:
            settings.resolve([Layer(source, values), Layer("check", {"plugin": subject.name_or_path})])
        except ClfError as error:
            raise Failed(f"{source} is no valid configuration: {error}") from error
    return None


def _recommendations(subject: Subject) -> Iterator[tuple[str, Any]]:
    from clf.method import Method

    method = subject.method
    if method.recommended.__func__ is not Method.recommended.__func__:  # type: ignore[attr-defined]
        yield f"{method.__name__}.recommended({{}})", method.recommended({})
    yield f"{method.__name__}.defaults", method.defaults
    yield f"{method.__name__}.tiny", method.tiny


def _round_trip(model: type[BaseModel]) -> None:
    """The default settings survive config.yaml, from which a resumed run reads them."""
    try:
        made = model()
        kept = json.loads(json.dumps(made.model_dump(mode="json")))
        again = model.model_validate(kept)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or model.__name__
        raise Failed(f"the default of {place} is refused by its own type or range: {first['msg']}") from error
    if again != made:
        differing = [key for key in kept if getattr(again, key) != getattr(made, key)]
        raise Failed(f"method.{differing[0]} is another value after it was written to config.yaml and read again")


def public_names(subject: Subject) -> str | None:
    own = {row.value.partition(":")[0].partition(".")[0] for row in catalogue.list_plugins() if row.builtin}
    own -= {subject.info.value.partition(":")[0].partition(".")[0]}
    faults, notes, count = [], set(), 0
    for file in _source_files(subject):
        try:
            used = imports.uses(file, frozenset({"clf", "clf_serve", *own}))
        except (SyntaxError, ValueError) as error:
            raise Failed(f"{shown(file)} is no Python: {error}") from error
        for use in used:
            count += 1
            if use.name.partition(".")[0] in own:
                notes.add(f"uses {use.name.partition('.')[0]}, whose names are not promised")
            elif not public.is_public(use.name):
                faults.append(f"{shown(file)}, line {use.line}: {use.name} is not public.{_hint(use.name)}")
            elif instead := public.replacement(use.name):
                notes.add(f"{use.name} is deprecated: use {instead}")
    if faults:
        raise Failed(_listed(faults))
    return "; ".join([f"{count} uses of clf, all public", *sorted(notes if not subject.info.builtin else ())])


def _hint(name: str) -> str:
    """Which public name was meant."""
    for part in reversed(name.split(".")[1:]):
        for module in ("clf", *(f"clf.{each}" for each in public.MODULES)):
            if part in getattr(import_module(module), "__all__", ()):
                return f" Write {module}.{part}."
    return did_you_mean(name, [f"clf.{each}" for each in clf.__all__])


def quiet(subject: Subject) -> str | None:
    found = _found(subject)
    deeds = list(found.deeds)
    if found.slept:
        deeds.append(f"sleeps {found.slept:.1f} s")
    if found.cpu_seconds > SLOW:
        brought = f"; it brings {', '.join(found.brought[:3])}" if found.brought else ""
        deeds.append(f"takes {found.cpu_seconds:.1f} s of the processor beyond clf and torch{brought}")
    if deeds:
        raise Failed(f"importing it {_listed(deeds)}")
    return f"{found.cpu_seconds:.2f} s of the processor beyond clf and torch"


def requirement(subject: Subject) -> str | None:
    offer = _own_distribution(subject)
    found = [each for each in map(_parsed, offer.requires) if each is not None]
    ours = [each for each in found if canonicalize_name(each.name) == DISTRIBUTION]
    if not ours:
        raise Failed(f"{offer.distribution} does not require {DISTRIBUTION}")
    needed = [each for each in ours if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not needed:
        raise Failed(f"{offer.distribution} requires {DISTRIBUTION} only where {ours[0].marker}")
    specifiers = [each for one in needed for each in one.specifier]
    text = str(needed[0]) if len(needed) == 1 else ", ".join(map(str, needed))
    if not any(each.operator in (">=", ">", "~=", "==", "===") for each in specifiers):
        raise Failed(f"{text!r} has no lower bound")
    if not any(each.operator in ("<", "<=", "~=", "==", "===") for each in specifiers):
        raise Failed(f"{text!r} has no upper bound")
    return text


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:
        return None


def package(subject: Subject) -> str | None:
    offer = _own_distribution(subject)
    try:
        Version(offer.version)
    except InvalidVersion as error:
        raise Failed(f"{offer.version!r} is no version that pip can compare") from error
    top = offer.value.partition(":")[0].partition(".")[0]
    installed = {str(each).replace("\\", "/") for each in metadata.files(offer.distribution) or ()}
    names = sorted({each.partition("/")[0] for each in installed if each.endswith(".py") and not each.startswith("..")})
    foreign = [each for each in names if each.removesuffix(".py") in FOREIGN or _is_of_others(each, offer.distribution)]
    if foreign:
        raise Failed(f"{offer.distribution} installs {foreign[0]!r} beside its package {top!r}")
    typed = _is_typed(top)
    return f"version {offer.version}" + ("" if typed else "; no py.typed, so type checkers ignore its annotations")


def _is_of_others(top: str, distribution: str) -> bool:
    """Whether a top-level name that is installed is that of clf or of one of its plugins."""
    rows = catalogue.list_plugins()
    taken = {"clf", "clf_serve"} | {row.value.partition(":")[0].partition(".")[0] for row in rows if row.builtin}
    return top.removesuffix(".py") in taken and canonicalize_name(distribution) != DISTRIBUTION


def _is_typed(package: str) -> bool:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    return any((Path(folder) / "py.typed").is_file() for folder in (spec and spec.submodule_search_locations) or ())


def _own_distribution(subject: Subject) -> Any:
    offer = subject.info.offer
    if offer is None:
        raise Skipped("a single file has no packaging metadata")
    if offer.builtin:
        raise Skipped(f"it is part of {DISTRIBUTION}")
    return offer


def _source_files(subject: Subject) -> tuple[Path, ...]:
    files = subject.source_files
    if not files:
        raise Failed(f"no Python file of {subject.info.value!r} is found, so nobody can read what it imports")
    return files


def _found(subject: Subject) -> Found:
    from clf.testing.importing import probe

    return subject.once("probe", lambda: probe(subject.name_or_path, subject.folder))


def _listed(faults: list[str]) -> str:
    """The first faults, and how many more there are."""
    rest = len(faults) - MOST
    return "; ".join(faults[:MOST]) + (f"; and {rest} more" if rest > 0 else "")


CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "loads",
        "The plugin is loaded in a fresh process, and then in this one; its hooks return what they must.",
        "A plugin that cannot be loaded cannot be used, and one that ends the process takes the whole command with it.",
        "Import it yourself (python -c 'import PACKAGE') and read the traceback; mark each hook with @clf.hookimpl and "
        "let it return a list of classes.",
        loads,
    ),
    Check(
        "name",
        "Method.name, the entry point's name and its distribution agree.",
        "clf train --plugin NAME looks for the entry point NAME, and in it for the method of that name.",
        "Give both one name: name = 'NAME' in the class, and NAME = 'package' under "
        '[project.entry-points."clf.plugins"] in pyproject.toml; then install the package again.',
        name,
        ("loads",),
    ),
    Check(
        "config",
        "Config is frozen, forbids unknown keys, and describes every field.",
        "A misspelt key must be an error and no lost night, a run must be what its config.yaml says, and clf plugins "
        "show prints the descriptions as the only documentation of the settings.",
        "Derive Config from clf.MethodConfig, leave its model_config alone, and write each field as "
        "Field(0.5, gt=0, description='tau (section 3)').",
        described,
        ("name",),
    ),
    Check(
        "defaults",
        "Every field has a default that its own type accepts and config.yaml keeps; defaults, recommended and tiny "
        "name existing keys.",
        "clf train --plugin NAME must work with no further word, and a resumed run reads its settings from a file.",
        "Give each field the paper's value as default, in a type that JSON can hold; write engine keys as clf train "
        "--print-config prints them.",
        defaults,
        ("name",),
    ),
    Check(
        "imports",
        "Which names of clf the source files use, read from their syntax trees without running them.",
        "Names that are not public change in any release without notice, and the plugin would break for its users.",
        "Use the names of clf.__all__ and of " + ", ".join(f"clf.{each}" for each in public.MODULES) + "; if what you "
        "need is not among them, ask for it, or write it in your own package.",
        public_names,
        ("loads",),
    ),
    Check(
        "import is quiet",
        "What importing does besides defining things: output, files, processes, network, threads, settings of the "
        "process, and time.",
        "clf imports a plugin to show or check it; work done then slows or breaks commands that never use it, and a "
        "changed random state or torch setting makes other methods irreproducible.",
        "Move the work into __init__, views or training_step, take random numbers from ctx.generator, and import what "
        "is slow inside the function that uses it.",
        quiet,
        ("loads",),
    ),
    Check(
        "requirement",
        f"The distribution requires {DISTRIBUTION} with a lower and an upper bound.",
        "Without an upper bound pip pairs the plugin with a clf it was never tried with; without a lower one, with a "
        "clf that lacks what it uses.",
        f'Write dependencies = ["{DISTRIBUTION}>=0.1,<0.2"] in pyproject.toml, and raise the bounds after trying.',
        requirement,
        ("loads",),
    ),
    Check(
        "package",
        "The version can be compared, and nothing is installed beside the plugin's own package.",
        "Files in a folder such as tests, or in clf itself, overwrite those of other packages.",
        "Name the package in pyproject.toml; for hatchling, packages = ['src/PACKAGE'] under "
        "[tool.hatch.build.targets.wheel].",
        package,
        ("loads",),
    ),
)
