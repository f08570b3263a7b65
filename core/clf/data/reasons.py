"""Why files cannot be used, remembered from run to run."""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from pathlib import Path

from clf import images


class Reasons:
    """By name of the file, in a file of the data set's part of the cache, to which several threads and processes add.

    What cannot be decoded depends on the formats that are known here, which a package may add to: what was found with
    others is left aside.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"unreadable-{zlib.crc32(' '.join(images.formats()).encode()):08x}.jsonl"
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self.refresh()

    def __contains__(self, name: str) -> bool:
        return name in self._reasons

    def __getitem__(self, name: str) -> str:
        return self._reasons[name]

    def refresh(self) -> None:
        """Reads what other processes have found meanwhile; a line that was cut off is left out."""
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    name, reason = json.loads(line)
                    self._reasons[name] = reason

    def give(self, name: str, reason: str, remember: bool) -> None:
        with self._lock:
            self._reasons[name] = reason
            if remember:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, reason]) + "\n")
