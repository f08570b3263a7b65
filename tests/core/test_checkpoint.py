"""Checkpoints: whole or absent, checked byte by byte, and never code."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from clf import checkpoint
from clf.errors import CheckpointError


def state(step: int) -> dict[str, object]:
    return {"step": step, "method": {"w": torch.arange(1000.0) + step}}


def test_a_state_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        checkpoint.save(tmp_path, step, state(step))
    assert [path.name for path in checkpoint.paths(tmp_path)] == ["step-000000030.pt", "step-000000002.pt"]
    found, complaints = checkpoint.load_newest(tmp_path)
    assert found["step"] == 30 and complaints == []
    torch.testing.assert_close(found["method"]["w"], torch.arange(1000.0) + 30)


def test_what_a_killed_writer_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    half = tmp_path / "step-000000003.tmp"
    half.write_bytes(b"PK")
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, 5, state(5))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005.pt"]


def test_a_truncated_one_is_skipped_with_a_word(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1))
    newer = checkpoint.save(tmp_path, 2, state(2))
    newer.write_bytes(newer.read_bytes()[:-100])
    found, complaints = checkpoint.load_newest(tmp_path)
    assert found["step"] == 1
    assert len(complaints) == 1 and "step-000000002.pt is damaged" in complaints[0]


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_one_flipped_byte_is_noticed(tmp_path: Path, place: float) -> None:
    path = checkpoint.save(tmp_path, 1, state(1))
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_none_at_all_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.load_newest(tmp_path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch " + os.environ["CLF_TEST_PAYLOAD"],)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    monkeypatch.setenv("CLF_TEST_PAYLOAD", str(trace))
    path = tmp_path / "step-000000001.pt"
    torch.save({"step": 1, "method": Payload()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not trace.exists()


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = checkpoint.save(tmp_path, 1, state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*last good one is .*step-000000001"):
        checkpoint.save(tmp_path, 2, state(2))
    assert list(tmp_path.iterdir()) == [good]
    assert checkpoint.load(good)["step"] == 1
