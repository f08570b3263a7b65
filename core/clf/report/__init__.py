"""``clf report``: a run on one page that needs no network and no server, to read oneself and to show to others.

Importing the package loads no torch, so that charts can be drawn without it: :mod:`clf.report.write` makes the page.
"""

from __future__ import annotations

from pathlib import Path

from clf.runs import Run


def write_report(run: Run) -> Path:
    """See :func:`clf.report.write.write_report`."""
    from clf.report.write import write_report as write

    return write(run)
