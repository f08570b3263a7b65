"""Starting a training and going on with one: the run folder, the ranks, the switches of torch, then the loop.

The loop itself is :mod:`clf.trainer`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from clf import (
    allocator,
    checkpoint,
    compiling,
    distributed,
    experiment,
    guarded,
    kept,
    plugins,
    provenance,
    runs,
    single,
)
from clf import config as configuration
from clf.callbacks import Watcher
from clf.config import Config
from clf.distributed import Ranks
from clf.errors import CheckpointError, ClfError, DataError, PluginError, RunError
from clf.experiment import Experiment
from clf.monitor import Monitor
from clf.plugins import Plugin
from clf.progress import Progress, loading
from clf.runs import Run
from clf.trainer import Trainer

_LAST_BITS = ("train.threads", "train.compile")
FREE_TO_CHANGE = (
    *("run.", "monitor.", "data.root", "data.download", "data.workers", "data.options.cache_", "train.checkpoint_"),
    "train.unreachable_seconds",
    *_LAST_BITS,
)
"""Keys that may differ when a run is resumed: they cannot change its weights, or in the last bits only."""


def train(config: Config, callbacks: Sequence[Watcher] | None = None) -> Run:
    """Trains a new run to its end and returns it.

    Raises:
        ClfError: something is wrong with the configuration, the data, the plugin or the disk, or the loss is not
            finite.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
    """
    config, _ = configuration.derive(config)
    with session(config) as ranks, ExitStack() as held:
        _check_same_start(config, ranks, resumed=False)
        config = settle(config, ranks.device)
        plugin = plugins.load_plugin(config.plugin)
        watchers = _default_callbacks(callbacks, ranks, config, plugin)
        with loading(quiet=callbacks is not None or not ranks.is_main) as progress:
            what = experiment.build(config, progress=progress, plugin=plugin)
        distributed.wait_for_all(ranks)
        _check_same_source(what, ranks)
        _check_same_data(what, ranks)
        run: Run | None = None
        try:
            run = _shared_run(config, ranks, held)
            if ranks.is_main:
                runs.replace_text(run.path / "config.yaml", configuration.dump_yaml(what.config))
                if plugin.source is not None:
                    kept.keep(run, plugin.source)
                run.write_json("manifest.json", provenance.manifest(what, ranks, guarded.origins(watchers)))
            trainer = Trainer(what, run, ranks, watchers)
            trainer.save()
        except BaseException:
            if ranks.is_main and run is not None:
                shutil.rmtree(run.path, ignore_errors=True)  # nothing was trained, and the name is free again
            raise
        try:
            trainer.fit()
        except ClfError:
            if trainer.done == 0 and ranks.is_main:  # the first step told a mistake of the user's
                shutil.rmtree(run.path, ignore_errors=True)
            raise
    return run


def resume(run: Run, config: Config | None = None, callbacks: Sequence[Watcher] | None = None) -> Run:
    """Continues a run from its newest good checkpoint, exactly as if it had not stopped.

    Args:
        config: the configuration wanted now; keys that matter must equal the run's.

    Raises:
        RunError: the configuration or the data differ, no checkpoint can be read, or another process trains the run.
    """
    wanted = old = run.config()
    if config is not None:
        wanted, _ = configuration.derive(config)
    _check_plugin(run, wanted.plugin)
    with session(wanted) as ranks, ExitStack() as held:
        _check_same_start(wanted, ranks, resumed=True)
        wanted = settle(wanted, ranks.device)
        _check_unchanged(run, old, wanted)
        plugin = plugins.load_plugin(kept.plugin_of(run, old))
        watchers = _default_callbacks(callbacks, ranks, wanted, plugin)
        distributed.on_main(lambda: held.enter_context(run.lock()), ranks)
        state, complaints = _shared_state(run, ranks)
        with loading(quiet=callbacks is not None or not ranks.is_main) as progress:
            what = experiment.build(wanted, fetch=False, progress=progress, plugin=plugin)
        experiment.check_data(run, what.data)
        distributed.wait_for_all(ranks)
        trainer = Trainer(what, run, ranks, watchers)
        trainer.restore(state)
        if trainer.step >= trainer.total_steps:
            trainer.say(f"run {run.name!r} is complete: all {trainer.total_steps:,} steps are done")
            if ranks.is_main and run.state() != "complete":  # killed between its last checkpoint and its end
                run.update_manifest(state="complete", step=trainer.step, wall_seconds=round(trainer.seconds, 2))
            return run
        if ranks.is_main:
            run.remove_leftovers()
            run.truncate_metrics(trainer.step, trainer.prepared)
            runs.replace_text(run.path / "config.yaml", configuration.dump_yaml(wanted))
            before = {key: value for key, value in run.manifest().items() if key != "reason"}  # of an earlier end
            notes = [*before.get("notes", []), *complaints]
            now = {"state": "running", "notes": notes, "callbacks": guarded.origins(watchers)}
            run.write_json("manifest.json", {**before, **now})
        for complaint in filter(None, [*complaints, kept.notice(run)]):
            trainer.say(complaint)
        trainer.fit()
    return run


def _check_unchanged(run: Run, old: Config, wanted: Config) -> None:
    """Refuses a configuration that would not go on with the same training."""
    changed = configuration.differences(old, wanted, ignore=FREE_TO_CHANGE)
    if changed:
        raise RunError(
            f"run {run.name!r} cannot be resumed with another configuration: {'; '.join(changed)}. "
            "Resume it as it was, or train a new run"
        )


def _check_plugin(run: Run, plugin: str) -> None:
    """Refuses a single-file plugin that was edited since the run began, where the run has no copy of it."""
    told = kept.source_of(run) if plugins.is_path(plugin) else {}
    if "sha256" in told and "kept" not in told and single.read(plugin).sha256 != told["sha256"]:
        raise RunError(
            f"{plugin} has changed since run {run.name!r} was trained with it: restore the file, or train a new run"
        )


def _check_same_source(what: Experiment, ranks: Ranks) -> None:
    """Refuses a single-file plugin that is not the same on every machine.

    Raises:
        PluginError: it is not.
    """
    source = what.plugin.source if what.plugin is not None else None
    if source is not None and not _alike(source.sha256, ranks):
        raise PluginError(f"the ranks see different contents of {source.path}: give every machine the same file")


def _check_same_data(what: Experiment, ranks: Ranks) -> None:
    """Refuses images that are not the same on every machine.

    Raises:
        DataError: they are not.
    """
    if not _alike(hashlib.sha256(what.data.fingerprint.encode()).hexdigest(), ranks):
        data = what.config.data
        place = f"{data.name} in {data.root}" if data.root else data.name
        raise DataError(
            f"the ranks see different images of {place} ({len(what.data.train)} to train on for rank {ranks.rank}): "
            "give every machine the same files"
        )


def _check_same_start(config: Config, ranks: Ranks, *, resumed: bool) -> None:
    """Refuses a run that some machines would begin and others go on with.

    Raises:
        RunError: it is one.
    """
    if distributed.any_rank(resumed, ranks) and distributed.any_rank(not resumed, ranks):
        raise RunError(
            f"rank {ranks.rank} {'sees' if resumed else 'does not see'} the checkpoints of run {config.run.name!r} in "
            f"{Path(config.run.dir).absolute()}, and others {'do not' if resumed else 'do'}: run.dir must be on a file "
            "system that all machines share"
        )


def _alike(sha256: str, ranks: Ranks) -> bool:
    """Whether all ranks have the same."""
    number = int(sha256[:12], 16)  # 48 bits, which a float64 holds
    high, low = distributed.largest([number, -number], ranks)
    return high == -low


@contextmanager
def session(config: Config) -> Iterator[Ranks]:
    """Joins the other ranks and sets the process-wide switches of torch, for as long as the training lasts."""
    threads = torch.get_num_threads()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not config.train.deterministic  # shapes never change, so trying kernels pays
    allocator.keep_freed_memory()
    try:
        with distributed.together(config.train.device, config.train.unreachable_seconds) as ranks:
            yield ranks
    finally:
        torch.backends.cudnn.benchmark = tuned
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.set_num_threads(threads)


def settle(config: Config, device: torch.device) -> Config:
    """What ``auto`` means on this device, so that the run's configuration says what was done.

    Raises:
        ConfigError: torch.compile is demanded and cannot work here.
    """
    section = config.train
    precision = section.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    compiled = "on" if compiling.wanted(section.compile, device) else "off"
    channels_last = section.channels_last is not False and device.type != "mps"
    settled = {"precision": precision, "compile": compiled, "channels_last": channels_last}
    return config.model_copy(update={"train": section.model_copy(update=settled)})


def _shared_run(config: Config, ranks: Ranks, held: ExitStack) -> Run:
    """The run folder that rank 0 made and has locked."""

    def make() -> Run:
        made = runs.create_run(config)
        held.enter_context(made.lock())
        return made

    run = distributed.on_main(make, ranks)
    return Run(Path(distributed.from_main(str(run.path) if run else "", ranks)))


def _shared_state(run: Run, ranks: Ranks) -> tuple[dict[str, Any], list[str]]:
    """The newest good checkpoint, the same on every rank, and what is wrong with newer ones."""
    state, complaints = checkpoint.load_newest(run.checkpoints, set_aside=ranks.is_main)
    done = state["step"] + state.get("prepared", 0)
    high, low = distributed.largest([done, -done], ranks)
    if high != -low:
        raise CheckpointError(
            f"the ranks see different checkpoints in {run.checkpoints}, of the steps {-low:.0f} to {high:.0f}: "
            "run.dir must be on a file system that all machines share"
        )
    return state, complaints


def _default_callbacks(
    callbacks: Sequence[Watcher] | None, ranks: Ranks, config: Config, plugin: Plugin
) -> list[Watcher]:
    """Those of rank 0; the others have none, and fail if rank 0 cannot make its own."""
    if callbacks is not None:
        return list(callbacks) if ranks.is_main else []
    made = distributed.on_main(lambda: guarded.make(config.monitor.callbacks, plugin), ranks)
    return [Monitor(), Progress(), *(made or [])] if ranks.is_main else []
