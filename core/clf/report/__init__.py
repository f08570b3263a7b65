"""``clf report``: a run on one page that needs no network and no server, to read oneself and to show to others."""

from __future__ import annotations

import shlex
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
from clf import experiment, runs
from clf.config import Config
from clf.errors import ClfError, PluginError
from clf.evaluate.results import read_evaluations
from clf.experiment import Experiment
from clf.report import page
from clf.report.gallery import make_gallery
from clf.runs import Run

FILE = "report.html"


def write_report(run: Run) -> Path:
    """Writes ``report.html`` into the run folder: curves, views, neighbours, evaluation, configuration, provenance.

    Without a usable checkpoint, or when the data are no longer there, the page has no pictures and says why.

    Raises:
        RunError: the run's configuration or its evaluation cannot be read.
        ConfigError: its configuration is not valid.
    """
    values = configuration.flatten(run.config())
    manifest, records, evaluations = run.manifest(), run.metrics(), read_evaluations(run)
    gallery, trained, missing = None, None, ""
    try:
        trained = experiment.load(run)
        gallery = make_gallery(trained)
    except ClfError as error:
        missing = f'<p class="verdict bad">{escape(f"There are no pictures in this report: {error}")}</p>'
    found = gallery.found if gallery else None
    parts = [
        page.head(run.name, manifest, values),
        page.cards(evaluations.values(), records, manifest),
        page.verdict(found) or missing,
        page.section("Training", "Each curve over the epochs of the run.", page.charts(records)),
    ]
    parts.append(
        page.section(
            "What the method measured",
            "Its own diagnostics; its README says what each means.",
            page.own_charts(records),
        )
    )
    if trained is not None:
        parts.append(
            page.section(
                "The method's own pictures", "Drawn by the method from its state.", page.own_pictures(_drawn(trained))
            )
        )
    if gallery is not None:
        parts += [
            page.section(
                "Nearest neighbours",
                f"{len(gallery.searches)} random {gallery.query_split} images and what is nearest to them among "
                f"{gallery.searched:,} training images, by cosine. Labels, where they exist, colour the result; "
                "training never saw them.",
                page.searches(gallery),
            ),
            page.section(
                "What the method saw",
                "The first images of the run with the very views its first step was given. The views of one image "
                "should still show the same thing to you.",
                page.views(gallery),
            ),
        ]
    parts += [
        page.section(
            "Evaluation",
            "The trained encoder beside its baselines, in percent. Training is worth what it adds to them.",
            page.evaluations(evaluations),
        ),
        page.section("Without labels", "What the features say about themselves.", page.figures_in_words(found)),
        page.section(
            "Configuration",
            "Values that differ from the defaults come first.",
            page.configuration(values, _defaults(run.config(), trained), _descriptions(trained)),
        ),
        page.section("Repeat it", "This command trains the same run again.", _repeat(run, manifest)),
        f"<footer>Written by clf {clf.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</footer>",
    ]
    template = Template((files("clf") / "templates" / FILE).read_text(encoding="utf-8"))
    text = template.substitute(title=escape(f"{run.name} · clf"), body="\n".join(part for part in parts if part))
    return runs.replace_text(run.path / FILE, text)


def _drawn(trained: Experiment) -> dict[str, Tensor]:
    """The method's pictures.

    Raises:
        PluginError: one is not (rows, columns, 1 or 3, H, W).
    """
    with torch.no_grad():
        pictures = dict(trained.method.pictures())
    for title, images in pictures.items():
        if images.ndim != 5 or images.shape[2] not in (1, 3) or 0 in images.shape:
            raise PluginError(
                f"picture {title!r} of method {trained.config.plugin!r} has the shape {tuple(images.shape)}; "
                "(rows, columns, 1 or 3, H, W) is needed"
            )
    return pictures


def _repeat(run: Run, manifest: dict[str, Any]) -> str:
    config = run.path / "config.yaml"
    command = shlex.join(["clf", "train", "--config", str(config), f"run.name={run.name}-again"])
    return page.repeat(command, manifest.get("command")) + page.provenance(manifest)


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
