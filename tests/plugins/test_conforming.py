"""Every built-in method, with each base that it can have, passes the checks that authors of plugins run."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_every_plugin import EVERY

from clf.testing.suite import CHECKS, run_checks

PROVED_BY_MORE = {"chunks", "resume", "ranks", "export"}
"""In test_every_plugin: with kills, four ranks, and each method's further settings."""
ABOUT_PACKAGES = {"requirement", "package"}
"""Say nothing about what is part of clf-vision itself."""
REFUSE_ODD_BATCHES = {
    "moco",
    "moco, symmetric",
    "dcl on moco",
    "batch_curation, both sides",
    "hard_sample_gen",
    "hard_sample_gen on moco",
}
"""With the settings that they are given here: a queue, or a number of made pairs, that only such batches fill."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_it_conforms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plugin, settings = EVERY[name]
    names = [check.name for check in CHECKS if check.name not in PROVED_BY_MORE]
    found = run_checks(plugin, names, settings)
    told = {outcome.check.name: f"{outcome.state}: {outcome.text}" for outcome in found.outcomes}
    assert found.conforms, told
    skipped = ABOUT_PACKAGES | ({"odd batch"} if name in REFUSE_ODD_BATCHES else set())
    assert {outcome.check.name for outcome in found.of("skipped")} == skipped, told
