"""The guide for authors of plugins, cut into its blocks, and a reader who follows it."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from clf.cli import main

GUIDE = Path(__file__).resolve().parents[2] / "plugins" / "README.md"
FILES = ("python", "toml", "yaml")
LANGUAGES = (*FILES, "sh", "text")

TINY: Mapping[str, str] = {
    "backbone.name": "test_resnet",
    "data.image_size": "16",
    "data.limit": "48",
    "train.epochs": "1",
    "train.max_steps": "2",
    "train.batch_size": "16",
    "train.threads": "1",
    "monitor.max_images": "32",
}
SHAPES = {"data.options.train_images": "64", "data.options.test_images": "32"}
FEW_CHECKS = "name,config,imports"


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    section: str
    """The nearest heading above."""
    line: int
    file: str | None = None
    """The name alone on the line above, which makes it that whole file."""

    @property
    def is_run(self) -> bool:
        return self.language == "sh"

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.text.splitlines() if self.is_run]


def blocks() -> list[Block]:
    """All fenced blocks, in order."""
    return list(_read(GUIDE.read_text(encoding="utf-8").splitlines()))


def _read(lines: list[str]) -> Iterator[Block]:
    section, above, numbered = "", "", enumerate(lines, 1)
    for number, line in numbered:
        if line.startswith("#"):
            section = line.lstrip("# ")
        if line.startswith("```"):
            body = []
            for _, inner in numbered:
                if inner.startswith("```"):
                    break
                body.append(inner)
            name = re.fullmatch(r"`([^`]+)`", above)
            file = name.group(1) if name else None
            yield Block(line[3:], "\n".join(body) + "\n", section, number, file)
            above = ""
        elif line.strip():
            above = line


class Reader:
    """Somebody who writes the files, types the commands and compares what is printed.

    The commands are the guide's, but small: see :meth:`small`. ``pip install -e DIR`` puts the entry points of
    ``DIR/pyproject.toml`` on ``sys.path``, as pip does. ``clf`` is run in this process, other tools in their own.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self.before = set(sys.modules)

    def write(self, block: Block) -> None:
        assert block.file is not None
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def type(self, words: list[str], printed: Block | None) -> str:
        """Runs a command. It must succeed, unless the guide shows an error, or checks that fail.

        Returns:
            What was printed, errors included.
        """
        wanted = 0
        if printed is not None:
            wanted = 2 if "error: " in printed.text else 1 if "does not conform" in printed.text else 0
        code, said = self._run(self.small(words))
        assert code == wanted, f"{shlex.join(words)} ended with {code}:\n{said}"
        return said

    @staticmethod
    def small(words: list[str]) -> list[str]:
        """The command with settings added that make it take a second."""
        if words[:2] == ["clf", "train"] and "--print-config" not in words:
            drawn = not any(word.startswith("data.name=") for word in words)
            extra = {**TINY, **(SHAPES if drawn else {})}
            return [*words, *(f"{key}={value}" for key, value in extra.items())]
        if words[:3] == ["clf", "verify", "resume"]:
            return [*words, "--kills", "1"]
        if words[:3] == ["clf", "plugins", "check"] and "--only" not in words:
            return [*words, "--only", FEW_CHECKS]
        if words[:3] == ["python", "-m", "build"]:
            return [*words, "--no-isolation"]  # which would fetch hatchling
        if words[0] == "pytest":
            return [*words, "-k", FEW_CHECKS.replace(",", " or ")]
        return words

    def _run(self, words: list[str]) -> tuple[int, str]:
        if words[:3] == ["pip", "install", "-e"]:
            self._install(self.folder / words[3])
            return 0, ""
        if words[0] == "pytest":
            return self._python("pytest", "-p", "no:cacheprovider", *words[1:])
        if words[0] == "python":
            return self._python(*words[2:])
        if words[0] == "twine":
            return self._python("twine", *self._expanded(words[1:]))
        assert words[0] == "clf", f"the reader does not know {words[0]!r}"
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended:
            main(words[1:])
        code = ended.value.code
        return (code if isinstance(code, int) else int(code is not None)), said.getvalue()

    def _python(self, *module: str) -> tuple[int, str]:
        command = [sys.executable, "-m", *module]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=os.environ)
        return done.returncode, done.stdout + done.stderr

    def _expanded(self, words: list[str]) -> list[str]:
        """As a shell does with ``*``; what matches nothing stays."""
        return [path for word in words for path in sorted(map(str, self.folder.glob(word))) or [word]]

    def _install(self, project: Path) -> None:
        about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = self.folder / "site" / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {text}\n" for text in about["dependencies"])
        about_text = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n{needs}"
        (info / "METADATA").write_text(about_text, encoding="utf-8")
        groups = about["entry-points"].items()
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items()) for group, each in groups
        ]
        (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        source = project / "src" if (project / "src").is_dir() else project
        self.patch.syspath_prepend(str(source))
        self.patch.syspath_prepend(str(info.parent))

    def leave(self) -> None:
        """Forgets the modules that the guide brought."""
        for name in set(sys.modules) - self.before:
            if name.startswith("clf_") and str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def matches(shown: str, printed: str) -> bool:
    """Whether an output is what the guide shows; ``...`` stands for anything, also for several lines."""
    parts = (re.escape(part) for part in _plain(shown).split("..."))
    return re.fullmatch(r"\s*" + ".*?".join(parts) + r"\s*", _plain(printed), re.DOTALL) is not None


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
