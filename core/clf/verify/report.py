"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """Facts in the order in which they were found, and what differs, if anything does."""

    claim: str
    """What was to be proved, as a sentence."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Sentences, the earliest difference first; none means that the claim holds."""

    @property
    def holds(self) -> bool:
        return not self.differences

    def fact(self, name: str, value: object) -> None:
        self.facts.append((name, str(value)))

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.facts]
        end = [f"Holds: {self.claim}."] if self.holds else [f"Does not hold: {self.claim}.", *self.differences]
        return "\n".join([*lines, *end])
