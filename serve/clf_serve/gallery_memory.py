"""What is asked of a gallery again and again, remembered until the gallery changes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from clf_serve.gallery import FieldFacts, GalleryFacts, Where
from clf_serve.stores import AnyGallery

T = TypeVar("T")
_KEPT = 64  # answers of each gallery


class Memory:
    """For any number of galleries, as long as they are open. Thread-safe. What is asked may take long: not for the
    event loop."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[AnyGallery, tuple[int, OrderedDict[str, Any]]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def facts(self, gallery: AnyGallery) -> GalleryFacts:
        return self._get(gallery, "facts", gallery.facts)

    def fields(self, gallery: AnyGallery) -> dict[str, FieldFacts]:
        return self._get(gallery, "fields", gallery.fields)

    def count(self, gallery: AnyGallery, where: Where | None) -> int:
        """How many images a filter lets through."""
        text = where.json if where else ""  # perhaps many MiB
        return self._get(gallery, f"count {hashlib.sha256(text.encode()).hexdigest()}", lambda: gallery.count(where))

    def near(self, gallery: AnyGallery) -> float:
        """The cosine from which two of its images count as near duplicates."""
        from clf_serve.duplicates.finding import default_threshold

        return self._get(gallery, "near", lambda: default_threshold(gallery))

    def _get(self, gallery: AnyGallery, name: str, ask: Callable[[], T]) -> T:
        generation = gallery.generation  # read before: an answer may be newer than it says, never older
        with self._lock:
            known = self._known.get(gallery)
            if known is None or known[0] != generation:
                known = self._known[gallery] = (generation, OrderedDict())
            if name in known[1]:
                known[1].move_to_end(name)
                found: T = known[1][name]
                return found
        answer = ask()
        with self._lock:
            known[1][name] = answer
            if len(known[1]) > _KEPT:
                known[1].popitem(last=False)
        return answer
