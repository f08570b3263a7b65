"""Galleries carried from one place to another, folders and stores alike, and compared with what they came from."""

from clf_serve.copying.comparing import Compared, Difference
from clf_serve.copying.work import Copied, Diff, Steps, carry_over, copy, diff

__all__ = ["Compared", "Copied", "Diff", "Difference", "Steps", "carry_over", "copy", "diff"]
