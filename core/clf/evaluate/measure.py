"""``clf evaluate``: one run on one data set, beside raw pixels and an untrained encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import clf
from clf import diagnostics, experiment
from clf.config import Config, DataSection
from clf.data.stream import Stream
from clf.diagnostics import Diagnostics
from clf.evaluate import plugged, words
from clf.evaluate.features import encode
from clf.evaluate.fine_tune import fine_tune
from clf.evaluate.material import DIAGNOSED, PAIRS, Material, other_data, prepare
from clf.evaluate.pixels import raw_pixels
from clf.evaluate.plugged import Evaluators
from clf.evaluate.results import (
    OF_ALL,
    PROTOCOL_NAMES,
    Evaluation,
    FineTuned,
    Representation,
    add_evaluation,
    evaluator_key,
)
from clf.evaluate.results import data_key as data_key
from clf.evaluate.scores import Labelled, scores
from clf.experiment import Experiment
from clf.runs import Run

Say: TypeAlias = Callable[[str], None]
"""Told what is being done, in a few words."""


def _silent(what: str) -> None:
    return


def evaluate_run(
    run: Run,
    on: DataSection | None = None,
    *,
    everything: bool = False,
    fine_tune_epochs: int | None = None,
    evaluators: Evaluators | None = None,
    say: Say = _silent,
) -> Evaluation:
    """Measures a run's encoder and its baselines, and adds the result to the run's ``evaluation.json``.

    With labels: weighted k-NN and a linear probe. Always: RankMe, alignment, uniformity and feature spread. Nothing is
    tuned on the test split, and the encoder is the run's last checkpoint. What is not asked for now stays in the file
    as an earlier evaluation of the same checkpoint and images found it.

    Args:
        on: another data set; its images are resized to the run's size and channels. Its training split is the bank
            and its test split the queries.
        everything: with labels also 1 % and 10 % of them, few shots, and retrieval.
        fine_tune_epochs: train the encoders on the labels too, which is slow, for so many epochs.
        evaluators: of plugins. What is wrong with them becomes notes of the evaluation and their ``complaints``.

    Raises:
        RunError: the run cannot be loaded.
        DataError: the other data set cannot be loaded.
        TrainingError: fine-tuning diverged; what was measured before it is written.
    """
    started = time.monotonic()
    say("loading")
    trained = experiment.load(run, same_data=on is None)
    source = trained.data if on is None else other_data(on, trained)
    material = prepare(source, trained)
    key = data_key(trained.config.data if on is None else on)
    encoders = [*_baselines(trained), ("trained encoder", trained)]
    with trained.calls.anywhere():
        rows = _rows(encoders, material, run_device(trained.config), everything, say)
    notes = words.notes(source, material, everything, fine_tune_epochs is not None)
    found = rows[-1].diagnostics
    created = _now()
    evaluation = Evaluation(
        run=run.name,
        step=trained.step,
        data=source.name,
        fingerprint=source.fingerprint,
        train_images=len(material.bank),
        test_images=len(material.queries),
        classes=material.classes,
        representations=tuple(rows),
        verdict=diagnostics.verdict(found) if found else None,
        protocol=words.protocol(trained, source, material, everything),
        notes=(*notes, *words.of_rows(rows, len(material.queries))),
        measured=dict.fromkeys(OF_ALL, created) if everything and material.scorable else {},
        device=str(run_device(trained.config)),
        seconds=round(time.monotonic() - started, 2),
        created=created,
        clf_version=clf.__version__,
    )
    evaluation = add_evaluation(run, key, evaluation)

    def add(more: Evaluation) -> Evaluation:
        return add_evaluation(run, key, more.model_copy(update={"seconds": round(time.monotonic() - started, 2)}))

    if evaluators is not None:
        with trained.calls.anywhere():
            evaluation = add(_with_evaluators(evaluation, evaluators, encoders, material, say))
    if fine_tune_epochs is not None and material.scorable:
        with trained.calls.anywhere():
            evaluation = add(_fine_tuned(evaluation, encoders, material, fine_tune_epochs, say))
    return evaluation


def _baselines(trained: Experiment) -> list[tuple[str, Experiment]]:
    """The run before its first step, and without pretrained weights if it had some."""
    config = trained.config
    if not config.backbone.pretrained:
        return [("random encoder", experiment.build(config, trained.data, plugin=trained.plugin))]
    untrained = config.backbone.model_copy(update={"pretrained": False, "stem": "original"})
    random = config.model_copy(update={"backbone": untrained})
    return [
        ("random encoder", experiment.build(random, trained.data, plugin=trained.plugin)),
        ("pretrained encoder", experiment.build(config, trained.data, plugin=trained.plugin)),
    ]


def _rows(
    encoders: Sequence[tuple[str, Experiment]], material: Material, device: torch.device, everything: bool, say: Say
) -> list[Representation]:
    """Raw pixels, where there is a figure to compare them by, and the encoders."""
    rows = []
    if material.scorable:
        say("raw pixels")
        rows.append(_measure_pixels(material, encoders[-1][1].config.seed, device, everything))
    for name, what in encoders:
        say(name)
        rows.append(_measure(name, what, material, device, everything))
    return rows


def _measure_pixels(material: Material, seed: int, device: torch.device, everything: bool) -> Representation:
    started = time.monotonic()
    bank, queries = _features(None, material, device)
    found = _scores(bank, queries, material, seed, device, everything)
    seconds = round(time.monotonic() - started, 2)
    return Representation(name="raw pixels", dim=bank.shape[1], seconds=seconds, **found)


def _measure(name: str, what: Experiment, material: Material, device: torch.device, everything: bool) -> Representation:
    started = time.monotonic()
    encoder = what.method.encoder().to(device)
    bank, queries = _features(encoder, material, device)
    scored = _scores(bank, queries, material, what.config.seed, device, everything) if material.scorable else {}
    found = _diagnose(encoder, what, queries if len(queries) > 1 else bank, device)
    seconds = round(time.monotonic() - started, 2)
    return Representation(name=name, dim=bank.shape[1], diagnostics=found, seconds=seconds, **scored)


def _scores(
    bank: Tensor, queries: Tensor, material: Material, seed: int, device: torch.device, everything: bool
) -> dict[str, Any]:
    assert material.bank_labels is not None
    assert material.query_labels is not None
    labels = material.bank_labels.to(device), material.query_labels.to(device)
    labelled = Labelled(bank.to(device), labels[0], queries.to(device), labels[1])
    return scores(labelled, material.class_names, seed, everything)


def _with_evaluators(
    evaluation: Evaluation,
    evaluators: Evaluators,
    encoders: Sequence[tuple[str, Experiment]],
    material: Material,
    say: Say,
) -> Evaluation:
    """The evaluation with what evaluators of plugins find: of raw pixels, and of each of its encoders."""
    fitting = evaluators.fitting(material)
    trained = encoders[-1][1].config
    device, found, dims = run_device(trained), {}, {}
    for name, what in [("raw pixels", None), *encoders] if fitting else []:
        encoder = None if what is None else what.method.encoder().to(device)
        bank, queries = _features(encoder, material, device)
        say(f"{', '.join(each.name for each in fitting)} of {name}")
        subject = plugged.subject(name, bank, queries, material, encoder, str(device), trained.seed)
        found[name], dims[name] = evaluators.measure(subject, fitting), bank.shape[1]
    measured = {each.name for each in fitting if any(each.name in figures for figures in found.values())}
    rows = [
        row.model_copy(update={"extra": {**_others(row.extra, measured), **found.get(row.name, {})}})
        for row in evaluation.representations
    ]
    if found.get("raw pixels") and not any(row.name == "raw pixels" for row in rows):
        pixels = Representation(name="raw pixels", dim=dims["raw pixels"], extra=found["raw pixels"], seconds=0.0)
        rows = [pixels, *rows]
    made = [each for each in fitting if each.name in measured]
    return evaluation.model_copy(
        update={
            "representations": tuple(rows),
            "protocol": {**evaluation.protocol, **plugged.protocols(made)},
            "notes": (*evaluators.others(evaluation.notes), *evaluators.left_out(material), *evaluators.complaints),
            "measured": {**evaluation.measured, **{evaluator_key(each.name): _now() for each in made}},
        }
    )


def _others(extra: Mapping[str, dict[str, float]], measured: Collection[str]) -> dict[str, dict[str, float]]:
    """Figures of an earlier evaluation that are not measured anew."""
    return {name: figures for name, figures in extra.items() if name not in measured}


def _features(encoder: nn.Module | None, material: Material, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, D) and (m, D) on the CPU, of pixels without an encoder."""
    if encoder is None:
        bank = raw_pixels(material.bank)
        return bank, raw_pixels(material.queries) if len(material.queries) else bank[:0]
    bank = encode(encoder, material.bank, device=device)
    return bank, encode(encoder, material.queries, device=device) if len(material.queries) else bank[:0]


def _fine_tuned(
    evaluation: Evaluation, encoders: Sequence[tuple[str, Experiment]], material: Material, epochs: int, say: Say
) -> Evaluation:
    """The evaluation with each of its encoders fine-tuned."""
    assert material.bank_labels is not None
    assert material.query_labels is not None
    trained = encoders[-1][1]
    device, flip = run_device(trained.config), trained.recipes[0].flip
    found = {}
    for name, what in encoders:
        accuracy, seconds = fine_tune(
            what.method.encoder(),
            material.bank,
            material.bank_labels,
            material.queries,
            material.query_labels,
            epochs=epochs,
            seed=trained.config.seed,
            flip=flip,
            device=device,
            bf16=device.type == "cuda" and trained.config.train.precision == "bf16",
            on_epoch=partial(_say_epoch, say, name, epochs),
        )
        found[name] = FineTuned(accuracy=accuracy, epochs=epochs, seconds=seconds)
    rows = [row.model_copy(update={"fine_tuned": found.get(row.name)}) for row in evaluation.representations]
    protocol = {PROTOCOL_NAMES["fine_tuned"]: words.of_fine_tuning(material, epochs, flip)}
    return evaluation.model_copy(
        update={
            "representations": tuple(rows),
            "protocol": {**evaluation.protocol, **protocol},
            "measured": {**evaluation.measured, "fine_tuned": _now()},
        }
    )


def _say_epoch(say: Say, name: str, epochs: int, done: int) -> None:
    say(f"fine-tuning the {name}: {done} of {epochs} epochs")


def _diagnose(encoder: nn.Module, what: Experiment, features: Tensor, device: torch.device) -> Diagnostics | None:
    """Label-free figures of features, and of two views of training images as the method draws them."""
    if len(features) < 2:
        return None
    rows = torch.linspace(0, len(features) - 1, min(DIAGNOSED, len(features))).long()
    return diagnostics.diagnose(features[rows], view_features(encoder, what, device))


def view_features(encoder: nn.Module, what: Experiment, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Features of the first two views of the run's first images, (m, D) each; None for a method of one view."""
    if len(what.recipes) < 2:
        return None
    a, b = first_views(what, PAIRS)[1][:2]
    return encode(encoder, a, device=device), encode(encoder, b, device=device)


def first_views(what: Experiment, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The first images of the run in training order with the very views its first steps saw.

    Returns:
        Positions (m,) int64 and V tensors (m, C, S, S) uint8, m = ``count`` at most.
    """
    images = what.data.train.images
    batch_size = min(what.config.train.batch_size, len(images))
    stream = Stream(images, what.recipes, batch_size, what.config.seed, torch.device("cpu"))
    batches = [stream.next() for _ in range(min(-(-count // batch_size), len(images) // batch_size))]
    stream.close()
    index = torch.cat([batch.index for batch in batches])[:count]
    views = zip(*[batch.views for batch in batches], strict=True)
    return index, tuple((torch.cat(v)[:count] * 255).round().to(torch.uint8) for v in views)


def run_device(config: Config) -> torch.device:
    """The run's device where this machine has it, else the CPU. float64 is needed, which mps lacks."""
    wanted = config.train.device
    if torch.cuda.is_available() and (wanted == "auto" or wanted.startswith("cuda")):
        return torch.device("cuda")
    return torch.device("cpu")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
