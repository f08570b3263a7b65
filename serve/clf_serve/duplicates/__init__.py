"""Images that are in a gallery more than once: the same bytes, the same picture, or nearly so."""

from clf_serve.duplicates.finding import Found, Level, Progress, default_threshold, find, fold

__all__ = ["Found", "Level", "Progress", "default_threshold", "find", "fold"]
