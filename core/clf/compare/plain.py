"""A comparison as plain values, for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clf.compare.comparison import Column, Comparison, difference, group_spread, values, verdict
from clf.compare.groups import Group
from clf.compare.reading import Member


def to_plain(found: Comparison) -> dict[str, Any]:
    """Everything that a comparison knows, under names that stay.

    format            1
    comparable        false where runs on different images were compared with --anyway
    reference         name of the group that differences are taken to
    notes             kind, text, runs, serious: what to know before trusting the figures
    columns           key ("SET/MEASURE"; SET is "training" for what the training recorded), data, measure, label,
                      better ("higher", "lower", "neither"), scale (what values are shown times), protocol
    groups            name, seeds, runs, settings (those that differ between groups), scores: column key -> mean,
                      std (null for one seed), n, values (seed -> value)
    differences       group, reference, column, mean, low, high (95 %; null where there is none), kind ("paired",
                      "unpaired", "single"), n, sign, verdict
    settings          dotted key -> {group: value}, of the keys that differ
    runs              name, path, group, repeats (the run that counts instead, or null), seed, plugin, state, step,
                      wall_seconds, device, code, data, scores, evaluated (data, step, protocol, scores), curves: knn,
                      loss and rank_me as lists of [step, epoch, seconds, value]

    Accuracies are in [0, 1], times in seconds.
    """
    return {
        "format": 1,
        "comparable": found.comparable,
        "reference": found.reference.name,
        "notes": [
            {"kind": note.kind, "text": note.text, "runs": list(note.runs), "serious": note.serious}
            for note in found.notes
        ],
        "columns": [_column(column) for column in found.columns],
        "groups": [_group(group, i, found) for i, group in enumerate(found.groups)],
        "differences": [
            row for column in found.columns for group in found.others if (row := _difference(group, column, found))
        ],
        "settings": {
            key: {group.name: value for group, value in zip(found.groups, row, strict=True)}
            for key, row in found.settings.items()
        },
        "runs": [_run(member, found) for member in found.members],
    }


def _column(column: Column) -> dict[str, Any]:
    measure = column.measure
    return {
        "key": column.key,
        "data": column.data,
        "measure": measure.key,
        "label": measure.label,
        "better": measure.better,
        "scale": measure.scale,
        "protocol": column.protocol,
    }


def _group(group: Group, place: int, found: Comparison) -> dict[str, Any]:
    scores = {}
    for column in found.columns:
        spread = group_spread(group, column)
        if spread is not None:
            single = {str(seed): value for seed, value in values(group, column).items()}
            scores[column.key] = {"mean": spread.mean, "std": spread.std, "n": spread.n, "values": single}
    return {
        "name": group.name,
        "seeds": group.seeds,
        "runs": [member.name for member in group.members],
        "settings": {key: row[place] for key, row in found.settings.items()},
        "scores": scores,
    }


def _difference(group: Group, column: Column, found: Comparison) -> dict[str, Any] | None:
    each = difference(group, found.reference, column)
    if each is None:
        return None
    low, high = each.interval or (None, None)
    return {
        "group": group.name,
        "reference": found.reference.name,
        "column": column.key,
        "mean": each.mean,
        "low": low,
        "high": high,
        "kind": each.kind,
        "n": each.n,
        "sign": each.sign,
        "verdict": verdict(each, column.measure),
    }


def _run(member: Member, found: Comparison) -> dict[str, Any]:
    group = next(g for g in found.groups if member in g.members or member.name in g.duplicates)
    scores = {column.key: value for column in found.columns if (value := column.value(member)) is not None}
    return {
        "name": member.name,
        "path": str(member.path).encode("utf-8", "backslashreplace").decode(),
        "group": group.name,
        "repeats": group.duplicates.get(member.name),
        "seed": member.seed,
        "plugin": member.plugin,
        "state": member.state,
        "step": member.step,
        "wall_seconds": member.wall_seconds,
        "device": member.manifest.get("device"),
        "code": member.code,
        "data": member.data.words,
        "scores": scores,
        "evaluated": [
            {
                "data": each.data,
                "step": each.step,
                "protocol": dict(each.protocol),
                "scores": {measure.key: value for measure, value in each.scores.items()},
            }
            for each in member.evaluated
        ],
        "curves": {
            "knn": _points(member.curves.knn),
            "loss": _points(member.curves.loss),
            "rank_me": _points(member.curves.rank_me),
        },
    }


def _points(curve: Sequence[tuple[float, ...]]) -> list[list[float]]:
    return [list(point) for point in curve]
