"""Locks between processes."""

from pathlib import Path

from clf.data.locks import try_lock


def test_a_lock_excludes_all_others_and_a_shared_one_the_exclusive(tmp_path: Path) -> None:
    first, shared = try_lock(tmp_path / "a"), [try_lock(tmp_path / "b", shared=True) for _ in range(2)]
    assert first is not None and all(shared)
    assert try_lock(tmp_path / "a") is None and try_lock(tmp_path / "a", shared=True) is None
    assert try_lock(tmp_path / "b") is None
    first.release()
    del shared
    assert try_lock(tmp_path / "a") is not None and try_lock(tmp_path / "b") is not None
