"""One line per measured row: `name value threshold ok|FAIL`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Rows:
    """Prints rows as they come and remembers whether one failed."""

    failed: list[str] = field(default_factory=list)

    def at_least(self, name: str, value: float, threshold: float) -> None:
        self._row(name, value, f">={threshold:g}", value >= threshold)

    def at_most(self, name: str, value: float, threshold: float) -> None:
        self._row(name, value, f"<={threshold:g}", value <= threshold)

    def information(self, name: str, value: float) -> None:
        print(f"{name} {value:.4g} - ok", flush=True)

    def missing(self, name: str, what: str) -> None:
        """A row that cannot be measured."""
        self.failed.append(name)
        print(f"{name} missing - FAIL  # {what}", flush=True)

    @property
    def status(self) -> int:
        """Exit status: 1 if a row failed."""
        return 1 if self.failed else 0

    def _row(self, name: str, value: float, threshold: str, good: bool) -> None:
        if not good:
            self.failed.append(name)
        print(f"{name} {value:.4g} {threshold} {'ok' if good else 'FAIL'}", flush=True)
