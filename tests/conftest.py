"""What tests of all three parts share: the command line, and distributions that are installed only for one test."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from clf.cli import main

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")  # nothing here depends on how fast a shared machine happens to be

try:
    import torch
except ImportError:
    pass
else:
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays to the end, so the garbage collector need not look through it each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli() -> Callable[..., Outcome]:
    """``run_cli("plugins", "list")`` runs a command in this process; an exception that is a bug passes through."""

    def run(*words: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(words)
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def run_cli_process(tmp_path: Path) -> Callable[..., Outcome]:
    """The same in a fresh interpreter, in an empty folder: for exit codes, signals and what gets imported."""

    def run(*words: str, env: Mapping[str, str] | None = None, before: str = "", timeout: float = 120) -> Outcome:
        program = f"{before}\nfrom clf.cli import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``install("clf-foo", plugins={"foo": "clf_foo"}, modules={"clf_foo": "..."})``: a distribution on ``sys.path``.

    Returns the folder, for the ``PYTHONPATH`` of a child process. All of it is gone after the test.
    """
    imported: list[str] = []

    def make(
        name: str,
        *,
        plugins: Mapping[str, str] | None = None,
        commands: Mapping[str, str] | None = None,
        modules: Mapping[str, str] | None = None,
        requires: Sequence[str] = (),
        version: str = "1.0",
        entry_points: str | None = None,
    ) -> Path:
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        groups = {"clf.plugins": plugins or {}, "clf.commands": commands or {}}
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) if entry_points is None else entry_points)
        for module, source in (modules or {}).items():
            (site / f"{module}.py").write_text(source)
            imported.append(module)
        monkeypatch.syspath_prepend(str(site))
        return site

    yield make
    for module in imported:
        sys.modules.pop(module, None)
