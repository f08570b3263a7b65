"""The guide for authors, followed: every file is written, every command run, every output compared.

Each section is followed on its own, after the files of those before it. Settings are added to the commands that make
them small (:meth:`guide.Reader.small`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from guide import GUIDE, LANGUAGES, Block, Reader, blocks, matches
from PIL import Image

from clf import scaffold
from clf.testing.suite import CHECKS, run_checks

BLOCKS = blocks()
TEXT = GUIDE.read_text(encoding="utf-8")
HEAVY = {"One minute", "Settings, metrics, several processes", "State, a queue and a momentum encoder", "The checks"}
"""Sections that take longer than a few seconds to follow."""
FOLLOWED = [
    pytest.param(section, marks=pytest.mark.slow if section in HEAVY else ())
    for section in dict.fromkeys(block.section for block in BLOCKS)
]


class Recorder(ModuleType):
    """A module whose every function can be called, and which keeps what was."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect looks for those in all modules
            raise AttributeError(name)

        def call(*args: Any, **keywords: Any) -> Recorder:
            self.calls.append((name, args, keywords))
            return self

        return call


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    someone = Reader(tmp_path, monkeypatch)
    yield someone
    someone.leave()


def written_before(reader: Reader, section: str) -> None:
    for block in BLOCKS[: next(i for i, block in enumerate(BLOCKS) if block.section == section)]:
        if block.file:
            reader.write(block)


def follow(reader: Reader, section: str) -> None:
    """Does what a section says."""
    if section == "To PyPI":
        reader.type(["clf", "plugins", "new", "nudge"], None)  # as the section on packages did
    written_before(reader, section)
    here = [block for block in BLOCKS if block.section == section]
    for block, after in zip(here, [*here, None][1:], strict=True):
        if block.file:
            reader.write(block)
        shown = after if after is not None and after.language == "text" else None
        said, commands = "", block.commands
        for place, words in enumerate(commands, 1):
            said = reader.type(words, shown if place == len(commands) else None)
        if shown is not None and block.is_run:
            assert matches(shown.text, said), f"line {shown.line} shows\n{shown.text}\nand this was printed:\n{said}"


@pytest.mark.parametrize("section", FOLLOWED)
def test_a_section_does_what_it_says(section: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Recorder("wandb"))
    follow(reader, section)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_no_block_escapes(block: Block) -> None:
    """A block is a whole file, commands, what they print, or part of a shown file."""
    assert block.language in LANGUAGES
    if block.language == "python":
        assert block.file is not None
        compile(block.text, block.file, "exec")
    if block.language == "toml" and block.file is None:
        assert block.text in scaffold.compose("nudge")["pyproject.toml"]
    if block.language == "text":
        before = BLOCKS[BLOCKS.index(block) - 1]
        assert before.is_run, "an output follows the commands that print it"


def test_every_check_stands_in_the_table_of_mistakes() -> None:
    table = TEXT.partition("## Common mistakes")[2]
    found_by = {name.strip() for line in table.splitlines()[4:] for name in line.split("|")[2].split(",")}
    assert found_by - {"-"} == {check.name for check in CHECKS}


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = link.partition("#")
        if path.startswith("https://"):
            continue
        page = GUIDE.parent / path if path else GUIDE
        assert page.exists(), link
        if anchor:
            headings = [line.lstrip("# ") for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings], link


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_logger_gets_settings_and_every_record(logger: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real packages are not needed here: their functions that the guide calls are recorded by name."""
    recorder = Recorder(logger)
    monkeypatch.setitem(sys.modules, logger, recorder)
    written_before(reader, "A command")
    reader.type(["clf", "train", "--plugin", "./mine.py", f"monitor.callbacks=./to_{logger}.py"], None)
    names = [name for name, _, _ in recorder.calls]
    opened, logged, closed = {
        "wandb": ("init", "log", "finish"),
        "mlflow": ("start_run", "log_metrics", "end_run"),
    }[logger]
    assert names.count(opened) == names.count(closed) == 1
    assert names.count(logged) >= 2
    figures = {name for each, args, _ in recorder.calls if each == logged for name in args[0]}
    assert {"train/loss", "train/found", "monitor/knn"} <= figures


def test_the_example_store_is_the_one_that_is_proven() -> None:
    (shown,) = (block for block in BLOCKS if block.file == "clf-shelf/clf_shelf.py")
    assert shown.text == (GUIDE.parents[1] / "tests/serve/shelf_store.py").read_text(encoding="utf-8")


def test_the_workflow_may_upload_and_nothing_else() -> None:
    (workflow,) = (yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml")
    job = workflow["jobs"]["publish"]
    assert job["permissions"] == {"contents": "read", "id-token": "write"}
    assert any(step.get("uses", "").startswith("pypa/gh-action-pypi-publish@") for step in job["steps"])


def test_the_heavy_sections_are_some_of_them() -> None:
    assert {block.section for block in BLOCKS} >= HEAVY


def test_it_begins_with_a_dozen_lines() -> None:
    assert BLOCKS[0].file == "mine.py"
    assert len(BLOCKS[0].text.splitlines()) <= 12


QUICK = ("imports", "odd batch", "parameters move", "views matter", "resume", "ranks")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine", "memory", "patient", "rival"])
def test_the_methods_of_the_guide_conform(name: str, reader: Reader) -> None:
    """All of them to the checks that they could most easily fail; the one with two networks to all checks."""
    written_before(reader, "A command")
    found = run_checks(f"./{name}.py", () if name == "rival" else QUICK)
    assert found.conforms, [outcome.explain() for outcome in found.of("failed") + found.of("not run")]
