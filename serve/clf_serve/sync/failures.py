"""Files that could not be decoded, remembered by size and time of modification, so that they are not tried again.

They are kept beside the gallery in ``sync/``, one file for each folder that was indexed. It is only a cache: where it
is missing, damaged or of other decoders, the files are tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from clf_serve.sync.scanning import File


class Failures:
    """What is known of the broken files below one folder.

    Args:
        gallery: the gallery's folder, or another for what may be lost.
        root: the folder that is indexed; real path.
    """

    def __init__(self, gallery: Path, root: str) -> None:
        self._path = gallery / "sync" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.json"
        self._root = root
        self._decoders: str | None = None
        self._files: dict[str, tuple[int, int, str]] = {}
        self._saved: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._path.read_bytes())
            if kept["root"] == root and kept["files"] and kept["decoders"] == self.decoders:
                self._files = {key: (int(size), int(at), str(why)) for key, (size, at, why) in kept["files"].items()}
                self._saved = dict(self._files)

    @property
    def decoders(self) -> str:
        """Which decoders have tried; a file that one of them refuses may be fine for the next release."""
        if self._decoders is None:
            import PIL

            from clf import images

            self._decoders = f"Pillow {PIL.__version__}: {', '.join(images.formats())}"
        return self._decoders

    def reason(self, file: File) -> str | None:
        """Why this very file could not be decoded; None when that is not known of it."""
        found = self._files.get(file.key)
        return found[2] if found is not None and found[:2] == (file.size, file.mtime_ns) else None

    def remember(self, file: File, reason: str) -> None:
        self._files[file.key] = (file.size, file.mtime_ns, reason)

    def save(self, present: set[str]) -> None:
        """Writes what is known of the files ``present``, by key, and forgets the others."""
        self._files = {key: found for key, found in self._files.items() if key in present}
        if self._files == self._saved:
            return
        draft = self._path.with_suffix(".tmp")
        with suppress(OSError):  # on a full disk they are tried again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"root": self._root, "decoders": self.decoders, "files": self._files}))
            draft.replace(self._path)
            self._saved = dict(self._files)
