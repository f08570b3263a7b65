"""The page of a run: gathers what there is and puts the sections together."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

import clf
from clf import config as configuration
from clf import experiment, kept, plugins, runs
from clf.config import Config
from clf.errors import ClfError, PluginError
from clf.evaluate.results import Evaluation, data_key, read_evaluations
from clf.experiment import Experiment
from clf.report import page, tables
from clf.report.classes import classes
from clf.report.gallery import Gallery, make_gallery
from clf.report.repeating import repeat_command
from clf.report.scatter import embedding_map, palette
from clf.report.verdicts import Facts, verdicts
from clf.runs import Run

FILE = "report.html"

Section = tuple[str, str, str]
"""Title, explaining sentence, HTML."""


@dataclass(frozen=True)
class Found:
    """All that a report is made of."""

    run: Run
    config: Config
    values: dict[str, Any]
    manifest: dict[str, Any]
    records: list[dict[str, Any]]
    evaluations: dict[str, Evaluation]
    """That of the run's own data first."""
    trained: Experiment | None
    gallery: Gallery | None
    missing: str
    """Why there are no pictures."""


def write_report(run: Run) -> Path:
    """Writes ``report.html`` into the run folder: verdicts, curves, map, neighbours, views, evaluation, configuration.

    Without a usable checkpoint, or when the data are no longer there, the page has no pictures and says why.

    Raises:
        RunError: the run's configuration or its evaluation cannot be read.
        ConfigError: its configuration is not valid.
    """
    found = _gather(run)
    sections = [section for section in [*_pictured(found), *_told(found)] if section[2]]
    body = [
        page.head(run.name, found.manifest, found.values),
        page.cards(found.evaluations.values(), found.records, found.manifest),
        f'<p class="verdict bad">{escape(found.missing)}</p>' if found.missing else "",
        page.verdicts(verdicts(_facts(found))),
        page.contents(title for title, _, _ in sections),
        *(page.section(*section) for section in sections),
        f"<footer>Written by clf {clf.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>",
    ]
    text = Template(_template(FILE)).substitute(
        title=escape(f"{run.name} · clf"),
        style=_template("common.css") + palette(),
        body="\n".join(part for part in body if part),
        script=_template("map.js"),
    )
    return runs.replace_text(run.path / FILE, text)


def _template(name: str) -> str:
    return (files("clf") / "templates" / name).read_text(encoding="utf-8")


def _gather(run: Run) -> Found:
    config = run.config()
    manifest, records, evaluations = run.manifest(), run.metrics(), read_evaluations(run)
    own = data_key(config.data)
    gallery, trained, missing = None, None, ""
    try:
        trained = experiment.load(run)
        with trained.calls.anywhere():
            gallery = make_gallery(trained)
    except ClfError as error:
        missing = f"There are no pictures in this report: {error}"
    return Found(
        run=run,
        config=config,
        values=configuration.flatten(config),
        manifest=manifest,
        records=records,
        evaluations=dict(sorted(evaluations.items(), key=lambda item: item[0] != own)),
        trained=trained,
        gallery=gallery,
        missing=missing,
    )


def _facts(found: Found) -> Facts:
    wanted = None
    with suppress(ClfError):  # a method that is not here any more cannot be asked
        wanted = plugins.load_method(kept.plugin_of(found.run, found.config)).min_batch_size
    return Facts(
        records=found.records,
        manifest=found.manifest,
        values=found.values,
        evaluations=tuple(found.evaluations.values()),
        found=found.gallery.found if found.gallery else None,
        wanted_batch=wanted,
        folder=str(found.run.path),
    )


def _pictured(found: Found) -> Iterator[Section]:
    """Curves and pictures."""
    records, gallery = found.records, found.gallery
    levels = page.comparable_baselines(found.evaluations.values(), records, found.manifest, found.values)
    yield "Training", "Each curve over the epochs of the run.", page.charts(records, levels)
    yield (
        "What the method measured",
        "Its own diagnostics; its README says what each means.",
        page.own_charts(records),
    )
    if found.trained is not None:
        drawn = page.own_pictures(_drawn(found.trained))
        yield "The method's own pictures", "Drawn by the method from its state.", drawn
    if gallery is None:
        return
    yield (
        "Embedding map",
        f"Each mark is one of the {gallery.query_split} images, where its features put it. Point at a mark, tap it, or "
        "use the arrow keys to see its image. Training never saw the labels that colour it.",
        embedding_map(gallery.map),
    )
    yield (
        "Nearest neighbours",
        f"{len(gallery.searches)} random {gallery.query_split} images and what is nearest to them among "
        f"{gallery.searched:,} training images, by cosine. Labels, where they exist, colour the result; "
        "training never saw them.",
        page.searches(gallery),
    )
    yield (
        "What the method saw",
        "The first images of the run with the very views its first step was given. The views of one image "
        "should still show the same thing to you.",
        page.views(gallery),
    )


def _told(found: Found) -> Iterator[Section]:
    """Figures and words."""
    run, gallery = found.run, found.gallery
    own = found.evaluations.get(data_key(found.config.data))
    yield "Classes", "", classes(own, gallery.judged if gallery else None)
    yield (
        "Evaluation",
        "The trained encoder beside its baselines, in percent. Training is worth what it adds to them.",
        tables.evaluations(found.evaluations),
    )
    yield (
        "Without labels",
        f"What the trained encoder's features of {gallery.found.images:,} training images say about themselves."
        if gallery
        else "",
        page.figures_in_words(gallery.found if gallery else None),
    )
    yield (
        "Configuration",
        "Values that differ from the defaults come first.",
        page.configuration(found.values, _defaults(found.config, found.trained), _descriptions(found.trained)),
    )
    file = shlex.join(["clf", "train", "--config", str(run.path / "config.yaml"), f"run.name={run.name}-again"])
    plugin = None
    with suppress(ClfError):  # what the run was trained with is not here any more
        plugin = kept.word_of(run)
    commands = page.repeat(repeat_command(found.config, plugin), file, found.manifest.get("command"))
    yield "Repeat it", "These commands train the same run again.", commands + page.provenance(found.manifest)


def _drawn(trained: Experiment) -> dict[str, Tensor]:
    """The method's pictures.

    Raises:
        PluginError: one is not (rows, columns, 1 or 3, H, W).
    """
    with torch.no_grad(), trained.calls("pictures"):
        pictures = dict(trained.method.pictures())
    for title, images in pictures.items():
        if images.ndim != 5 or images.shape[2] not in (1, 3) or 0 in images.shape:
            raise PluginError(
                f"picture {title!r} of method {trained.config.plugin!r} has the shape {tuple(images.shape)}; "
                "(rows, columns, 1 or 3, H, W) is needed"
            )
    return pictures


def _defaults(config: Config, trained: Experiment | None) -> dict[str, Any]:
    """What the values would be with nothing but the plugin given."""
    method = {} if trained is None else trained.method.Config().model_dump(mode="json")
    plain, _ = configuration.derive(Config(plugin=config.plugin, method=method))
    return configuration.flatten(plain)


def _descriptions(trained: Experiment | None) -> dict[str, str]:
    fields = dict(configuration.known_keys())
    if trained is not None:
        fields |= configuration.known_keys(trained.method.Config, "method.")
    return {name: info.description or "" for name, info in fields.items()}
