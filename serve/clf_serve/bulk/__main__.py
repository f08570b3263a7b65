"""``python -m clf_serve.bulk NAME``: runs the conformance suite on an installed engine; exit status 1 if it fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from clf.checks import Outcome
from clf.errors import ClfError
from clf_serve.bulk.checks import run_checks


def main(words: Sequence[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: python -m clf_serve.bulk ENGINE", file=sys.stderr)
        return 2
    try:
        found = run_checks(words[0], on_outcome=_tell)
    except ClfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{words[0]} {'conforms' if found.conforms else 'does not conform'} ({found.seconds:.1f} s)")
    return 0 if found.conforms else 1


def _tell(outcome: Outcome) -> None:
    text = outcome.explain().replace("\n", "\n    ")
    print(f"{outcome.state:8} {outcome.check.name}{f': {text}' if text else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
