"""What changed between a folder and the gallery made of it: by size and time of modification, then by content.

Nothing is written here. The comparison reads only files that may be an image the gallery knows: of the same size as one
whose file is gone or changed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clf import images
from clf.errors import DataError
from clf_serve.files import Skipped
from clf_serve.gallery.store import Known, Moved
from clf_serve.sync.failures import Failures
from clf_serve.sync.scanning import File, Scan, Unusable

Hash = Callable[[list[File]], dict[str, str]]
"""SHA-256 of files, by key; without those that cannot be read."""

_FEW = 10
"""Images that may go at once without a question, however small the rest is."""


@dataclass
class Plan:
    """How the gallery differs from the folder."""

    files: list[File] = field(default_factory=list)
    """New and changed files, by name; after :func:`match` those whose content is to be embedded."""
    moves: list[Moved] = field(default_factory=list)
    """Entries whose file lies elsewhere now, and those whose file was only touched."""
    renamed: int = 0
    touched: int = 0
    gone: dict[str, Known] = field(default_factory=dict)
    """Entries to remove: those from below the folder whose files are no longer there."""
    elsewhere: dict[str, Known] = field(default_factory=dict)
    """Entries of other folders, and others that the listing could not meet."""
    replaced: int = 0
    """Entries whose path another entry's file has taken, and whose own content is nowhere."""
    kept: int = 0
    """Entries that are gone and stay, because so many are."""
    below: int = 0
    """Entries from below the folder, before anything is done."""
    unchanged: int = 0
    resting: int = 0
    """Files left for later, because they may still be written."""
    skipped: list[Skipped] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """Keys of the broken files that were not tried again."""
    names: dict[str, str] = field(default_factory=dict)
    """Keys by name relative to the folder, of the names that were asked for."""


def compare(
    source: Path,
    known: dict[str, Known],
    failures: Failures,
    *,
    names: Callable[[str], bool] | None = None,
    rests: Callable[[File], bool] = lambda file: True,
) -> Plan:
    """Lists the folder and sets its files against the gallery's by size and time of modification.

    Args:
        names: which files, by their name relative to the folder, are wanted in ``Plan.names``; none if not given.
        rests: whether a new or changed file is complete.

    Raises:
        DataError: ``source`` does not exist or holds no images.
        ImageError: a folder cannot be read.
    """
    plan = Plan()
    scan = Scan(source)
    left = dict(known)
    for file in scan:
        entry = left.pop(file.key, None)
        if isinstance(file, Unusable):
            plan.skipped.append(Skipped(Path(file.uri), file.reason))
            if file.gone and entry is not None:
                left[file.key] = entry
            continue
        if names is not None and names(file.name):
            plan.names[file.name] = file.key
        if entry is not None and entry.mtime_ns == file.mtime_ns and entry.size == file.size:
            plan.unchanged += 1
        elif reason := failures.reason(file):
            plan.skipped.append(Skipped(Path(file.uri), reason))
            plan.failed.add(file.key)
            if entry is not None:
                left[file.key] = entry
        elif rests(file):
            plan.files.append(file)
        else:
            plan.resting += 1
    if not (plan.unchanged or plan.files or plan.resting or plan.skipped):
        raise DataError(f"{source} holds no images ({', '.join(sorted(images.SUFFIXES))})")
    roots = tuple(scan.roots)
    plan.gone = {key: entry for key, entry in left.items() if key.startswith(roots)} if roots else {}
    plan.elsewhere = {key: entry for key, entry in left.items() if key not in plan.gone}
    plan.below = sum(key.startswith(roots) for key in known) if plan.gone else 0
    plan.files.sort()
    return plan


def match(plan: Plan, known: dict[str, Known], hash_files: Hash, *, allow_removals: bool) -> None:
    """Finds the touched, renamed and moved among new and changed files, by content, and decides what is removed.

    Entries of other folders count as moved too when their own files are no longer there. More than half of the folder's
    entries are not removed unless that is allowed: a disk may be missing.
    """
    free = _displaced(plan, known)
    sizes = {entry.size for entry in free.values()}
    digests = hash_files([file for file in plan.files if file.size in sizes])
    others = []
    for file in plan.files:
        entry = known.get(file.key)
        if entry is not None and entry.sha256 == digests.get(file.key):
            plan.moves.append(_moved(entry, file))
            plan.touched += 1
            del free[file.key]
        else:
            others.append(file)
    offers = _Offers(free)
    sources = {file: offers.of_name(digests[file.key], file.key) for file in others if file.key in digests}
    plan.files = []
    for file in others:
        key = sources.get(file) or offers.of_content(digests.get(file.key, "unread"))
        if key is None:
            plan.files.append(file)
        else:
            plan.gone.pop(key, None)
            plan.moves.append(_moved(known[key], file))
            plan.renamed += 1
    if len(plan.gone) >= _FEW and 2 * len(plan.gone) > plan.below and not allow_removals:
        plan.kept, plan.gone = len(plan.gone), {}
    plan.replaced = sum(move.key in free and move.id != known[move.key].id for move in plan.moves)


def _moved(entry: Known, file: File) -> Moved:
    return Moved(entry.id, file.key, file.uri, file.size, file.mtime_ns, file.folder)


class _Offers:
    """Entries that wait for a file of their content.

    Args:
        free: by key; those that are taken are removed from it.
    """

    def __init__(self, free: dict[str, Known]) -> None:
        self._free = free
        self._by_name: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._by_content: defaultdict[str, list[str]] = defaultdict(list)
        for key in sorted(free, reverse=True):
            digest = free[key].sha256
            self._by_name[digest, _last(key)].append(key)
            self._by_content[digest].append(key)

    def of_name(self, digest: str, key: str) -> str | None:
        """The key of an entry with this content and the file name of ``key``; it is taken by that."""
        return self._take(self._by_name.get((digest, _last(key)), []))

    def of_content(self, digest: str) -> str | None:
        """The same, of whatever name."""
        return self._take(self._by_content.get(digest, []))

    def _take(self, waiting: list[str]) -> str | None:
        while waiting:
            key = waiting.pop()
            if self._free.pop(key, None) is not None:
                return key
        return None


def _last(key: str) -> str:
    return key.rpartition(os.sep)[2]


def _displaced(plan: Plan, known: dict[str, Known]) -> dict[str, Known]:
    """Entries whose content is not where it was, so that a file with the same content may be theirs."""
    free = dict(plan.gone)
    free.update((file.key, known[file.key]) for file in plan.files if file.key in known)
    sizes = {file.size for file in plan.files if file.key not in known}
    if not sizes:
        return free
    likely = ((key, entry) for key, entry in plan.elsewhere.items() if entry.size in sizes and key not in free)
    free.update((key, entry) for key, entry in likely if _is_missing(key))
    return free


def _is_missing(key: str) -> bool:
    """Whether there certainly is no such file. A key that is no path was given by a program, and says nothing."""
    if not os.path.isabs(key):  # noqa: PTH117
        return False
    try:
        os.stat(key)  # noqa: PTH116
    except OSError as error:
        return isinstance(error, (FileNotFoundError, NotADirectoryError))
    return False
