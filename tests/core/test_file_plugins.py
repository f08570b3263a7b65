"""``--plugin ./my_method.py``: the run keeps the source, goes on with it, and says when the user's file is another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clf import config as configuration
from clf import evaluate, experiment, kept, manifest, plugins, single, training
from clf.callbacks import Watcher
from clf.config import Config
from clf.errors import PluginError, RunError
from clf.monitor import Monitor
from clf.runs import Run
from clf.trainer import Interrupted, Trainer
from clf.verify.child import Child, Job, run_together
from clf.verify.compare import differences, end_of

Make = Callable[..., Config]
NAMES = ("left alone", "resumed")

METHOD = """
from __future__ import annotations

from dataclasses import dataclass

import clf
import torch
from clf import losses

@dataclass
class Scale:
    by: float = 0.5  # edit here

class Settings(clf.MethodConfig):
    temperature: float = 0.5

class Mine(clf.Method[Settings]):
    name = "mine"
    Config = Settings

    def training_step(self, batch, ctx):
        a, b = self.backbone(torch.cat(batch.views)).chunk(2)
        loss = losses.nt_xent(a, b, self.config.temperature, gather=ctx.gather, rank=ctx.rank)
        return Scale().by * loss
"""
EDITED = METHOD.replace("= 0.5  # edit here", "= 0.25")


class StopAt(Watcher):
    """Asks for the stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.stop.ask()


class Listen(Watcher):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, trainer: Trainer, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture(autouse=True)
def _forget_files() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith(single.PREFIX)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Make) -> Run:
    """A finished run of the file; its original is gone. Read it only."""
    folder = tmp_path_factory.mktemp("whole")
    path = written(folder / "mine.py")
    run = training.train(of_file(tiny, folder, path, {"run.name": "whole"}), callbacks=[Monitor()])
    path.unlink()
    return run


def written(path: Path, source: str = METHOD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return path


def of_file(tiny: Make, folder: Path, path: Path | str, changes: dict[str, Any] | None = None) -> Config:
    """The tiny configuration of the file, with nothing of SimCLR's."""
    made = tiny(folder, {"plugin": str(path), **(changes or {})})
    return made.model_copy(update={"method": {"temperature": 0.5}})


def stopped(config: Config, step: int = 4) -> Run:
    with pytest.raises(Interrupted) as stop:
        training.train(config, callbacks=[Monitor(), StopAt(step)])
    return stop.value.run


def test_the_run_keeps_the_source_and_what_the_user_typed(whole: Run) -> None:
    copy = whole.path / "plugin" / "mine.py"
    assert copy.read_text(encoding="utf-8") == METHOD
    assert [path.name for path in copy.parent.iterdir()] == ["mine.py"]
    typed = whole.path.parent / "mine.py"
    assert whole.manifest()["plugin_source"] == {
        "file": "mine.py",
        "path": str(typed),
        "kept": "plugin/mine.py",
        "sha256": hashlib.sha256(METHOD.encode()).hexdigest(),
    }
    assert whole.config().plugin == str(typed)


@pytest.mark.parametrize("fate", ["left", "edited", "removed"])
def test_a_stopped_run_goes_on_with_the_source_it_was_trained_with(
    tmp_path: Path, tiny: Make, whole: Run, fate: str
) -> None:
    path = written(tmp_path / "mine.py")
    run = stopped(of_file(tiny, tmp_path, path))
    if fate == "edited":
        written(path, EDITED)
    elif fate == "removed":
        path.unlink()
    listen = Listen()
    training.resume(run, callbacks=[Monitor(), listen])
    assert differences(end_of(whole), end_of(run), NAMES) == []
    told = {
        "left": [],
        "edited": [
            f"{path} has changed since run {run.name!r} was trained with it: the run goes on with the source it was "
            f"trained with, kept in {run.path}/plugin/mine.py; train a new run for the edited file"
        ],
        "removed": [
            f"{path} is gone since run {run.name!r} was trained with it: the run goes on with the source it was "
            f"trained with, kept in {run.path}/plugin/mine.py"
        ],
    }
    assert listen.said == told[fate]
    assert run.config().plugin == str(path)


def test_a_killed_run_of_a_file_that_is_edited_and_removed_has_the_bits_of_one_left_alone(
    tmp_path: Path, tiny: Make, whole: Run
) -> None:
    path = written(tmp_path / "mine.py")
    config = of_file(tiny, tmp_path, path, {"run.name": "killed"})
    assert Child(Job(config, kill_step=3)).kill_there()
    written(path, EDITED)
    assert Child(Job(config, resume=True, kill_step=8, place="with half a checkpoint written")).kill_there()
    path.unlink()
    Child(Job(config, resume=True)).join()
    assert differences(end_of(whole), end_of(Run(tmp_path / "killed")), NAMES) == []


def test_a_run_killed_before_its_first_step_makes_way_with_its_copy(tmp_path: Path, tiny: Make) -> None:
    path = written(tmp_path / "mine.py")
    left = tmp_path / "job"
    (left / "plugin").mkdir(parents=True)
    (left / "plugin" / "mine.py").write_text("half", encoding="utf-8")
    changes = {"run.name": "job", "train.max_steps": 1, "monitor.knn_every": 0}
    run = training.train(of_file(tiny, tmp_path, path, changes), callbacks=[])
    assert (run.path / "plugin" / "mine.py").read_text(encoding="utf-8") == METHOD


@pytest.fixture
def copied(tmp_path: Path, whole: Run) -> Run:
    """The finished run, to be changed."""
    shutil.copytree(whole.path, tmp_path / "whole")
    return Run(tmp_path / "whole")


@pytest.mark.parametrize(("damage", "state"), [("tampered", "was changed since"), ("removed", "is missing")])
def test_a_kept_file_that_is_not_the_source_is_refused_with_a_remedy(
    copied: Run, tmp_path: Path, damage: str, state: str
) -> None:
    copy = copied.path / "plugin" / "mine.py"
    copy.write_text(METHOD + "\n", encoding="utf-8") if damage == "tampered" else copy.unlink()
    for load in (experiment.load, lambda run: training.resume(run, callbacks=[])):
        with pytest.raises(RunError, match=rf"source that run 'whole' was trained with, .*mine\.py, {state}") as error:
            load(copied)
        assert str(error.value).endswith("put that file back, or train a new run")
    manifest = copied.manifest()
    mine = written(tmp_path / "mine.py")
    copied.write_json("manifest.json", {**manifest, "plugin_source": {**manifest["plugin_source"], "path": str(mine)}})
    with pytest.raises(RunError, match=rf"{mine} still is that source, so copy it to {copy}"):
        experiment.load(copied)
    shutil.copy(mine, copy)
    assert experiment.load(copied).step == 12


def test_a_run_from_before_sources_were_kept_works_as_it_did(tmp_path: Path, tiny: Make, whole: Run) -> None:
    path = written(tmp_path / "mine.py")
    run = stopped(of_file(tiny, tmp_path, path))
    shutil.rmtree(run.path / "plugin")
    told = run.manifest()["plugin_source"]
    run.update_manifest(plugin_source={"file": told["file"], "sha256": told["sha256"]})
    written(path, EDITED)
    with pytest.raises(RunError, match=r"mine\.py has changed since run .*: restore the file, or train a new run"):
        training.resume(run, callbacks=[])
    written(path)
    training.resume(run, callbacks=[Monitor()])
    assert differences(end_of(whole), end_of(run), NAMES) == []
    assert kept.notice(run) is None


@pytest.mark.parametrize("told", [None, {}, [], "mine.py"])
def test_a_manifest_that_says_nothing_of_the_source_hinders_nobody(
    tmp_path: Path, tiny: Make, whole: Run, told: Any
) -> None:
    run = Run(tmp_path / "whole")
    shutil.copytree(whole.path, run.path)
    path = written(tmp_path / "mine.py")
    run.update_manifest(plugin_source=told)
    config = run.config().model_copy(update={"plugin": str(path)})
    (run.path / "config.yaml").write_text(configuration.dump_yaml(config))
    assert (kept.plugin_of(run), kept.word_of(run), kept.notice(run)) == (str(path), str(path), None)
    assert training.resume(run, callbacks=[]).state() == "complete"


def test_a_file_that_cannot_be_read_any_more_hinders_no_run(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(of_file(tiny, tmp_path, written(tmp_path / "mine.py")))

    def denied(path: Path) -> str:
        if path.parent.name != "plugin":
            raise PermissionError(13, "Permission denied")
        return manifest.sha256_file(path)

    monkeypatch.setattr(kept, "sha256_file", denied)
    assert "the run goes on with the source it was trained with" in str(kept.notice(run))
    assert kept.word_of(run) == kept.plugin_of(run) == str(run.path / "plugin" / "mine.py")


def test_what_a_library_raises_at_import_is_placed_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.py", "import json\n\nSETTINGS = json.loads('{')\n")
    with pytest.raises(PluginError, match=r"JSONDecodeError: .* \(mine\.py, line 3\)\. Mend the file\.$"):
        plugins.load_plugin(str(path))


def test_a_run_is_opened_from_another_folder_by_what_the_user_typed(
    tmp_path: Path, tiny: Make, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path with a blank and an accent, by way of a symbolic link."""
    place = tmp_path / "thèse 1"
    target = written(place / "versions" / "v2.py")
    (place / "ma méthode.py").symlink_to(target)
    monkeypatch.chdir(place)
    config = of_file(tiny, Path("runs"), "./ma méthode.py", {"run.name": "one"})
    run = stopped(config)
    assert run.config().plugin == "./ma méthode.py"
    assert [each.name for each in (place / "runs" / "one" / "plugin").iterdir()] == ["ma méthode.py"]
    assert kept.notice(run) is None
    monkeypatch.chdir(tmp_path)
    found = Run(place / "runs" / "one")
    assert experiment.load(found).step == 4
    assert kept.notice(found) is None
    target.unlink()
    assert "is gone since run 'one'" in str(kept.notice(found))
    training.resume(found, callbacks=[Monitor()])
    assert differences(end_of(whole), end_of(found), NAMES) == []


def test_resuming_takes_the_path_in_any_spelling_and_refuses_another_file(
    tmp_path: Path, tiny: Make, run_cli: Callable[..., Any]
) -> None:
    run = stopped(of_file(tiny, tmp_path, written(tmp_path / "mine.py")))
    other = written(tmp_path / "other" / "mine.py")
    refused = run_cli("train", "--resume", str(run.path), "--plugin", str(other))
    assert refused.code == 2 and "cannot be resumed with" in refused.err
    same = f"{tmp_path}/other/../mine.py"
    assert run_cli("train", "--resume", str(run.path), "--plugin", same).code == 0
    assert run.config().plugin == str(tmp_path / "mine.py")


@pytest.mark.slow
def test_every_command_on_a_run_uses_the_kept_file_and_says_so(copied: Run, run_cli: Callable[..., Any]) -> None:
    """The user's file is gone."""
    path = str(copied.path)
    for words in (("evaluate", path), ("export", path), ("report", path)):
        done = run_cli(*words)
        assert done.code == 0, done.err
        assert done.err.count("is gone since run 'whole' was trained with it: the run goes on with the source") == 1
    found = evaluate.results.read_evaluations(copied)
    names = [each.name for evaluation in found.values() for each in evaluation.representations]
    assert {"random encoder", "trained encoder"} <= set(names)
    compared = run_cli("compare", path, "--json")
    assert compared.code == 0 and json.loads(compared.out)["runs"][0]["plugin"] == "mine"
    page = (copied.path / "report.html").read_text(encoding="utf-8")
    assert f"clf train --plugin {copied.path}/plugin/mine.py" in page
    assert "There are no pictures in this report" not in page


def test_the_configuration_of_a_run_means_the_source_of_that_run(
    copied: Run, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    """Also once the user's file has changed: so training with config.yaml again repeats the run."""
    file = str(copied.path / "config.yaml")
    shown = run_cli("train", "--config", file, "--print-config").out
    assert f"{copied.path}/plugin/mine.py" in shown
    again = ["train", "--config", file, f"run.dir={tmp_path}", "run.name=again"]
    assert run_cli(*again).code == 0
    assert differences(end_of(copied), end_of(Run(tmp_path / "again")), NAMES) == []


def test_two_files_of_one_name_and_the_kept_one_do_not_clash(tmp_path: Path) -> None:
    here, there = written(tmp_path / "a" / "mine.py"), written(tmp_path / "b" / "mine.py", EDITED)
    same = written(tmp_path / "run" / "plugin" / "mine.py")
    first, second, third = (plugins.load_method(str(path)) for path in (here, there, same))
    names = [each.__module__ for each in (first, second, third)]
    assert len(set(names)) == 3 and all(name.startswith("clf_plugin_file_mine_") for name in names)
    assert [sys.modules[name].Scale().by for name in names] == [0.5, 0.25, 0.5]
    assert plugins.load_method(str(here)) is first
    written(here, EDITED)
    edited = plugins.load_method(str(here))
    assert edited is not first and sys.modules[edited.__module__].Scale().by == 0.25
    assert sys.modules[names[0]].Scale().by == 0.5


def test_byte_code_is_neither_written_nor_believed(tmp_path: Path) -> None:
    """An edit of one letter within one second has size and time of before."""
    path = written(tmp_path / "mine.py", METHOD)
    plugins.load_method(str(path))
    written(path, METHOD.replace("= 0.5  #", "= 0.7  #"))
    assert sys.modules[plugins.load_method(str(path)).__module__].Scale().by == 0.7
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]


def refused(path: Path | str) -> str:
    with pytest.raises(PluginError) as error:
        plugins.load_method(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    assert "is a folder: give a single Python file" in refused(tmp_path / "folder.py")
    assert f"pip install -e {tmp_path}" in refused(f"{tmp_path}/")
    assert "is empty" in refused(written(tmp_path / "empty.py", " \n"))
    latin = tmp_path / "latin.py"
    latin.write_bytes("x = 1\ny = 'é'\n".encode("latin-1"))
    assert "is not text in utf-8 (line 2): save it as UTF-8, or declare" in refused(latin)
    latin.write_bytes(f"# -*- coding: latin-1 -*-\n# é\n{METHOD}".encode("latin-1"))
    assert plugins.load_method(str(latin)).name == "mine"
    written(latin, "# -*- coding: klingon -*-\n")
    assert "is not text (" in refused(latin)
    assert f"Did you mean {tmp_path}/latin.py?" in refused(tmp_path / "latin")
    assert "does not exist" in refused(tmp_path / "gone.py")
    assert "SyntaxError: source code" in refused(written(tmp_path / "null.py", "x = 1\0"))


def test_a_file_that_imports_a_sibling_is_told_that_it_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "helpers_of_mine.py", "x = 1")
    path = written(tmp_path / "mine.py", METHOD.replace("import torch", "import helpers_of_mine, torch"))
    message = refused(path)
    assert "imports 'helpers_of_mine' from beside it. A single file stands alone" in message
    assert "clf plugins new NAME" in message
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load_method(str(path)).name == "mine"  # the user's own PYTHONPATH is the user's own business
    assert "imports 'helpers_of_mine' from beside it, which its runs do not keep" in capsys.readouterr().err
    del sys.modules["helpers_of_mine"]
    missing = refused(written(tmp_path / "other.py", "import a_package_that_nobody_has\n"))
    assert "No module named 'a_package_that_nobody_has'" in missing and "stands alone" not in missing
    assert missing.endswith("Install what has 'a_package_that_nobody_has', or mend the file.")


def test_rank_0_alone_keeps_the_file_and_all_ranks_need_the_same(tmp_path: Path, tiny: Make) -> None:
    path = written(tmp_path / "mine.py")
    other = written(tmp_path / "elsewhere" / "mine.py", EDITED)
    changes = {"run.name": "both", "train.max_steps": 2, "monitor.knn_every": 0}
    run_together(ranks_of([of_file(tiny, tmp_path, path, changes)] * 2))
    run = Run(tmp_path / "both")
    assert (run.path / "plugin" / "mine.py").read_text(encoding="utf-8") == METHOD
    assert sorted(each.name for each in run.path.iterdir()) == [
        *(".lock", "checkpoints", "config.yaml", "manifest.json", "metrics.jsonl", "plugin"),
    ]
    with pytest.raises(PluginError, match=r"the ranks see different contents of .*mine\.py"):
        run_together(ranks_of([of_file(tiny, tmp_path, each, {**changes, "run.name": "x"}) for each in (path, other)]))
    assert not (tmp_path / "x").exists()


def ranks_of(configs: list[Config]) -> list[Job]:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(configs))}
    return [
        Job(config, environment={**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, config in enumerate(configs)
    ]


def test_the_file_that_was_imported_is_kept_though_it_is_edited_while_data_load(
    tmp_path: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "mine.py")
    load = experiment.load_data

    def slowly(*words: Any) -> Any:
        written(path, EDITED)
        return load(*words)

    monkeypatch.setattr(experiment, "load_data", slowly)
    run = training.train(of_file(tiny, tmp_path, path, {"train.max_steps": 1, "monitor.knn_every": 0}), callbacks=[])
    assert (run.path / "plugin" / "mine.py").read_text(encoding="utf-8") == METHOD
    assert run.manifest()["plugin_source"]["sha256"] == single.read(str(run.path / "plugin" / "mine.py")).sha256
