"""``clf verify ranks``: several processes compute what one process computes."""

from __future__ import annotations

import json
import math
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clf.config import Config
from clf.errors import ConfigError
from clf.runs import Run
from clf.verify.child import Job, run_together
from clf.verify.compare import differences, end_of, largest_difference
from clf.verify.report import Report
from clf.verify.tiny import named, tiny

TOLERANCE = 1e-10
"""Largest relative difference of weights, optimizers and metrics, in float64."""

STEPS = 6


def ranks(plugin: str, changes: Mapping[str, Any] | None = None, counts: Sequence[int] = (2, 4)) -> Report:
    """Whether several ranks equal one process in float64, and a run may go on with another number of them.

    The same few steps are trained by one process, by each number of ranks, and by one number after the other: stopped
    and resumed with another. In float64 all must agree to 1e-10 of each tensor's largest value (or of 1). What is of
    one rank's rows by its nature is taken out of the comparison: batch norm sees the rows of all ranks, and
    :func:`torch.nn.functional.dropout` drops nothing. A run that is stopped and resumed with the same number of ranks
    must have the bits of one that is not.

    Args:
        plugin: a plugin's name or the path of a file.
        changes: dotted configuration keys, over the tiny default.
        counts: numbers of ranks; ``train.batch_size`` must be divisible by each.

    Raises:
        ConfigError: a number of ranks is below 2, or a batch would be cut into chunks.
        ClfError: the training itself fails.
    """
    if not counts or min(counts) < 2:
        raise ConfigError(f"the numbers of ranks must be 2 or more, got {', '.join(map(str, counts)) or 'none'}")
    with tempfile.TemporaryDirectory(prefix="clf-verify-") as folder:
        config = tiny(plugin, Path(folder), changes or {}, settings_for(counts))
        _refuse_chunks(config)
        report = Report(f"{_list(counts)} ranks training {plugin} equal one process")
        one = side_by_side(config, counts, report)
        if not report.holds:
            return report  # a run by changing numbers of ranks would differ for the same reason
        row = [counts[0], 1, counts[-1]]
        _compare(report, one, _in_turn(config, "changing", row), f"{', then '.join(map(str, row))} ranks")
        _exact(report, Run(Path(folder) / f"ranks-{counts[0]}"), _in_turn(config, "stopped", [counts[0]] * 2))
    return report


def side_by_side(config: Config, counts: Sequence[int], report: Report, said: Path | None = None) -> Run:
    """Trains with one process and with each number of ranks, and reports how they differ; the run of one process.

    Args:
        config: with the keys of :func:`settings_for`, and ``run.dir`` a folder without runs.
        said: the file that what the trainings print is added to; default: standard error.
    """
    one = _train(config, "one", 1, said=said)
    for count in counts:
        _compare(report, one, _train(config, f"ranks-{count}", count, said=said), f"{count} ranks")
        _agree(report, Path(config.run.dir), f"ranks-{count}", count)
    return one


def settings_for(counts: Sequence[int]) -> dict[str, Any]:
    """What the comparison of so many ranks needs: in float64, and a batch that all of them divide."""
    each = math.lcm(*counts)
    return {
        "train.batch_size": each * max(1, -(-16 // each)),
        "train.precision": "fp64",
        "train.device": "cpu",
        "train.compile": "off",
        "train.chunk_size": None,
        "train.max_steps": STEPS,
        "monitor.log_every": 1,
        "monitor.knn_every": 0,
    }


def _refuse_chunks(config: Config) -> None:
    if config.train.chunk_size is not None:
        raise ConfigError(
            f"train.chunk_size = {config.train.chunk_size} cannot be set for clf verify ranks: one process and several "
            "ranks have different rows in a chunk, and batch norm, which sees one chunk at a time, would make a right "
            "method differ. Leave it out"
        )


def _train(
    config: Config,
    name: str,
    count: int,
    *,
    resumed: bool = False,
    stop: int | None = None,
    said: Path | None = None,
) -> Run:
    """Trains with so many ranks, up to a step or to the end."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    jobs = [
        Job(
            named(config, name),
            resume=resumed,
            stop_step=stop,
            environment={**address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            one_batch=True,
            rank_folder=Path(config.run.dir),
            said=said,
        )
        for rank in range(count)
    ]
    run_together(jobs)
    return jobs[0].run


def _in_turn(config: Config, name: str, row: Sequence[int]) -> Run:
    """One run by one number of ranks after the other, each for an equal part."""
    for i, count in enumerate(row, start=1):
        run = _train(config, name, count, resumed=i > 1, stop=STEPS * i // len(row) if i < len(row) else None)
    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _compare(report: Report, one: Run, many: Run, who: str) -> None:
    ends = end_of(one), end_of(many)
    state, metrics = largest_difference(*ends)
    report.fact(f"{who}, largest relative difference of the state", f"{state:.2g}")
    report.fact(f"{who}, largest relative difference of the metrics", f"{metrics:.2g}")
    report.differences += differences(*ends, ("with one process", f"with {who}"), TOLERANCE)


def _agree(report: Report, folder: Path, name: str, count: int) -> None:
    """Whether all ranks hold the same bits; only those of rank 0 are in the checkpoint."""
    first, *others = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(count))
    for rank, other in enumerate(others, start=1):
        differing = [tensor for tensor in first if first[tensor] != other.get(tensor)]
        if differing:
            report.differences.append(
                f"With {count} ranks, {differing[0]!r} on rank {rank} differs from that on rank 0: what is kept "
                "between steps must be made of gathered rows, ctx.gather(x)."
            )
            return
    report.fact(f"{count} ranks, weights and buffers", "the same bits on every rank")


def _exact(report: Report, whole: Run, stopped: Run) -> None:
    ends = end_of(whole), end_of(stopped)
    report.fact("SHA-256 of state, left alone", ends[0].state_sha256)
    report.fact("SHA-256 of state, stopped and resumed with as many ranks", ends[1].state_sha256)
    report.differences += differences(*ends, ("left alone", "stopped and resumed with as many ranks"))


def _list(counts: Sequence[int]) -> str:
    return " and ".join(map(str, counts))
