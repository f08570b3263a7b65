"""Whether another process still runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def runs(pid: int) -> bool:
    """Whether a process of this machine has not ended. Where nobody can say, it has not."""
    if sys.platform == "win32":  # where signal 0 is not a question
        return True
    with suppress(OSError):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # ended, not yet fetched
            return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
