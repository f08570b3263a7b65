"""``clf plugins contract``."""

from __future__ import annotations


def contract() -> None:
    """Print the contract between clf and a plugin, in Markdown: all that a plugin may import, implement or return."""
    from clf.contract import contract_page

    print(contract_page(), end="")
