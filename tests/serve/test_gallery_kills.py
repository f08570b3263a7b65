"""SIGKILL at random points of writing, saving, rebuilding and syncing: what was acknowledged is there, exactly once."""

from __future__ import annotations

import os
from pathlib import Path

import gallery_kills
import pytest
import sync_kills

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL")


@pytest.mark.slow
def test_a_writer_that_is_killed_loses_nothing_it_has_acknowledged(tmp_path: Path) -> None:
    sizes = list(gallery_kills.rounds(tmp_path / "gallery", 6))
    assert len(sizes) >= 5
    assert max(sizes) > 40


@pytest.mark.slow
def test_an_index_run_that_is_killed_leaves_a_sound_gallery_and_the_next_one_completes_it(
    tmp_path: Path, model: Path
) -> None:
    assert min(sync_kills.rounds(tmp_path, model, 3)) >= 2
